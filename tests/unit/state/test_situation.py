"""Verdicts of all backends together: sources that are missing, answers that two would share."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import BackendRef, BackendState, Config, Forward, Health, Nat, NoBackend
from agent.state.situation import service_states
from tests.unit.state.world import TABLES, A, B, hop, surroundings, web


def config(*services, **fields) -> Config:
    return Config("test", "eth0", tables=TABLES, services=services, **fields)


def reason_of(config: Config, source=None, backend: str = "web/a") -> str:
    """Why a backend is unreachable; empty: it is not."""
    around = surroundings(config, hops={"a": hop("10.0.0.21", source=source)})
    verdict = around.eligibility[BackendRef(*backend.split("/"))]
    return verdict.reason if verdict.state is BackendState.UNREACHABLE else ""


@pytest.mark.parametrize("forward", [Forward.IPIP, Forward.GUE])
def test_a_tunnel_needs_an_outer_source(forward: Forward):
    some = config(web(A, forward=forward))
    assert "`tunnel_source: {ipv4: …}`" in reason_of(some)
    assert not reason_of(some, source=ip_address("10.0.0.1"))
    assert not reason_of(replace(some, tunnel_source_v4=ip_address("10.9.9.9")))
    assert reason_of(replace(some, tunnel_source_v6=ip_address("fd00::9")))


def test_fullnat_needs_an_address_to_send_from():
    some = config(web(A, forward=Forward.FULLNAT))
    assert "`nat: {sources_ipv4: […]}`" in reason_of(some)
    assert not reason_of(some, source=ip_address("10.0.0.1"))
    assert not reason_of(replace(some, nat=Nat(sources_v4=(ip_address("10.9.9.9"),))))


@pytest.mark.parametrize("forward", [Forward.DSR, Forward.NAT])
def test_the_others_need_no_source(forward: Forward):
    assert not reason_of(config(web(A, forward=forward)))


def test_a_service_says_that_it_fails_open():
    some = config(web(A, B, no_backend=NoBackend.ANY))
    around = surroundings(some, health={"a": Health.DOWN, "b": Health.DOWN})
    ((state, reason),) = service_states(some, around.eligibility).values()
    assert (state.value, "fail open" in reason) == ("down", True)
    around = surroundings(some, health={"a": Health.DOWN})
    ((state, reason),) = service_states(some, around.eligibility).values()
    assert (state.value, "fail open" in reason) == ("degraded", False)
