"""What a next hop is, from link, route and neighbour, without a kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import NextHop
from agent.network.interfaces import Egress
from agent.network.messages import Link, Neighbour, Reach, Route, Vlan
from agent.network.resolve import (
    Memory,
    Outlook,
    ask_delay_s,
    can_doubt,
    neighbour_of,
    next_hop,
    remember,
)

SERVER = ip_address("10.0.0.21")
GATEWAY = ip_address("10.0.0.1")
MAC = "02:00:00:00:00:21"
LINK = Link(ifindex=2, name="eth0", mac="02:00:00:00:00:01", mtu=1500, up=True, carrier=True)
ROUTE = Route(ifindex=2, source=ip_address("10.0.0.2"))
KNOWN = Memory(MAC, Reach.CONFIRMED)
WAY = Egress((LINK,))
OUTLOOK = Outlook(("eth0",), (), ROUTE, "eth0", WAY, KNOWN)


def hop(**changes: object) -> NextHop:
    return next_hop(SERVER, replace(OUTLOOK, **changes))


def way(**changes: object) -> Egress:
    return Egress((replace(LINK, **changes),))


def test_a_known_neighbour_is_the_next_hop() -> None:
    assert hop() == NextHop(
        address=SERVER,
        ifindex=2,
        mac=MAC,
        source_mac="02:00:00:00:00:01",
        mtu=1500,
        on_link=True,
        source=ip_address("10.0.0.2"),
    )


def test_behind_a_gateway_it_is_the_gateway() -> None:
    route = replace(ROUTE, gateway=GATEWAY)
    assert neighbour_of(SERVER, route, WAY) == GATEWAY
    assert hop(route=route).on_link is False


def test_nobody_is_the_neighbour_without_a_way_out() -> None:
    assert neighbour_of(SERVER, ROUTE, None) is None
    assert neighbour_of(SERVER, Route(problem="no"), WAY) is None
    assert neighbour_of(SERVER, None, WAY) is None


def test_the_smaller_mtu_of_link_and_route_counts() -> None:
    assert hop(route=replace(ROUTE, mtu=1400)).mtu == 1400
    assert hop(route=replace(ROUTE, mtu=9000)).mtu == 1500


def test_by_a_vlan_device_it_leaves_by_the_card_with_the_tags_and_the_device_s_mac() -> None:
    outer = replace(
        LINK, ifindex=5, name="eth0.5", mac="02:00:00:00:05:01", vlan=Vlan(2, 0x88A8, 5)
    )
    inner = replace(
        LINK, ifindex=7, name="eth0.5.7", mac="02:00:00:00:07:01", mtu=1496, vlan=Vlan(5, 0x8100, 7)
    )
    found = hop(route=replace(ROUTE, ifindex=7), way=Egress((inner, outer, LINK)))
    assert (found.ifindex, found.vlans) == (2, ((0x88A8, 5), (0x8100, 7)))
    assert (found.source_mac, found.mtu, found.mac) == ("02:00:00:00:07:01", 1496, MAC)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"troubles": ("eth0 does not exist",), "way": None}, "eth0 does not exist"),
        (
            {"troubles": ("eth0 is down",), "way": None, "route": Route(problem="no route")},
            "eth0 is down",
        ),
        ({"way": way(mac=None)}, "eth0 is not an Ethernet interface"),
        ({"way": way(up=False)}, "eth0 is down"),
        ({"way": way(carrier=False)}, "eth0 has no carrier"),
        ({"way": None, "route": None}, "the route is being looked up"),
        ({"way": None, "route": Route(problem="no route to 10.0.0.21")}, "no route to 10.0.0.21"),
        (
            {"way": None, "route": Route(ifindex=3), "leaves_by": "eth1"},
            "route to 10.0.0.21 leaves by eth1, not eth0",
        ),
        (
            {
                "names": ("eth0", "eth2"),
                "way": None,
                "route": Route(ifindex=3),
                "leaves_by": "eth1",
            },
            "route to 10.0.0.21 leaves by eth1, not eth0 or eth2",
        ),
        (
            {
                "names": ("eth0", "eth2"),
                "troubles": ("eth2 is down",),
                "way": None,
                "route": Route(problem="no route to 10.0.0.21"),
            },
            "no route to 10.0.0.21; eth2 is down",
        ),
        ({"memory": Memory()}, "waiting for the ARP answer of 10.0.0.21 on eth0"),
        (
            {"memory": Memory(no_room=True)},
            "the kernel's neighbour table is full: raise sysctl net.ipv4.neigh.default.gc_thresh3",
        ),
        ({"memory": Memory(failed=True)}, "no ARP answer from 10.0.0.21 on eth0"),
        (
            {"memory": Memory(failed=True), "route": replace(ROUTE, gateway=GATEWAY)},
            "no ARP answer from gateway 10.0.0.1",
        ),
    ],
)
def test_an_unresolved_next_hop_says_why(changes: dict[str, object], reason: str) -> None:
    answer = hop(**changes)
    assert (answer.mac, answer.reason) == (None, reason)


NO_ROUTE = Route(problem="no route")


def test_an_interface_that_goes_down_keeps_the_next_hop_with_a_reason() -> None:
    before = hop()
    down = hop(way=None, before=way(up=False), route=NO_ROUTE, previous=before)
    assert (down.mac, down.reason) == (MAC, "eth0 is down")
    assert hop(previous=down, before=WAY) == before


def test_when_one_interface_goes_down_a_way_by_another_is_taken() -> None:
    second = Egress((replace(LINK, ifindex=3, name="eth1"),))
    moved = hop(way=second, before=way(up=False), previous=hop(), route=replace(ROUTE, ifindex=3))
    assert (moved.ifindex, moved.reason) == (3, "")


def test_a_route_that_was_taken_away_takes_the_next_hop() -> None:
    assert hop(way=None, before=WAY, route=NO_ROUTE, previous=hop()).mac is None


def test_a_new_interface_inherits_nothing() -> None:
    """Its number is another, so there is no way by the old one."""
    assert hop(way=way(ifindex=9, up=False), previous=hop(), before=None).mac is None


def seen(reach: Reach, mac: str | None = None) -> Neighbour:
    return Neighbour(2, SERVER, mac, reach)


def test_a_failed_neighbour_keeps_its_last_mac_with_a_reason() -> None:
    failed = remember(KNOWN, seen(Reach.FAILED))
    answer = hop(memory=failed)
    assert answer.mac == MAC
    assert answer.reason == "no ARP answer from 10.0.0.21 on eth0; its last MAC is kept"


def test_a_failure_is_remembered_while_the_kernel_asks_again() -> None:
    memory = remember(Memory(), seen(Reach.FAILED))
    assert remember(memory, seen(Reach.WAITING)).failed
    assert remember(memory, seen(Reach.NONE)).failed
    assert not remember(memory, seen(Reach.CONFIRMED, MAC)).failed


def test_a_full_table_is_forgotten_once_the_neighbour_has_an_entry() -> None:
    full = Memory(no_room=True)
    assert remember(full, seen(Reach.NONE)).no_room
    assert not remember(full, seen(Reach.WAITING)).no_room


def test_an_entry_that_the_kernel_drops_keeps_its_mac_quietly() -> None:
    dropped = remember(KNOWN, seen(Reach.NONE))
    assert hop(memory=dropped).mac == MAC
    assert hop(memory=dropped).reason == ""


@pytest.mark.parametrize("reach", [Reach.STALE, Reach.CHECKING, Reach.CONFIRMED])
def test_the_ordinary_life_of_an_entry_changes_no_next_hop(reach: Reach) -> None:
    assert hop(memory=remember(KNOWN, seen(reach, MAC))) == hop()


def test_unknown_neighbours_are_asked_for_at_once_then_ever_more_slowly() -> None:
    delays = [ask_delay_s(Memory(), attempts, 0.5) for attempts in range(8)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert ask_delay_s(Memory(), 10_000, 0.5) == 10.0


def test_stale_neighbours_are_confirmed_at_a_slow_pace() -> None:
    delay = ask_delay_s(Memory(MAC, Reach.STALE), 0, 0.0)
    assert delay == 5.0


@pytest.mark.parametrize(
    "memory",
    [
        Memory(MAC, Reach.CONFIRMED),
        Memory(MAC, Reach.CHECKING),
        Memory(MAC, Reach.STALE, foreign=True),
        Memory(None, Reach.FAILED, foreign=True),
    ],
)
def test_neighbours_that_need_no_help_are_left_alone(memory: Memory) -> None:
    assert ask_delay_s(memory, 0, 0.5) is None


def test_only_what_the_kernel_would_go_on_to_believe_is_doubted() -> None:
    assert can_doubt(Memory(MAC, Reach.CONFIRMED))
    assert can_doubt(Memory(MAC, Reach.STALE))
    assert not can_doubt(Memory(MAC, Reach.CONFIRMED, foreign=True))  # it would not stay static
    assert not any(
        can_doubt(Memory(MAC, reach))
        for reach in (Reach.NONE, Reach.WAITING, Reach.CHECKING, Reach.FAILED)
    )
