"""When a node may take its place from a master that is well, and when it is cut off."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.failover.syncstatus import LinkState
from agent.model import CheckKind, HealthCheck, Protocol, Service, ServiceKey
from agent.pair.readiness import (
    FRESH_S,
    PATIENCE_S,
    Standing,
    follow,
    is_cut_off,
    is_ready,
    is_synced,
    settle_s,
)
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
    assert is_synced(peers, was=False) is synced


def test_a_busy_host_does_not_begin_anew() -> None:
    late = (replace(PEER, behind_s=FRESH_S + 0.5),)
    assert is_synced(late, was=True)
    assert not is_synced(late, was=False)
    assert not is_synced((replace(PEER, behind_s=2 * FRESH_S),), was=True)


def looks(*seen: tuple[float, bool, bool]) -> Standing:
    standing = Standing()
    for now_s, synced, behind in seen:
        standing = follow(standing, synced=synced, behind=behind, now_s=now_s)
    return standing


def test_a_node_that_knows_the_flows_waits_for_its_checks() -> None:
    standing = looks((10, True, True), (12, True, True))
    assert not is_ready(standing, 5.0, 14.9)
    assert is_ready(standing, 5.0, 15.0)


def test_a_cut_begins_it_anew() -> None:
    standing = looks((10, True, True), (100, False, False), (110, True, True))
    assert not is_ready(standing, 5.0, 112)


def test_a_master_that_tells_no_flows_is_not_waited_for_for_ever() -> None:
    standing = looks((10, False, True), (20, False, True))
    assert not is_ready(standing, 5.0, 10 + PATIENCE_S - 0.1)
    assert is_ready(standing, 5.0, 10 + PATIENCE_S)


def test_patience_begins_when_a_master_is_heard_and_not_with_the_cut() -> None:
    standing = looks((10, False, False), (100, False, True))
    assert not is_ready(standing, 5.0, 101)


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
    assert is_cut_off(peers, services) is cut_off
