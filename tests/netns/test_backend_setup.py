"""deploy/backend-setup.sh on a real kernel: whose tunnel packets a backend takes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbctl.lab import netns
from tests.netns.cable import PEER, PEER6, Net, wired
from tests.netns.site import wait_until
from tests.packet.wires import Packet

pytestmark = pytest.mark.kernel

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/backend-setup.sh"
VIP = "10.73.0.10"
OWN, OWN6 = "10.9.0.2", "fd09::2"
STRANGER, STRANGER6 = "10.9.0.66", "fd09::66"
GUE_PORT, OTHER_PORT = 6080, 6081
IPIP, IP6IP = 4, 41
INNER = Packet(dst=VIP).ip


@pytest.fixture
def net() -> Iterator[Net]:
    with wired("setup") as made:
        made.peers(f"addr add {STRANGER}/24 dev eth0")
        made.peers(f"addr add {STRANGER6}/64 dev eth0 nodad")
        yield made


def setup(net: Net, *words: str) -> str:
    """What it prints. The kernel may know no tunnel device; the rules are there by then."""
    done = subprocess.run(
        ["ip", "netns", "exec", net.us, str(SCRIPT), *words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 or "tunnel device" in done.stderr or "fou" in done.stderr, done
    return done.stdout


class Tunnels:
    """Raw sockets, which see what a tunnel device would get, and the sockets of two UDP ports."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.sockets: dict[str, socket.socket] = {}
        for name, family, number in (("ipip", socket.AF_INET, IPIP), ("sit", socket.AF_INET, IP6IP),
                                     ("ip6tnl", socket.AF_INET6, IPIP)):  # fmt: skip
            self.sockets[name] = stack.enter_context(socket.socket(family, socket.SOCK_RAW, number))
        for name, port in (("gue", GUE_PORT), ("other", OTHER_PORT)):
            udp = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            udp.bind(("::", port))
            self.sockets[name] = udp
        for each in self.sockets.values():
            each.setblocking(False)

    def got(self) -> set[tuple[str, str]]:
        """(what, from whom) of all that has come by now."""
        found = set()
        for name, each in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender = ip_address(each.recvfrom(2048)[1][0])
                    found.add((name, str(getattr(sender, "ipv4_mapped", None) or sender)))
        return found


def send(name: str, sender: str) -> None:
    """One packet of the peer's."""
    family = socket.AF_INET6 if ":" in sender else socket.AF_INET
    to = OWN6 if ":" in sender else OWN
    port = {"gue": GUE_PORT, "other": OTHER_PORT}.get(name)
    number = {"ipip": IPIP, "ip6tnl": IPIP, "sit": IP6IP}.get(name, 0)
    kind = socket.SOCK_RAW if port is None else socket.SOCK_DGRAM
    with socket.socket(family, kind, number) as out:
        out.bind((sender, 0))
        out.sendto(INNER, (to, port or 0))


def exchanged(net: Net) -> set[tuple[str, str]]:
    """What arrives of a packet of every kind of everybody; the last one always does."""
    kinds = {4: ("ipip", "sit", "gue"), 6: ("ip6tnl", "gue")}
    with contextlib.ExitStack() as stack:
        with netns.inside(net.us):
            tunnels = Tunnels(stack)
        with netns.inside(net.peer):
            for sender in (str(PEER), STRANGER, str(PEER6), STRANGER6):
                for name in kinds[ip_address(sender).version]:
                    send(name, sender)
            send("other", STRANGER)
        got: set[tuple[str, str]] = set()

        def all_came() -> bool:
            got.update(tunnels.got())
            return ("other", STRANGER) in got

        wait_until("the last packet", all_came)
    return got - {("other", STRANGER)}


def of(*senders: object) -> set[tuple[str, str]]:
    kinds = {4: ("ipip", "sit", "gue"), 6: ("ip6tnl", "gue")}
    return {(name, str(s)) for s in senders for name in kinds[ip_address(str(s)).version]}


def test_only_the_balancers_tunnel_packets_come_in_until_it_is_undone(net: Net) -> None:
    everybody = of(PEER, STRANGER, PEER6, STRANGER6)
    setup(net, "up", "gue", VIP)
    assert exchanged(net) == everybody
    told = setup(net, "up", "gue", "--from", str(PEER), "--from", "fd09::20/124", VIP)
    assert "+ nft 'add table inet steelyard_tunnels" in told
    assert exchanged(net) == of(PEER, PEER6)
    setup(net, "up", "gue", "--from", STRANGER, VIP)
    assert exchanged(net) == of(STRANGER), "the last command holds"
    assert "left as they are: the rules of an earlier --from" in setup(net, "up", "gue", VIP)
    assert exchanged(net) == of(STRANGER)
    setup(net, "up", "ipip", "--from", str(PEER), VIP)
    others = {("gue", str(s)) for s in (STRANGER, PEER6, STRANGER6)}
    assert exchanged(net) == of(PEER) | others, "the port of gue is somebody else's"
    assert "+ nft delete table inet steelyard_tunnels" in setup(net, "down", "gue", VIP)
    assert exchanged(net) == everybody
