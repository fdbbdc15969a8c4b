"""What a backend is for the data plane, and why."""

import pytest

from agent.model import (
    AdminState,
    Backend,
    BackendState,
    DownFlows,
    Forward,
    Health,
    ServiceState,
)
from agent.state.eligibility import eligibility, service_state
from tests.unit.state.world import A, hop, status, web

HOP = hop("10.0.0.21")


def backend(**fields: object) -> Backend:
    return Backend("a", A.address, **fields)


@pytest.mark.parametrize(
    ("fields", "health", "state", "usable", "alive"),
    [
        ({}, Health.UP, BackendState.UP, True, True),
        ({}, Health.UNCHECKED, BackendState.UP, True, True),
        ({}, Health.CHECKING, BackendState.CHECKING, False, True),
        ({}, Health.DOWN, BackendState.DOWN, False, True),
        ({"weight": 0}, Health.UP, BackendState.DRAIN, False, True),
        ({"weight": 0}, Health.DOWN, BackendState.DOWN, False, True),
        ({"admin": AdminState.DRAIN}, Health.UP, BackendState.DRAIN, False, True),
        ({"admin": AdminState.DRAIN}, Health.DOWN, BackendState.DRAIN, False, True),
        ({"admin": AdminState.MAINTENANCE}, Health.UP, BackendState.MAINTENANCE, False, False),
        ({"admin": AdminState.MAINTENANCE}, Health.DOWN, BackendState.MAINTENANCE, False, False),
    ],
)
def test_the_operators_word_then_health_then_weight(fields, health, state, usable, alive):
    found = eligibility(web(), backend(**fields), status(health), HOP)
    assert (found.state, found.usable, found.alive) == (state, usable, alive)
    assert found.reason


@pytest.mark.parametrize("admin", [AdminState.ACTIVE, AdminState.DRAIN])
def test_reroute_gives_up_the_flows_of_a_backend_that_is_down(admin: AdminState):
    service = web(down_flows=DownFlows.REROUTE)
    assert not eligibility(service, backend(admin=admin), status(Health.DOWN), HOP).alive
    assert eligibility(service, backend(admin=admin), status(Health.UP), HOP).alive


@pytest.mark.parametrize(
    ("forward", "nexthop", "reason"),
    [
        (Forward.DSR, None, "not looked up yet"),
        (Forward.DSR, hop("10.0.0.21", mac=None), "does not answer"),
        (Forward.DSR, hop("10.0.0.21", mac=None, reason="no route"), "no route"),
        (Forward.DSR, hop("10.0.0.21", on_link=False), "use forward: ipip"),
        (Forward.IPIP, hop("10.0.0.21", on_link=False), ""),
        (Forward.IPIP, hop("10.0.0.21", mac=None, on_link=False), "does not answer"),
    ],
)
def test_where_no_packet_can_go_no_packet_goes(forward: Forward, nexthop, reason: str):
    found = eligibility(web(forward=forward), backend(), status(), nexthop)
    assert (found.state is BackendState.UNREACHABLE) == bool(reason)
    assert reason in found.reason
    assert found.alive == (not reason)


def test_a_healthy_backend_tells_why_the_check_thinks_so():
    assert eligibility(web(), backend(), status(Health.UP), HOP).reason == "it is up"


UP, DOWN, DRAIN, OUT = (
    BackendState.UP,
    BackendState.DOWN,
    BackendState.DRAIN,
    BackendState.MAINTENANCE,
)


@pytest.mark.parametrize(
    ("states", "expected", "reason"),
    [
        ((), ServiceState.DOWN, "no backend is configured"),
        ((UP, UP), ServiceState.UP, "all 2 backends up"),
        ((UP, DRAIN, OUT), ServiceState.UP, "1 backends up, 2 out"),
        ((UP, DOWN), ServiceState.DEGRADED, "1 of 2 backends up"),
        ((UP, DOWN, DRAIN), ServiceState.DEGRADED, "1 of 2 backends up"),
        ((UP, BackendState.CHECKING), ServiceState.DEGRADED, "1 of 2 backends up"),
        ((UP, BackendState.UNREACHABLE), ServiceState.DEGRADED, "1 of 2 backends up"),
        ((DOWN, DOWN), ServiceState.DOWN, "none of 2 backends is up"),
        ((DRAIN,), ServiceState.DOWN, "none of 1 backends is up"),
    ],
)
def test_a_service_is_what_its_backends_are(states, expected: ServiceState, reason: str):
    assert service_state(states) == (expected, reason)
