"""Instances that the balancers call by different names."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from agent.failover.status import Problem
from agent.failover.syncstatus import PeerSync
from agent.pair.naming import KIND, follow, shown, unshared
from tests.unit.failover.samples import BACKUP, MASTER, PEER, STATUS


def peer(number: int, *instances: str) -> PeerSync:
    return replace(PEER, address=ip_address(f"10.0.0.{number}"), instances=instances)


def test_one_balancer_that_has_the_name_is_enough() -> None:
    assert unshared(["web", "api"], [peer(2, "web"), peer(3, "api", "other")]) == {}


def test_a_name_that_nobody_else_has_is_told_with_those_that_are_there() -> None:
    found = unshared(["web", "api"], [peer(2, "www", "api"), peer(3)])
    assert list(found) == ["web"]
    assert "(10.0.0.2 has api, www; 10.0.0.3 has none)" in found["web"]


def test_nothing_is_said_before_all_have_told_theirs() -> None:
    assert unshared(["web"], []) == {}
    assert unshared(["web"], [peer(2), replace(PEER, instances=None)]) == {}


def test_it_is_known_since_when_it_is_so() -> None:
    first = follow({}, {"web": "one"}, 100.0)
    second = follow(first, {"web": "two", "api": "three"}, 160.0)
    assert second == {
        "web": Problem(KIND, "two", 100.0, 160.0, 1),
        "api": Problem(KIND, "three", 160.0, 160.0, 1),
    }
    assert follow(second, {}, 170.0) == {}


def test_it_is_shown_once_beside_what_else_is_wrong() -> None:
    problem = Problem(KIND, "nobody has it", 1.0, 2.0, 1)
    both = shown(STATUS, {"web": problem, "gone": problem}).routers
    assert both == (replace(BACKUP, problems=(*BACKUP.problems, problem)), MASTER)
