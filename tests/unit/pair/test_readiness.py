"""When a node may serve, and when it is cut off."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.failover.syncstatus import LinkState
from agent.failover.times import FRESH_S, READY_PATIENCE_S
from agent.model import CheckKind, HealthCheck, Protocol, Service, ServiceKey
from agent.pair.readiness import (
    Standing,
    follow,
    is_cut_off,
    is_reaching,
    settle_s,
    untold,
    waits_for,
)
from tests.examples import examples
from tests.unit.failover.samples import PEER

AWAY = replace(PEER, state=LinkState.CONNECTING)


def service(**check: object) -> Service:
    key = ServiceKey(ip_address("10.0.0.10"), 80, Protocol.TCP)
    return Service("web", key, health=HealthCheck(**check))


@pytest.mark.parametrize(
    ("peers", "synced"),
    [
        ((), True),
        ((PEER,), True),
        ((AWAY,), False),
        ((PEER, AWAY), False),
        ((replace(PEER, full_received=0),), False),
        ((replace(PEER, behind_s=None),), False),
        # the stream outlived a cable that was cut for a while: what it brought is old
        ((replace(PEER, behind_s=FRESH_S + 1),), False),
    ],
)
def test_synced_is_who_knows_what_all_the_others_have(peers, synced) -> None:
    assert (untold(peers, 0.2, was=False) == ()) is synced


def test_a_busy_host_does_not_begin_anew() -> None:
    late = (replace(PEER, behind_s=FRESH_S + 0.5),)
    assert not untold(late, 0.2, was=True)
    assert untold(late, 0.2, was=False)
    assert untold((replace(PEER, behind_s=2 * FRESH_S),), 0.2, was=True)


def test_who_is_told_at_long_intervals_knows_the_flows_in_between() -> None:
    """Otherwise a node with `sync.interval: 10s` would not know them for most of the time."""
    before_the_next_look = (replace(PEER, behind_s=10.5),)
    assert not untold(before_the_next_look, 10.0, was=False)
    assert not is_cut_off(before_the_next_look, {"web": (0, 3)}, 10.0)
    assert untold((replace(PEER, behind_s=10.0 + FRESH_S),), 10.0, was=False)


def test_it_is_said_which_balancer_has_not_told_its_flows() -> None:
    silent = replace(PEER, address=ip_address("10.0.0.3"), behind_s=None)
    old = replace(PEER, address=ip_address("10.0.0.4"), behind_s=60.0)
    assert untold((PEER, AWAY, silent, old), 0.2, was=False) == (
        "10.0.0.2 is not connected",
        "10.0.0.3 has not sent all of its flows yet",
        "10.0.0.4 has not been heard lately",
    )


@pytest.mark.parametrize(
    ("services", "so"),
    [
        ({}, True),
        ({"empty": (0, 0)}, True),
        ({"web": (0, 3)}, False),
        ({"web": (0, 3), "empty": (0, 0)}, False),
        ({"web": (0, 3), "dns": (1, 3)}, True),
    ],
)
def test_a_node_reaches_a_backend_if_its_checks_have_found_one(services, so) -> None:
    assert is_reaching(services) is so


def looks(*seen: tuple[float, bool, bool], up: bool = True) -> Standing:
    """Each a moment, and whether the node knew the flows and was behind a master then."""
    standing = Standing()
    for now_s, synced, behind in seen:
        standing = follow(standing, synced=synced, behind=behind, reaches=up, now_s=now_s)
    return standing


def test_a_node_that_knows_the_flows_waits_for_its_checks() -> None:
    standing = looks((10, True, True), (12, True, True))
    assert waits_for(standing, 5.0, 14.9) == "the checks settle"
    assert not waits_for(standing, 5.0, 15.0)


def test_a_node_that_reaches_no_backend_waits_and_so_does_the_first_it_finds() -> None:
    standing = looks((10, True, False), up=False)
    assert waits_for(standing, 5.0, 1000.0) == "no backend is up"
    standing = follow(standing, synced=True, behind=False, reaches=True, now_s=1000.0)
    assert waits_for(standing, 5.0, 1004.9) == "the checks settle"
    assert not waits_for(standing, 5.0, 1005.0)


def test_a_cut_begins_it_anew() -> None:
    standing = looks((10, True, True), (100, False, False), (110, True, True))
    assert waits_for(standing, 5.0, 112)


def test_a_master_that_tells_no_flows_is_not_waited_for_for_ever() -> None:
    standing = looks((10, False, True), (20, False, True))
    said = waits_for(standing, 5.0, 10 + READY_PATIENCE_S - 0.1, ("10.0.0.2 is not connected",))
    assert said == "the flows of other balancers are not known: 10.0.0.2 is not connected"
    assert not waits_for(standing, 5.0, 10 + READY_PATIENCE_S)


def test_nor_is_one_that_is_dead_where_nobody_is_master() -> None:
    standing = looks((10, False, False))
    assert waits_for(standing, 5.0, 10 + READY_PATIENCE_S - 0.1)
    assert not waits_for(standing, 5.0, 10 + READY_PATIENCE_S)


def test_patience_begins_when_a_master_is_heard_and_not_with_the_cut() -> None:
    standing = looks((10, False, False), (100, False, True))
    assert waits_for(standing, 5.0, 101)


def test_patience_begins_with_the_first_backend_and_not_with_the_cut() -> None:
    standing = looks((10, False, False), up=False)
    standing = follow(standing, synced=False, behind=False, reaches=True, now_s=100.0)
    assert waits_for(standing, 5.0, 100 + READY_PATIENCE_S - 0.1)


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(0, 20), *[st.booleans()] * 3), min_size=1, max_size=30),
    st.floats(0, 10),
)
def test_nobody_serves_on_a_whim_and_nobody_waits_for_ever(seen, settling_s) -> None:
    """Whatever comes and goes: who serves has reached a backend for as long as checks need, and
    knew the flows for as long, or has waited its time; who reaches one serves in the end.
    """
    standing, now_s = Standing(), 100.0
    since = dict.fromkeys(("synced", "reaches"))
    for pause_s, synced, behind, up in seen:
        now_s += pause_s
        standing = follow(standing, synced=synced, behind=behind, reaches=up, now_s=now_s)
        for name, holds in (("synced", synced), ("reaches", up)):
            since[name] = (since[name] or now_s) if holds else None
        if not waits_for(standing, settling_s, now_s):
            assert since["reaches"] is not None
            assert now_s - since["reaches"] >= settling_s
            known = since["synced"] is not None and now_s - since["synced"] >= settling_s
            assert known or now_s - since["reaches"] >= READY_PATIENCE_S
    late_s = now_s + max(READY_PATIENCE_S, settling_s) + 0.001
    assert bool(waits_for(standing, settling_s, late_s)) is (since["reaches"] is None)


def test_checks_need_their_rise_and_a_timeout() -> None:
    slow = service(rise=3, interval_s=2.0, timeout_s=1.0)
    assert settle_s([service(kind=CheckKind.NONE), slow]) == 7.0
    assert settle_s([]) == 0.0
    assert settle_s([service(rise=100, interval_s=60.0)]) == 10.0


@pytest.mark.parametrize(
    ("peers", "services", "cut_off"),
    [
        ((AWAY,), {"web": (0, 3)}, True),
        ((AWAY,), {"web": (0, 3), "empty": (0, 0)}, True),
        ((AWAY,), {"web": (0, 3), "dns": (1, 2)}, False),
        ((PEER,), {"web": (0, 3)}, False),
        ((replace(PEER, behind_s=FRESH_S + 1),), {"web": (0, 3)}, True),
        ((replace(PEER, behind_s=None),), {"web": (0, 3)}, False),
        ((PEER, AWAY), {"web": (0, 3)}, False),
        ((AWAY,), {"empty": (0, 0)}, False),
        ((), {"web": (0, 3)}, False),  # without others there is nothing to be cut off from
    ],
)
def test_cut_off_is_who_reaches_nobody(peers, services, cut_off) -> None:
    assert is_cut_off(peers, services, 0.2) is cut_off
