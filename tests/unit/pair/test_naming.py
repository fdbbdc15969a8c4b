"""Instances that the balancers call by different names."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from agent.failover.syncstatus import PeerSync
from agent.pair.comparing import Place
from agent.pair.naming import KIND, unshared
from tests.unit.failover.samples import PEER


def peer(number: int, *instances: str) -> PeerSync:
    return replace(PEER, address=ip_address(f"10.0.0.{number}"), instances=instances)


def test_one_balancer_that_has_the_name_is_enough() -> None:
    assert unshared(["web", "api"], [peer(2, "web"), peer(3, "api", "other")]) == {}


def test_a_name_that_nobody_else_has_is_told_with_those_that_are_there() -> None:
    found = unshared(["web", "api"], [peer(2, "www", "api"), peer(3)])
    assert list(found) == [Place("web", KIND)]
    assert "(10.0.0.2 has api, www; 10.0.0.3 has none)" in found[Place("web", KIND)]


def test_nothing_is_said_before_all_have_told_theirs() -> None:
    assert unshared(["web"], []) == {}
    assert unshared(["web"], [peer(2), replace(PEER, instances=None)]) == {}
