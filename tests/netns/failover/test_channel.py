"""The sockets of a virtual router: what goes out, what comes in, and what does not."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.errors import NetworkError
from agent.failover.model import Authentication, Instance
from agent.failover.plan import VirtualRouter
from agent.failover.vrrp import packet
from agent.failover.vrrp.advert import Advert, Reason, Refusal
from agent.failover.vrrp.channel import Channel
from agent.failover.vrrp.replay import Guard
from lbctl.lab import netns
from tests.netns.failover.switched import (
    VIP,
    VIP6,
    VIP6_LOCAL,
    Address,
    Switched,
    address,
    link_local,
    mac,
    switched,
)
from tests.netns.failover.waiting import readable
from tests.netns.site import wait_until

pytestmark = pytest.mark.kernel

KEY = b"k" * 32
WEB = Instance("web", vrid=51)
ETH_P_ALL = 3


@pytest.fixture(scope="module")
def wire() -> Iterator[Switched]:
    with switched("st-channel") as made:
        yield made


def router(instance: Instance = WEB, family: int = 4) -> VirtualRouter:
    vips: tuple[Address, ...] = (VIP,) if family == 4 else (VIP6_LOCAL, VIP6)
    return VirtualRouter("web", instance, "eth0", family, vips, "web")


@contextlib.contextmanager
def channel(
    wire: Switched,
    node: str,
    instance: Instance = WEB,
    family: int = 4,
    guard: Guard | None = None,
) -> Iterator[Channel]:
    multicast_v6 = family == 6 and not instance.peers
    source = link_local(node) if multicast_v6 else address(node, family)
    with netns.inside(wire.name(node)):
        opened = Channel(router(instance, family), source, KEY, guard)
    with contextlib.closing(opened):
        yield opened


def is_heard(sender: Channel, of: Channel) -> bool:
    """Whether an advert has come, of one that is sent now or of one before."""
    sender.send(100)
    return bool(of.receive())


def hear(of: Channel, count: int = 1) -> list[Advert | Refusal]:
    """At least so many."""
    found: list[Advert | Refusal] = []
    end = time.monotonic() + 90
    while len(found) < count:
        left = end - time.monotonic()
        assert left > 0, f"only {len(found)} of {count} were heard"
        readable(of.sockets, left)
        found += of.receive()
    return found


def advert(heard: Advert | Refusal) -> Advert:
    assert isinstance(heard, Advert), heard
    return heard


def refusal(heard: Advert | Refusal) -> Refusal:
    assert isinstance(heard, Refusal), heard
    return heard


@contextlib.contextmanager
def tapped(wire: Switched, node: str) -> Iterator[socket.socket]:
    """Sees the frames that arrive at a node."""
    with netns.inside(wire.name(node)):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with tap:
        tap.settimeout(90)
        tap.bind(("eth0", ETH_P_ALL))
        yield tap


def frame(tap: socket.socket, ethertype: int, protocol: int = 112) -> bytes:
    """The next advert."""
    while True:
        data = tap.recv(4096)
        at = 14 + 9 if ethertype == 0x0800 else 14 + 6
        if int.from_bytes(data[12:14]) == ethertype and data[at] == protocol:
            return data


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", [Authentication.NONE, Authentication.HMAC])
@pytest.mark.parametrize("unicast", [False, True])
def test_ours_understand_each_other(
    wire: Switched, family: int, kind: Authentication, unicast: bool
) -> None:
    instance = replace(WEB, authentication=kind)
    # Of an instance with VIPs of both families: the peers of the other one are not its own.
    peers = {of: (address(of, 4), address(of, 6)) if unicast else () for of in ("a", "b")}
    with (
        channel(wire, "a", replace(instance, peers=peers["b"]), family) as one,
        channel(wire, "b", replace(instance, peers=peers["a"]), family) as other,
    ):
        for priority in (200, 100, 0):
            one.send(priority)
            assert advert(hear(other)[0]).priority == priority
        other.send(7)
        assert advert(hear(one)[0]).priority == 7
        assert one.receive() == other.receive() == [], "nobody hears its own adverts"


@pytest.mark.parametrize(("family", "ethertype"), [(4, 0x0800), (6, 0x86DD)])
@pytest.mark.parametrize("virtual", [False, True])
def test_what_is_on_the_wire(wire: Switched, family: int, ethertype: int, virtual: bool) -> None:
    with (
        tapped(wire, "b") as tap,
        channel(wire, "a", replace(WEB, virtual_mac=virtual), family) as one,
    ):
        one.send(100)
        one.send(100)
        first, second = frame(tap, ethertype), frame(tap, ethertype)
    group = "01:00:5e:00:00:12" if family == 4 else "33:33:00:00:00:12"
    virtual_mac = f"00:00:5e:00:0{1 if family == 4 else 2}:33"
    assert first[:6].hex(":") == group
    assert first[6:12].hex(":") == (virtual_mac if virtual else mac("a"))
    if family == 4:
        assert (first[14 + 1], first[14 + 8]) == (0xC0, 255), "class and TTL"
        ids = [int.from_bytes(each[18:20]) for each in (first, second)]
        assert ids == [1, 2]
    else:
        assert first[14:16].hex() == "6c00"
        assert first[14 + 7] == 255, "hop limit"


def test_unicast_goes_to_every_peer_also_if_one_cannot_be_sent_to(wire: Switched) -> None:
    broadcast = ip_address("10.73.0.255")  # which this socket may not send to
    peers = broadcast, address("b")
    with (
        channel(wire, "a", replace(WEB, peers=peers)) as one,
        channel(wire, "b", replace(WEB, peers=(address("a"),))) as other,
    ):
        with pytest.raises(PermissionError):
            one.send(100)
        assert advert(hear(other)[0]).source == address("a")


def test_each_addressing_notices_the_other(wire: Switched) -> None:
    with (
        channel(wire, "a") as one,
        channel(wire, "b", replace(WEB, peers=(address("a"),))) as other,
    ):
        one.send(100)
        assert refusal(hear(other)[0]).reason is Reason.ADDRESSING
        other.send(100)
        assert refusal(hear(one)[0]).reason is Reason.ADDRESSING


def test_a_replay_is_refused(wire: Switched) -> None:
    for kind in (Authentication.HMAC, Authentication.AH):
        version = 2 if kind is Authentication.AH else 3
        instance = replace(WEB, version=version, authentication=kind, password="secret")
        protocol = 51 if kind is Authentication.AH else 112
        guard = Guard()
        with (
            tapped(wire, "client") as tap,
            channel(wire, "a", instance) as one,
            channel(wire, "b", instance, guard=guard) as other,
        ):
            one.send(100)
            recorded = frame(tap, 0x0800, protocol)
            counter = advert(hear(other)[0]).counter
            tap.send(recorded)
            assert refusal(hear(other)[0]).reason is Reason.REPLAY
            with channel(wire, "b", instance, guard=guard) as anew:
                tap.send(recorded)
                assert refusal(hear(anew)[0]).reason is Reason.REPLAY
                one.send(100)
                assert advert(hear(anew)[0]).counter > counter


def test_a_node_whose_clock_was_set_back_goes_on_from_what_it_hears(
    wire: Switched, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = replace(WEB, authentication=Authentication.HMAC)
    with channel(wire, "b", instance) as other:
        with channel(wire, "a", instance) as one:
            one.send(100)
            advert(hear(other)[0])
        monkeypatch.setattr(time, "time_ns", lambda: 1)
        with channel(wire, "a", instance) as again:
            again.send(100)
            assert refusal(hear(other)[0]).reason is Reason.REPLAY
            other.send(50)
            advert(hear(again)[0])
            again.send(100)
            assert advert(hear(other)[0]).priority == 100


def test_after_a_clock_that_was_far_ahead_both_restart_and_still_hear_each_other(
    wire: Switched,
) -> None:
    """What each has saved of the other is of the future: neither may begin with the time."""
    instance = replace(WEB, authentication=Authentication.HMAC)
    ahead = time.time_ns() + 10**18
    saved = {of: Guard({address(of): ahead}) for of in ("a", "b")}
    with (
        channel(wire, "a", instance, guard=saved["b"]) as one,
        channel(wire, "b", instance, guard=saved["a"]) as other,
    ):
        one.send(100)
        assert advert(hear(other)[0]).counter > ahead
        other.send(50)
        assert advert(hear(one)[0]).priority == 50


def test_who_was_frozen_finds_every_advert_of_seconds(wire: Switched) -> None:
    with channel(wire, "a") as one, channel(wire, "b") as other:
        for _ in range(500):  # 5 s of one each 10 ms
            one.send(100)
        one.send(0)
        found = hear(other, 501)
        assert [advert(each).priority for each in found] == [100] * 500 + [0]


def test_other_interfaces_and_other_ipsec_are_not_heard(wire: Switched) -> None:
    ah = replace(WEB, version=2, authentication=Authentication.AH, password="secret")
    with netns.inside(wire.name("b")):
        netns.ip(["link add other0 type veth peer name other1", "link set other0 up"])
        elsewhere = Channel(replace(router(), interface="other0"), address("b"))
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with (
        contextlib.closing(elsewhere),
        raw,
        channel(wire, "a", ah) as one,
        channel(wire, "b", ah) as here,
    ):
        one.send(100)
        hear(here)
        assert elsewhere.receive() == []
        own = packet.Own(router(ah), address("b"))
        sealed = packet.ip_packet(own, 100, address("a"), counter=1, identifier=1)
        raw.sendto(sealed[:20] + b"\x06" + sealed[21:], (str(address("a")), 0))
        here.send(100)
        assert advert(hear(one)[0]).priority == 100, "the kernel gives us nothing else"
        assert one.receive() == []


def test_a_link_that_goes_down_is_told_and_does_not_last(wire: Switched) -> None:
    with channel(wire, "a") as one, channel(wire, "b") as other:
        netns.ip(["link set eth0 down"], wire.name("a"))
        with pytest.raises(OSError, match=r"down|unreachable"):
            one.send(100)
        assert one.receive() == []
        netns.ip(["link set eth0 up"], wire.name("a"))
        # The switch forwards again a moment later; what comes before is lost, as on a real one.
        wait_until("one is heard", lambda: is_heard(one, other))
        wait_until("the other is heard", lambda: is_heard(other, one))


def test_what_cannot_be_opened_is_told(wire: Switched) -> None:
    with netns.inside(wire.name("a")):
        with pytest.raises(OSError, match="No such device"):
            Channel(replace(router(), interface="none0"), address("a"))
        hmac = replace(WEB, authentication=Authentication.HMAC)
        with pytest.raises(NetworkError, match="key"):
            Channel(router(hmac), address("a"))
