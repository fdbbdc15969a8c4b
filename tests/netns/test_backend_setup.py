"""deploy/backend-setup.sh on a real kernel: whose tunnel packets a backend takes."""

from __future__ import annotations

import contextlib
import re
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
        capture_output=True, text=True, check=False, timeout=240,
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


def exchanged(net: Net, wanted: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What arrives of a packet of every kind of everybody, once all has that is wanted and the last
    ones have: on a busy host one may overtake another.
    """
    kinds = {4: ("ipip", "sit", "gue"), 6: ("ip6tnl", "gue")}
    last = {("other", STRANGER), ("other", STRANGER6)}
    with contextlib.ExitStack() as stack:
        with netns.inside(net.us):
            tunnels = Tunnels(stack)
        with netns.inside(net.peer):
            for sender in (str(PEER), STRANGER, str(PEER6), STRANGER6):
                for name in kinds[ip_address(sender).version]:
                    send(name, sender)
            for name, sender in sorted(last):
                send(name, sender)
        got: set[tuple[str, str]] = set()

        def all_came() -> bool:
            got.update(tunnels.got())
            return got >= wanted | last

        wait_until(f"{sorted(wanted)} and the last packets have come", all_came)
    return got - last


def of(*senders: object) -> set[tuple[str, str]]:
    kinds = {4: ("ipip", "sit", "gue"), 6: ("ip6tnl", "gue")}
    return {(name, str(s)) for s in senders for name in kinds[ip_address(str(s)).version]}


def test_only_the_balancers_tunnel_packets_come_in_until_it_is_undone(net: Net) -> None:
    everybody = of(PEER, STRANGER, PEER6, STRANGER6)
    setup(net, "up", "gue", VIP)
    assert exchanged(net, everybody) == everybody
    told = setup(net, "up", "gue", "--from", str(PEER), "--from", "fd09::20/124", VIP)
    assert "+ nft 'add table inet steelyard_tunnels" in told
    ours = of(PEER, PEER6)
    assert exchanged(net, ours) == ours
    setup(net, "up", "gue", "--from", STRANGER, VIP)
    theirs = of(STRANGER)
    assert exchanged(net, theirs) == theirs, "the last command holds"
    assert "left as they are: the rules of an earlier --from" in setup(net, "up", "gue", VIP)
    assert exchanged(net, theirs) == theirs
    setup(net, "up", "ipip", "--from", str(PEER), VIP)
    some = of(PEER) | {("gue", str(s)) for s in (STRANGER, PEER6, STRANGER6)}
    assert exchanged(net, some) == some, "the port of gue is somebody else's"
    assert "+ nft delete table inet steelyard_tunnels" in setup(net, "down", "gue", VIP)
    assert exchanged(net, everybody) == everybody


# In folders of its own, with a service manager that only says what it was asked.
PLAY = """
set -eu
mount -t tmpfs none /etc/systemd/system
mount -t tmpfs none /usr/local/sbin
mkdir -p /run/systemd && mount -t tmpfs none /run/systemd && mkdir /run/systemd/system
printf '#!/bin/sh\necho "asked: $*"\n' >/usr/local/sbin/systemctl
chmod +x /usr/local/sbin/systemctl
PATH=/usr/local/sbin:$PATH
set +e
"""


def played(net: Net, *commands: str) -> list[tuple[int, str]]:
    """The exit statuses and the words of commands of a shell in which nothing stays."""
    lines = [f"({each}) 2>&1; echo status=$?=" for each in commands]
    shell = ["ip", "netns", "exec", net.us, "unshare", "--mount", "sh", "-c"]
    done = subprocess.run(
        [*shell, "\n".join([PLAY, *lines])], capture_output=True, text=True, check=True, timeout=480
    )
    parts = re.split(r"status=(\d+)=\n", done.stdout)
    return [(int(status), text) for text, status in zip(parts[::2], parts[1::2], strict=False)]


def test_what_is_missing_is_named_and_a_boot_brings_it_back(net: Net) -> None:
    vips = f"{VIP} fd73::10"
    unit = "/etc/systemd/system/steelyard-backend-dsr.service"
    boot = "ip address flush dev lo scope global; sysctl -qw net.ipv4.conf.all.arp_ignore=0"
    again = f"sh -c \"$(sed -n 's/^ExecStart=//p' {unit})\""
    before, up, after, valid, forgotten, brought, good, down, left = played(
        net,
        f"{SCRIPT} check dsr {vips}",
        f"{SCRIPT} up dsr --persist {vips}",
        f"{SCRIPT} check dsr {vips}",
        f"systemd-analyze verify --man=no {unit}",
        f"{boot}; {SCRIPT} check dsr {vips}",
        again,
        f"{SCRIPT} check dsr fd73:0::10 {VIP}",
        f"{SCRIPT} down dsr {vips}; ls /etc/systemd/system",
        f"{SCRIPT} check dsr {VIP}",
    )
    assert before[0] == 1
    assert f"MISSING  {VIP} is on lo" in before[1]
    assert "MISSING  eth0 is silent about addresses of other interfaces (arp_ignore)" in before[1]
    assert "brings nothing back at a boot" in before[1]
    assert up[0] == 0, up
    assert "asked: enable steelyard-backend-dsr.service" in up[1]
    assert after[0] == 0, after
    assert "MISSING" not in after[1]
    assert f"brings {VIP} back at a boot" in after[1]
    assert valid[0] == 0, valid
    assert forgotten[0] == 1
    assert "MISSING  fd73::10 is on lo" in forgotten[1]
    assert brought[0] == 0, brought
    assert "asked" not in brought[1], "at a boot nothing is installed"
    assert good[1].count("is on lo") == 2
    assert "MISSING  steelyard-backend-dsr.service brings fd73:0::10" in good[1], "as it was given"
    assert down[0] == 0, down
    assert "asked: disable steelyard-backend-dsr.service" in down[1]
    assert "steelyard" not in down[1].rpartition("\n+")[2].partition("\n")[2]
    assert left[0] == 1


def test_what_takes_off_the_outer_header_is_looked_for(net: Net) -> None:
    (found,) = played(net, f"{SCRIPT} check ipip {VIP}")
    assert found[0] == 1
    assert "MISSING  nothing takes tunnel packets" in found[1]
