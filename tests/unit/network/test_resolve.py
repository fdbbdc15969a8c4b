"""What a next hop is, from link, route and neighbour, without a kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import NextHop
from agent.network.messages import Link, Neighbour, Reach, Route
from agent.network.resolve import Memory, ask_delay_s, neighbour_of, next_hop, remember

SERVER = ip_address("10.0.0.21")
GATEWAY = ip_address("10.0.0.1")
MAC = "02:00:00:00:00:21"
LINK = Link(ifindex=2, name="eth0", mac="02:00:00:00:00:01", mtu=1500, up=True, carrier=True)
ROUTE = Route(ifindex=2, source=ip_address("10.0.0.2"))
KNOWN = Memory(MAC, Reach.CONFIRMED)


def hop(
    link: Link | None = LINK,
    route: Route | None = ROUTE,
    memory: Memory = KNOWN,
    previous: NextHop | None = None,
) -> NextHop:
    return next_hop(SERVER, "eth0", link, route, "eth1", memory, previous)


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
    assert neighbour_of(SERVER, route, LINK) == GATEWAY
    assert hop(route=route).on_link is False


def test_the_smaller_mtu_of_link_and_route_counts() -> None:
    assert hop(route=replace(ROUTE, mtu=1400)).mtu == 1400
    assert hop(route=replace(ROUTE, mtu=9000)).mtu == 1500


@pytest.mark.parametrize(
    ("link", "route", "memory", "reason"),
    [
        (None, ROUTE, KNOWN, "eth0 does not exist"),
        (replace(LINK, mac=None), ROUTE, KNOWN, "eth0 is not an Ethernet interface"),
        (replace(LINK, up=False), ROUTE, KNOWN, "eth0 is down"),
        (replace(LINK, carrier=False), ROUTE, KNOWN, "eth0 has no carrier"),
        (LINK, None, KNOWN, "the route is being looked up"),
        (LINK, Route(problem="no route to 10.0.0.21"), KNOWN, "no route to 10.0.0.21"),
        (LINK, Route(ifindex=3), KNOWN, "route to 10.0.0.21 leaves by eth1, not eth0"),
        (LINK, ROUTE, Memory(), "waiting for the ARP answer of 10.0.0.21 on eth0"),
        (
            LINK,
            ROUTE,
            Memory(no_room=True),
            "the kernel's neighbour table is full: raise sysctl net.ipv4.neigh.default.gc_thresh3",
        ),
        (LINK, ROUTE, Memory(failed=True), "no ARP answer from 10.0.0.21 on eth0"),
        (
            LINK,
            replace(ROUTE, gateway=GATEWAY),
            Memory(failed=True),
            "no ARP answer from gateway 10.0.0.1",
        ),
    ],
)
def test_an_unresolved_next_hop_says_why(
    link: Link | None, route: Route | None, memory: Memory, reason: str
) -> None:
    answer = hop(link, route, memory)
    assert (answer.mac, answer.reason) == (None, reason)


def test_an_interface_that_goes_down_keeps_the_next_hop_with_a_reason() -> None:
    before = hop()
    down = hop(link=replace(LINK, up=False), route=Route(problem="no route"), previous=before)
    assert (down.mac, down.reason) == (MAC, "eth0 is down")
    assert hop(previous=down) == before


def test_a_new_interface_inherits_nothing() -> None:
    recreated = replace(LINK, ifindex=9, up=False)
    assert hop(link=recreated, previous=hop()).mac is None


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
