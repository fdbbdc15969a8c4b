"""Snapshots put together, and states with their since."""

from dataclasses import replace
from typing import Any

from agent.model import (
    AdminState,
    Backend,
    BackendRef,
    BackendState,
    Health,
    NoBackend,
    Objective,
    Scale,
    Service,
    ServiceState,
    Signal,
    Telemetry,
    TelemetryKind,
)
from agent.state.assemble import (
    BackendParts,
    ServiceParts,
    Tracked,
    backend_snapshot,
    service_snapshot,
    track,
)
from agent.state.eligibility import eligibility
from agent.state.scaling import Cause, Seen
from agent.state.situation import service_states
from agent.state.slo import Watch
from agent.state.snapshot import BackendCounts, BackendSnapshot, Load, Rates, Reported
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
    def shown(backend: Backend, health: Health = Health.UP) -> tuple[int, str]:
        found = backend_snapshot(backend, parts(backend, health))
        return found.weight_effective, found.weight_reason

    assert shown(B) == (300, "configured")
    assert shown(B, Health.DOWN) == (0, "down")
    assert shown(Backend("b", B.address, 300, AdminState.DRAIN)) == (0, "drain")


def test_a_service_that_fails_open_is_down_and_says_so(config):
    service = web(A, B, no_backend=NoBackend.ANY)
    around = surroundings(
        replace(config, services=(service,)), health={"a": Health.DOWN, "b": Health.DOWN}
    )
    shown = tuple(
        backend_snapshot(
            b, replace(parts(b), verdict=around.eligibility[BackendRef("web", b.name)])
        )
        for b in service.backends
    )
    assert [one.weight_reason for one in shown] == ["fail open", "fail open"]
    whole = service_snapshot(service, ServiceParts(1, 4.0, BackendCounts(), {}, 0, Rates()), shown)
    assert whole.state is ServiceState.DOWN
    assert "fail open" in whole.reason


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


ASKS = Telemetry(kind=TelemetryKind.VLLM)


def loaded(backend: Backend, health: Health = Health.UP, **load: Any) -> BackendSnapshot:
    """One with three connections, and this load."""
    return backend_snapshot(backend, replace(parts(backend, health), load=Load(**load)))


def seen(service: Service, *backends: BackendSnapshot, **known: Any) -> Seen:
    of_service = ServiceParts(1, 4.0, BackendCounts(), {}, 0, Rates(), **known)
    return service_snapshot(service, of_service, backends).scaling.seen


def test_a_scaler_sees_the_load_of_all_backends_and_those_that_take_more():
    fresh = Reported(fresh=True, running=6.0, waiting=2.0)
    shown = (
        loaded(A, waiting_bytes=700, reported=fresh),
        loaded(replace(B, admin=AdminState.DRAIN), waiting_bytes=50),
        loaded(replace(B, name="c"), Health.DOWN, waiting_bytes=9, reported=replace(fresh)),
    )
    found = seen(web(A, B, telemetry=ASKS), *shown, first_byte_p95_s=0.5)
    assert (found.usable, found.draining, found.first_byte_p95_s) == (1, 1, 0.5)
    assert found.load == {
        Signal.CONNECTIONS: 9,
        Signal.WAITING_BYTES: 759,
        Signal.REQUESTS: 16.0,
        Signal.QUEUED: 4.0,
    }


def test_what_is_not_counted_or_reported_is_not_known_rather_than_none():
    found = seen(web(A, B, telemetry=ASKS, count_waiting=False), loaded(A), loaded(B))
    assert found.load == {
        Signal.CONNECTIONS: 6,
        Signal.WAITING_BYTES: None,
        Signal.REQUESTS: None,
        Signal.QUEUED: None,
    }
    assert found.misses_objective is None
    assert seen(web()).load[Signal.REQUESTS] is None
    assert seen(web(telemetry=ASKS)).load[Signal.REQUESTS] == 0, "there is no backend to have any"
    stale = Reported(fresh=False, running=6.0, waiting=2.0)
    assert seen(web(A, telemetry=ASKS), loaded(A, reported=stale)).load[Signal.REQUESTS] is None
    no_running = Reported(fresh=True, waiting=2.0)
    load = seen(web(A, telemetry=ASKS), loaded(A, reported=no_running)).load
    assert (load[Signal.REQUESTS], load[Signal.QUEUED]) == (None, 2.0)


def test_backends_that_only_stand_by_or_get_flows_all_the_same_are_not_usable():
    standby = replace(loaded(B), weight_effective=0, weight_reason="backup")
    failing = replace(loaded(A, Health.DOWN), weight_effective=100, weight_reason="fail open")
    assert seen(web(A, B), standby, failing).usable == 0


def test_a_service_wants_backends_by_its_targets_and_its_objective():
    service = web(A, B, scale=Scale(connections=1), slo=(Objective(95, 2.0),))
    shown = (loaded(A), loaded(B))
    late = Watch.begin(service.slo[0], 0.0).add(10.0, 100, 50.0)
    of_service = ServiceParts(1, 4.0, BackendCounts(), {}, 0, Rates(), slo=(late,))
    scaling = service_snapshot(service, of_service, shown).scaling
    assert (scaling.wanted, scaling.cause) == (6, Cause.CONNECTIONS)
    assert scaling.seen.misses_objective is True
