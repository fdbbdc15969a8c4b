"""Snapshots put together, and states with their since."""

from agent.model import AdminState, Backend, BackendState, Health, ServiceState
from agent.state.assemble import (
    BackendParts,
    ServiceParts,
    Tracked,
    backend_snapshot,
    effective_weight,
    service_snapshot,
    track,
)
from agent.state.eligibility import eligibility
from agent.state.situation import service_states
from agent.state.snapshot import BackendCounts, Rates
from tests.unit.state.world import A, B, hop, status, surroundings, web


def parts(backend: Backend, health: Health = Health.UP) -> BackendParts:
    next_hop = hop(str(backend.address))
    return BackendParts(
        id=7, verdict=eligibility(web(), backend, status(health), next_hop), since=5.0,
        health=status(health), hop=next_hop, share_expected=0.25, share_actual=0.3, flows=3,
        counts=BackendCounts(packets=9), rates=Rates(),
    )  # fmt: skip


def test_since_moves_only_with_the_state():
    first = track(None, BackendState.UP, 10.0)
    assert first == Tracked(BackendState.UP, 10.0)
    assert track(first, BackendState.UP, 20.0) is first
    assert track(first, BackendState.DOWN, 20.0) == Tracked(BackendState.DOWN, 20.0)


def test_a_backends_effective_weight_says_why():
    assert effective_weight(B, parts(B).verdict) == (300, "configured")
    assert effective_weight(B, parts(B, Health.DOWN).verdict) == (0, "down")
    drained = Backend("b", B.address, 300, AdminState.DRAIN)
    assert effective_weight(drained, parts(drained).verdict) == (0, "drain")


def test_snapshots_hold_what_is_known():
    one = backend_snapshot(A, parts(A))
    assert (one.backend, one.id, one.state, one.since) == (A, 7, BackendState.UP, 5.0)
    assert (one.share_expected, one.share_actual, one.flows) == (0.25, 0.3, 3)
    down = backend_snapshot(B, parts(B, Health.DOWN))
    assert (down.state, down.weight_effective, down.reason) == (BackendState.DOWN, 0, "it is down")
    whole = service_snapshot(
        web(A, B),
        ServiceParts(1, 4.0, BackendCounts(packets=11), {"malformed": 2}, 1, Rates()),
        (one, down),
    )
    assert (whole.state, whole.reason) == (ServiceState.DEGRADED, "1 of 2 backends up")
    assert (whole.counts.packets, whole.drops, whole.not_recorded) == (11, {"malformed": 2}, 1)


def test_services_states_follow_from_their_backends(config):
    around = surroundings(config, health={"a": Health.DOWN})
    assert service_states(config, around.eligibility) == {
        "web": (ServiceState.DEGRADED, "1 of 2 backends up")
    }
