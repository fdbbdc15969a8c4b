"""Owns the packet sockets that ask all hosts of the segment whether they have our VIPs.

Another host that answers for a VIP gets part of the clients directly, past the balancer. Mostly it
is a backend of ``dsr`` that has the VIP on ``lo`` and does not keep silent about it
(``arp_ignore``). No other part of the balancer would notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection, Iterator

from pyroute2.netlink.exceptions import NetlinkError

from agent import sockfilter
from agent.errors import NetworkError
from agent.failover.host.frames import ETH_P_ARP, ETH_P_IPV6, claim, question
from agent.logs import get_logger
from agent.model import Address
from agent.network.netlink import Netlink
from agent.network.reset import RawSender
from agent.sockfilter import JEQ, LD_B, LD_H, RET
from agent.state.claims import Claim, Claims, Owner, in_words

log = get_logger()

ROUND_S = 5.0
BEFORE_S = 0.15  # wait for answers after each question about an address that is to be added
BEFORE_TIMES = 2  # how often it is asked for
ANSWER_S = 1.0  # how long a round waits for answers
MOST_A_SECOND = 20  # questions, because each goes to the whole segment
_ENOUGH = 128  # bytes read of a packet
_ONE_TURN = 64  # packets read before other tasks get their turn
_REST_S = 0.5  # pause in reading after a turn with that many

# Classic BPF; offsets count from behind the Ethernet header.
_FILTERS = {
    ETH_P_ARP: (
        (LD_H, 0, 0, 6),
        (JEQ, 0, 1, 2),  # a reply
        (RET, 0, 0, _ENOUGH),
        (RET, 0, 0, 0),
    ),
    ETH_P_IPV6: (
        (LD_B, 0, 0, 6),
        (JEQ, 0, 3, 58),  # ICMPv6
        (LD_B, 0, 0, 40),
        (JEQ, 0, 1, 136),  # a neighbour advertisement
        (RET, 0, 0, _ENOUGH),
        (RET, 0, 0, 0),
    ),
}


class Watch:
    """Asks the segment for the VIPs that an interface has, while ``run`` runs.

    ``vips()`` returns the VIPs of the running configuration, ``owner(mac)`` the backend or balancer
    that has the MAC.
    """

    def __init__(
        self,
        ifname: str,
        vips: Callable[[], Collection[Address]],
        owner: Callable[[str], Owner | None],
    ) -> None:
        self._ifname = ifname
        self._vips = vips
        self._owner = owner
        self._claims = Claims()
        self._held: frozenset[Address] = frozenset()
        self._own: set[str | None] = set()  # MACs of this host
        self._trouble = ""

    @property
    def standing(self) -> frozenset[Claim]:
        """The claims of other hosts to our VIPs, as of the last round."""
        return self._claims.standing

    def problems(self) -> tuple[str, ...]:
        """Return the claims in words."""
        return tuple(self._in_words(each) for each in sorted(self.standing, key=_order))

    async def run(self) -> None:
        """Ask until cancelled. A problem is only logged, once, as a balancer works without this."""
        while True:
            try:
                await self._watch()
            except (NetworkError, NetlinkError, OSError) as error:
                if str(error) != self._trouble:
                    log.warning("nobody is asked for our VIPs", problem=str(error))
                self._trouble = str(error)
                self._held = frozenset()
                self._settle()  # nothing is known about VIPs that cannot be asked for
            await asyncio.sleep(ROUND_S)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        async with Netlink() as netlink:
            with contextlib.ExitStack() as opened:
                sender = opened.enter_context(RawSender())
                for protocol in _FILTERS:
                    heard = opened.enter_context(_listening(self._ifname, protocol))
                    loop.add_reader(heard, self._read, heard)
                    opened.callback(loop.remove_reader, heard)
                ifindex, self._trouble = socket.if_nametoindex(self._ifname), ""
                while True:
                    began = loop.time()
                    await self._ask(netlink, sender, ifindex)
                    await asyncio.sleep(ANSWER_S)
                    # A VIP that has been removed here meanwhile may be another host's by right.
                    await self._look(netlink, ifindex)
                    self._settle()
                    if not self._claims.is_in_doubt:
                        await asyncio.sleep(max(0.0, began + ROUND_S - loop.time()))

    async def _look(self, netlink: Netlink, ifindex: int) -> None:
        """Note which VIPs the interface has now."""
        present = {each.address for each in await netlink.addresses(ifindex)}
        self._held = frozenset(self._vips()) & present

    async def _ask(self, netlink: Netlink, sender: RawSender, ifindex: int) -> None:
        link = await netlink.link(self._ifname)
        if link is None or link.ifindex != ifindex:
            raise OSError(f"{self._ifname} is another interface now")
        if not link.up or not link.mac:
            self._held = frozenset()
            return
        # Another interface of ours on the same segment answers too.
        self._own = {each.mac for each in await netlink.links()}
        await self._look(netlink, ifindex)
        mac = bytes.fromhex(link.mac.replace(":", ""))
        for vip in sorted(self._held, key=lambda each: (each.version, each)):
            sender.frame(link.ifindex, question(mac, vip))
            await asyncio.sleep(1 / MOST_A_SECOND)

    def _settle(self) -> None:
        come, gone = self._claims.next_round(self._held)
        for each in sorted(come, key=_order):
            log.error("another host answers for a VIP", problem=self._in_words(each))
        for each in sorted(gone, key=_order):
            log.info("nobody else answers for a VIP any more", vip=str(each.vip), mac=each.mac)

    def _read(self, heard: socket.socket) -> None:
        for _ in range(_ONE_TURN):
            try:
                data, (_, _, _, _, source) = heard.recvfrom(_ENOUGH)
            except OSError:  # there is no more, or the interface has gone
                return
            if (found := claim(data, source)) is None:
                continue
            vip, mac = found[0], found[1].hex(":")
            if vip in self._held and mac not in self._own:
                self._claims.hear(Claim(vip, mac))
        loop = asyncio.get_running_loop()
        loop.remove_reader(heard)  # a flood; answers that are lost are asked for in the next round
        loop.call_later(_REST_S, self._read_again, heard)

    def _read_again(self, heard: socket.socket) -> None:
        if heard.fileno() >= 0:
            asyncio.get_running_loop().add_reader(heard, self._read, heard)

    def _in_words(self, each: Claim) -> str:
        return in_words(each, self._owner(each.mac))


async def holders(ifname: str, vips: Collection[Address]) -> dict[Address, str]:
    """Return which of these addresses other hosts of the segment have already, with their MACs.

    It takes a third of a second. If the segment cannot be asked (the link is down, CAP_NET_RAW is
    missing), the result is empty.
    """
    found: dict[Address, str] = {}
    with contextlib.suppress(NetworkError, NetlinkError, OSError), contextlib.ExitStack() as opened:
        async with Netlink() as netlink:
            link = await netlink.link(ifname)
            own = {each.mac for each in await netlink.links()}
        if link is None or not link.up or not link.mac:
            return {}
        sender = opened.enter_context(RawSender())
        heard = [opened.enter_context(_listening(ifname, protocol)) for protocol in _FILTERS]
        mac = bytes.fromhex(link.mac.replace(":", ""))
        for _ in range(BEFORE_TIMES):
            for vip in vips:
                sender.frame(link.ifindex, question(mac, vip))
            await asyncio.sleep(BEFORE_S)
        for answer in (each for sock in heard for each in _heard(sock)):
            if answer.vip in vips and answer.mac not in own:
                found[answer.vip] = answer.mac
    return found


def _heard(heard: socket.socket) -> Iterator[Claim]:
    """Yield all answers that have arrived."""
    while True:
        try:
            data, (_, _, _, _, source) = heard.recvfrom(_ENOUGH)
        except OSError:
            return
        if (found := claim(data, source)) is not None:
            yield Claim(found[0], found[1].hex(":"))


def _order(each: Claim) -> tuple[int, int, str]:
    return each.vip.version, int(each.vip), each.mac


def _listening(ifname: str, protocol: int) -> socket.socket:
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)  # 0: receives nothing yet
    try:
        heard.setblocking(False)
        sockfilter.attach(heard, _FILTERS[protocol])
        heard.bind((ifname, protocol))
    except BaseException:
        heard.close()
        raise
    return heard
