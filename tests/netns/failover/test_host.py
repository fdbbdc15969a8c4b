"""VIPs and their announcements on a real kernel, in namespaces of our own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import ip_address

import pytest
from structlog.testing import capture_logs

from agent.errors import NetworkError
from agent.failover.host import addresses as module
from agent.failover.host import announcer
from agent.failover.host.addresses import (
    PROTO,
    Addresses,
    Outcome,
    Stale,
    left_behind,
    remove_stale,
)
from agent.failover.host.announcer import Announcer
from agent.failover.host.frames import announcement
from agent.failover.host.responder import Responder
from agent.failover.host.vmac import VirtualMac
from agent.failover.model import Announcements
from agent.model import Address
from tests.netns.cable import OURS_MAC, Net, run_in, wired
from tests.netns.failover.waiting import readable
from tests.netns.site import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

VIP, VIP6 = ip_address("10.9.0.100"), ip_address("fd09::100")
BOTH = (VIP, VIP6)
MAC = bytes.fromhex(OURS_MAC.replace(":", ""))


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with wired("host") as made:
        yield made


@contextlib.contextmanager
def addresses(interface: str = "eth0") -> Iterator[Addresses]:
    """On the interface, and nothing of ours is left behind."""
    made = Addresses(interface)
    try:
        yield made
    finally:
        made.close()
        remove_stale()


def shown(net: Net, address: Address) -> str:
    """What `ip` says of an address, in all places where it is."""
    return " ".join(net.ours(f"addr show to {address}").split())


def reaches(net: Net, address: Address, patience_s: float = 60.0) -> bool:
    command = ["ip", "netns", "exec", net.peer, "ping", "-c1", f"-W{patience_s}", str(address)]
    return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0


def test_what_is_taken_is_there_at_once_and_dropped_it_is_gone(net: Net) -> None:
    async def story() -> None:
        with addresses() as ours:
            assert ours.take(BOTH) == Outcome(changed=BOTH)
            # Bound to at once: not tentative, or this would be refused.
            for vip, family in zip(BOTH, (socket.AF_INET, socket.AF_INET6), strict=True):
                with socket.socket(family, socket.SOCK_DGRAM) as bound:
                    bound.bind((str(vip), 0))
            assert "/32 scope global proto 0x56 eth0" in shown(net, VIP)
            assert "nodad deprecated proto 0x56" in shown(net, VIP6)
            assert reaches(net, VIP)
            assert reaches(net, VIP6)
            assert ours.take(BOTH) == Outcome()
            assert ours.drop(BOTH) == Outcome(changed=BOTH)
            assert shown(net, VIP) + shown(net, VIP6) == ""
            assert net.ours(f"-6 route show table all {VIP6}") == ""
            assert ours.drop(BOTH) == Outcome()

    run_in(net.us, story)


def test_hundreds_of_vips_are_taken_in_one_call(net: Net) -> None:
    many = tuple(ip_address(f"10.20.{n // 250}.{n % 250}") for n in range(700))

    async def story() -> None:
        with addresses() as ours:
            assert ours.take(many).changed == many
            assert net.ours("addr show dev eth0").count("proto 0x56") == len(many)
            assert ours.drop(many).changed == many

    run_in(net.us, story)


def test_what_somebody_else_put_there_is_named_and_left_alone(net: Net) -> None:
    theirs = (f"{VIP}/24", f"{VIP6}/64 nodad", "10.9.0.101/32 proto 0x53")
    vips = (*BOTH, ip_address("10.9.0.101"))
    for entry in theirs:
        net.ours(f"addr add {entry} dev eth0")

    async def story() -> None:
        with addresses() as ours:
            assert ours.take(vips).theirs == (vips[0], vips[2], vips[1])
            assert ours.drop(vips) == Outcome(theirs=(vips[0], vips[2], vips[1]))
            assert remove_stale() == ()
            assert all(shown(net, vip) for vip in vips)

    try:
        run_in(net.us, story)
    finally:
        for entry in theirs:
            net.ours(f"addr del {entry.split()[0]} dev eth0")


def test_what_somebody_removes_is_told_and_can_be_taken_again(net: Net) -> None:
    async def story() -> None:
        with addresses() as ours, addresses() as others:
            ours.take(BOTH)
            others.take([ip_address("10.9.0.102")])
            assert ours.lost() == ()
            for vip in BOTH:
                # The kernel tells of an IPv6 address some time after it is there.
                wait_until("all is read", lambda: not ours.lost() and not readable([ours], 0))
                net.ours(f"addr del {vip}/{vip.max_prefixlen} dev eth0")
                assert readable([ours], 60) == [ours]
                assert ours.lost() == (vip,)
                assert ours.take([vip]) == Outcome(changed=(vip,))
                assert ours.lost() == ()
            ours.drop(BOTH)
            assert ours.lost() == ()  # our own doing
            assert others.lost() == ()

    run_in(net.us, story)


def test_an_interface_that_went_down_and_up_lost_its_ipv6_vips(net: Net) -> None:
    async def story() -> None:
        with addresses() as ours:
            ours.take(BOTH)
            net.ours("link set eth0 down")
            net.ours("link set eth0 up")
            assert ours.lost() == (VIP6,)
            assert ours.take([VIP6]).changed == (VIP6,)

    run_in(net.us, story)
    net.ours("addr add fd09::2/64 dev eth0 nodad")


def test_events_that_were_lost_hide_nothing(net: Net) -> None:
    async def story() -> None:
        with addresses() as ours, addresses("lo") as noisy:
            ours.take([VIP])
            many = tuple(ip_address(f"10.20.{n // 250}.{n % 250}") for n in range(700))
            for _ in range(2):  # more than the socket holds
                noisy.take(many)
                noisy.drop(many)
            net.ours(f"addr del {VIP}/32 dev eth0")
            assert ours.lost() == (VIP,)

    run_in(net.us, story)


def test_an_interface_that_is_not_there_is_a_reason_and_no_error(net: Net) -> None:
    async def story() -> None:
        with addresses("eth7") as ours:
            assert ours.take([VIP]).failed == ((VIP, "eth7 does not exist"),)
            assert ours.lost() == ()
            assert ours.drop([VIP]) == Outcome()

    run_in(net.us, story)


def test_ipv6_that_is_switched_off_is_named_with_the_remedy(net: Net) -> None:
    async def story() -> None:
        with addresses("lo") as ours:
            outcome = ours.take(BOTH)
            assert outcome.changed == (VIP,)
            [(vip, why)] = outcome.failed
            assert (vip, "net.ipv6.conf.lo.disable_ipv6=0" in why) == (VIP6, True)

    net.sysctl(net.us, net__ipv6__conf__lo__disable_ipv6=1)
    try:
        run_in(net.us, story)
    finally:
        net.sysctl(net.us, net__ipv6__conf__lo__disable_ipv6=0)


def test_a_kernel_that_keeps_no_marks_is_enough_to_let_go(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 5.18 does not tell who put an address on."""

    async def story() -> None:
        with addresses() as made:
            assert made.take(BOTH).changed == BOTH
            assert made.take(BOTH) == Outcome()
            assert made.drop(BOTH).changed == BOTH
            net.ours(f"addr add {VIP}/32 dev eth0")
            assert made.drop(BOTH) == Outcome(theirs=(VIP,))
            net.ours(f"addr del {VIP}/32 dev eth0")

    monkeypatch.setattr(module, "_is_ours", lambda entry: False)
    run_in(net.us, story)


def test_stale_vips_are_removed_from_all_interfaces_but_those_to_be_kept(net: Net) -> None:
    async def story() -> None:
        for interface, vips in (("eth0", BOTH), ("lo", BOTH)):
            killed = Addresses(interface)
            killed.take(vips)
            killed.close()
        stale = remove_stale(keep={("lo", VIP), ("eth0", ip_address("10.1.1.1"))})
        assert set(stale) == {Stale("eth0", VIP), Stale("eth0", VIP6), Stale("lo", VIP6)}
        assert f"inet {VIP}/32" in shown(net, VIP)
        assert left_behind({("lo", VIP), ("eth0", VIP), ("lo", VIP6)}) == {("lo", VIP)}
        assert remove_stale() == (Stale("lo", VIP),)
        assert "proto 0x56" not in net.ours("addr show")

    run_in(net.us, story)
    assert PROTO == 0x56


@contextlib.contextmanager
def listening(net: Net) -> Iterator[socket.socket]:
    """Hears all frames that arrive at the peer."""
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

    async def move() -> None:
        nonlocal heard
        heard.close()
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        heard.bind(("eth0", 0))
        heard.settimeout(90)

    run_in(net.peer, move)
    with heard:
        yield heard


def heard_frames(heard: socket.socket, wanted: Sequence[bytes]) -> list[bytes]:
    """The next frames that are announcements of ours, as many as are wanted."""
    found: list[bytes] = []
    while len(found) < len(wanted):
        if (frame := heard.recv(2048)) in wanted:
            found.append(frame)
    return found


def frames(*vips: Address, router: bool = False, mac: bytes = MAC) -> list[bytes]:
    return [announcement(mac, vip, router=router) for vip in vips]


def test_a_burst_tells_all_vips_before_it_repeats_any(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "ANNOUNCE_GAP_S", 0.0)

    async def story() -> None:
        made = Announcer("eth0", BOTH, Announcements(3, 0.0, 0.0))
        made.burst()
        assert made.sent == 2  # the others wait for the loop
        await asyncio.sleep(0.01)
        assert (made.sent, made.problem) == (6, "")
        made.close()

    with listening(net) as heard:
        run_in(net.us, story)
        assert heard_frames(heard, frames(*BOTH) * 3) == frames(*BOTH) * 3


def test_more_announcements_follow_after_the_delay_and_then_for_ever(
    net: Net,
) -> None:
    async def story() -> None:
        made = Announcer("eth0", [VIP], Announcements(1, 0.02, 0.05))
        made.start()
        made.start()  # again, and no second schedule
        await asyncio.sleep(0)
        assert made.sent == 2
        async with asyncio.timeout(120):
            while made.sent < 6:  # noqa: ASYNC110 - the schedule is what is watched
                await asyncio.sleep(0.01)
        made.close()

    run_in(net.us, story)


def test_nothing_is_announced_once_it_stops(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "ANNOUNCE_GAP_S", 0.01)

    async def story() -> None:
        made = Announcer("eth0", [VIP], Announcements(3, 0.02, 0.02))
        made.start()
        made.stop()
        await asyncio.sleep(0.1)
        assert made.sent == 1
        made.close()

    run_in(net.us, story)


def test_a_router_says_that_it_is_one_and_a_changed_mac_is_what_is_announced(net: Net) -> None:
    async def story() -> None:
        made = Announcer("eth0", [VIP6], Announcements(1, 0.0, 0.0))
        made.burst()
        net.sysctl(net.us, net__ipv6__conf__eth0__forwarding=1)
        made.burst()
        net.sysctl(net.us, net__ipv6__conf__eth0__forwarding=0)
        net.ours("link set eth0 address 02:00:00:00:00:77")
        made.burst()
        made.close()

    wanted = frames(VIP6) + frames(VIP6, router=True)
    wanted += frames(VIP6, mac=bytes.fromhex("020000000077"))
    try:
        with listening(net) as heard:
            run_in(net.us, story)
            assert heard_frames(heard, wanted) == wanted
    finally:
        net.ours(f"link set eth0 address {OURS_MAC}")


def test_announcements_that_cannot_leave_say_why_until_they_do(net: Net) -> None:
    async def story() -> None:
        gone = Announcer("eth7", BOTH, Announcements(1, 0.0, 0.0))
        gone.burst()
        assert (gone.sent, "on eth7 (No such device)" in gone.problem) == (0, True)
        gone.close()
        loopback = Announcer("lo", BOTH, Announcements(1, 0.0, 0.0))
        loopback.burst()
        assert "no Ethernet interface" in loopback.problem
        loopback.close()
        net.ours("link set eth0 down")
        down = Announcer("eth0", BOTH, Announcements(1, 0.0, 0.0))
        with capture_logs() as said:
            down.burst()
            down.burst()
            assert (down.sent, "on eth0 (Network is down)" in down.problem) == (0, True)
            assert [line["problem"] for line in said] == [down.problem], "once"
            net.ours("link set eth0 up")
            down.burst()
        assert (down.sent, down.problem) == (2, "")
        assert [line["event"] for line in said[1:]] == ["announcements are sent again"]
        down.close()

    try:
        run_in(net.us, story)
    finally:
        net.ours("link set eth0 up")
        net.ours("addr add fd09::2/64 dev eth0 nodad")


def test_a_virtual_mac_answers_for_its_vips_and_the_interface_does_not(net: Net) -> None:
    async def story() -> None:
        mac = VirtualMac("eth0", 51, 4)
        mac.make()
        mac.make()  # one that was left behind
        try:
            with addresses(mac.interface) as ours:
                net.peers("neigh flush dev eth0")
                assert ours.take([VIP]).changed == (VIP,)
                assert reaches(net, VIP)
                assert "00:00:5e:00:01:33" in net.peers(f"neigh show {VIP}")
        finally:
            mac.remove()
        assert mac.interface not in net.ours("link")
        with pytest.raises(NetworkError, match="eth7 does not exist"):
            VirtualMac("eth7", 51, 4).make()

    run_in(net.us, story)
    assert VirtualMac("eth7", 51, 6).mac.hex(":") == "00:00:5e:00:02:33"


def test_vips_that_are_not_accepted_are_answered_for_all_the_same(net: Net) -> None:
    async def story() -> None:
        made = Responder("eth0", BOTH)
        made.start()
        made.start()
        # Beside ours, the question for an address that nobody has, and a ping that is not taken.
        for vip in (*BOTH, ip_address("10.9.0.77"), ip_address("fd09::77")):
            await asyncio.to_thread(reaches, net, vip, 0.2)
        for vip in BOTH:
            known = partial(lambda at: OURS_MAC in net.peers(f"neigh show {at}"), vip)
            await asyncio.to_thread(wait_until, f"{vip} is known", known)
        for nobody in ("10.9.0.77", "fd09::77"):
            assert "lladdr" not in net.peers(f"neigh show {nobody}")
        made.stop()
        net.peers("neigh flush dev eth0")
        assert not await asyncio.to_thread(reaches, net, VIP, 0.2)
        assert "lladdr" not in net.peers(f"neigh show {VIP}")

    net.peers("neigh flush dev eth0")
    run_in(net.us, story)


def test_a_responder_without_an_interface_says_so(net: Net) -> None:
    async def story() -> None:
        made = Responder("eth7", BOTH)
        with pytest.raises(OSError, match="No such device"):
            made.start()
        made.stop()

    run_in(net.us, story)
