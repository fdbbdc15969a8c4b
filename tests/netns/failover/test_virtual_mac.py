"""Virtual MACs with the whole process: neighbours learn nothing new when the master changes."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.netns.cable import run_in
from tests.netns.failover import keepalived
from tests.netns.failover.node import Ours, ours
from tests.netns.failover.switched import VIP, VIP6, Switched, switched
from tests.netns.site import wait_until

pytestmark = pytest.mark.kernel

MACS = {VIP: "00:00:5e:00:01:33", VIP6: "00:00:5e:00:02:33"}
MACVLANS = {VIP: "vrrp4.51", VIP6: "vrrp6.51"}
VIRTUAL = {"vips": [str(VIP), str(VIP6)], "virtual_mac": True}
ETH_P_ALL = 3
ADVERT, ADVERT6 = bytes.fromhex("01005e000012"), bytes.fromhex("333300000012")
ARP = bytes.fromhex("0806")


@pytest.fixture(scope="module")
def net() -> Iterator[Switched]:
    with switched("st-vmac") as made:
        yield made


@contextlib.contextmanager
def listening(net: Switched) -> Iterator[socket.socket]:
    """Hears all frames that arrive at the client."""
    opened: list[socket.socket] = []

    async def there() -> None:
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        heard.bind(("eth0", ETH_P_ALL))
        heard.setblocking(False)
        opened.append(heard)

    run_in(net.name("client"), there)
    with opened[0] as heard:
        yield heard


def frames(heard: socket.socket) -> list[bytes]:
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(heard.recv(2048))
    return found


def neighbours(net: Switched) -> dict[str, str]:
    """What the client knows of the VIPs: MAC by address."""
    lines = net.run("client", "ip", "neighbour").splitlines()
    rows = [line.split() for line in lines if "lladdr" in line]
    wanted = set(map(str, MACS))
    return {row[0]: row[row.index("lladdr") + 1] for row in rows if row[0] in wanted}


def await_master(node: Ours) -> None:
    node.await_role("master")
    for vip in MACS:
        node.await_vip(True, vip)


def await_answers(net: Switched) -> None:
    for vip in MACS:
        net.await_answer(vip)


def test_a_failover_changes_no_neighbours_entry(net: Switched) -> None:
    known = {str(vip): mac for vip, mac in MACS.items()}
    with ours(net, "a", "b") as (first, second), listening(net) as heard:
        # A process of a busy host may stand still, and here nobody may be master by mistake.
        first.configure(VIRTUAL | {"priority": 150, "advert_interval": "1s"})
        second.configure(VIRTUAL | {"priority": 100, "advert_interval": "1s"})
        first.start()
        await_master(first)
        second.start()
        second.await_role("backup")
        await_answers(net)
        assert neighbours(net) == known

        first.end(signal.SIGKILL)
        await_master(second)
        await_answers(net)
        assert neighbours(net) == known
        first.start()
        await_master(first)
        second.await_role("backup")
        await_answers(net)
        assert neighbours(net) == known
        # Both families move together, and neither was master beside the other.
        assert first.roles().count("master") == 4
        assert second.roles().count("master") == 2

        first.end(signal.SIGTERM)
        await_master(second)
        for vip, macvlan in MACVLANS.items():
            assert not net.has("a", vip)
            assert macvlan not in net.run("a", "ip", "link")
        told = frames(heard)
        second.end()
    senders = {frame[6:12].hex(":") for frame in told if frame[:6] in (ADVERT, ADVERT6)}
    assert senders == set(MACS.values())
    gratuitous = [f for f in told if f[12:14] == ARP and f[28:32] == f[38:42] == VIP.packed]
    assert gratuitous
    assert {frame[6:12] for frame in gratuitous} == {frame[22:28] for frame in gratuitous}
    assert {frame[6:12].hex(":") for frame in gratuitous} == {MACS[VIP]}


def is_kept_down(node: Ours) -> bool:
    """Whether it was a backup all the while that it heard ten adverts; a host that stands still for
    60 ms makes it master for a moment.
    """
    before, heard = node.roles(), node.router()["adverts_received"]
    wait_until("adverts are heard", lambda: node.router()["adverts_received"] > heard + 10)
    return (node.role(), node.roles()) == ("backup", before)


def test_a_keepalived_with_a_virtual_mac_and_ours_take_over_from_each_other(net: Switched) -> None:
    theirs = keepalived.instance([VIP], priority=120, interval_s=0.02, more=["use_vmac"])
    with (
        ours(net, "a") as (alone,),
        keepalived.keepalived(net.name("b"), theirs) as peer,
    ):
        peer.wait_state("MASTER")
        alone.configure({"priority": 100, "virtual_mac": True})
        alone.start()
        alone.await_role("backup")
        wait_until("theirs keep ours a backup", lambda: is_kept_down(alone))
        alone.reload({"priority": 150, "virtual_mac": True})
        alone.await_role("master")
        peer.wait_state("BACKUP")
        net.await_answer(VIP)
        assert neighbours(net)[str(VIP)] == MACS[VIP]
        alone.end()
        peer.wait_state("MASTER")
        net.await_answer(VIP)
        assert neighbours(net)[str(VIP)] == MACS[VIP]
