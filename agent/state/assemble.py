"""Builds snapshots of backends and services from their names, states and counters. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.model import (
    Backend,
    BackendState,
    HealthStatus,
    NextHop,
    Service,
    ServiceState,
    Signal,
    TelemetryKind,
)
from agent.state import scaling
from agent.state.eligibility import Eligibility, service_state
from agent.state.loads import counts_waiting
from agent.state.skew import Skew
from agent.state.slo import Watch
from agent.state.snapshot import (
    BackendCounts,
    BackendSnapshot,
    Home,
    Load,
    Rates,
    Reported,
    ServiceSnapshot,
)


@dataclass(frozen=True, slots=True)
class Tracked[State: (BackendState, ServiceState)]:
    """A state, and the time at which it began (seconds since the epoch)."""

    state: State
    since: float


def track[State: (BackendState, ServiceState)](
    before: Tracked[State] | None, state: State, now: float
) -> Tracked[State]:
    """Return the tracked state at ``now``; ``since`` changes only when the state does."""
    return before if before is not None and before.state is state else Tracked(state, now)


@dataclass(frozen=True, slots=True)
class BackendParts:
    """Everything known about one backend."""

    id: int
    verdict: Eligibility
    since: float
    health: HealthStatus
    hop: NextHop | None
    share_expected: float
    share_actual: float | None
    flows: int
    counts: BackendCounts
    rates: Rates
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """Everything known about one service, apart from its backends."""

    id: int
    since: float
    counts: BackendCounts
    drops: dict[str, int]
    not_recorded: int
    rates: Rates
    replied: int = 0
    not_replied: int = 0
    skew: Skew | None = None
    draws: int | None = None
    spill_over: tuple[str, ...] = ()
    challenges: bool = False
    cookies: bool = False
    cookies_taken: int = 0
    cookies_problem: str = ""
    cookies_keys: tuple[str, ...] = ()
    first_byte: str | None = None
    home: Home | None = None
    slo: tuple[Watch, ...] = ()
    held: int | None = None
    first_byte_p95_s: float | None = None  # of all backends together, over the last minute


def backend_snapshot(backend: Backend, parts: BackendParts) -> BackendSnapshot:
    """Return the snapshot of one backend."""
    return BackendSnapshot(
        backend=backend,
        id=parts.id,
        state=parts.verdict.state,
        reason=parts.verdict.reason,
        since=parts.since,
        health=parts.health,
        next_hop=parts.hop,
        weight_effective=parts.verdict.weight,
        weight_reason=parts.verdict.weight_reason,
        share_expected=parts.share_expected,
        share_actual=parts.share_actual,
        flows=parts.flows,
        counts=parts.counts,
        rates=parts.rates,
        load=parts.load,
    )


def service_snapshot(
    service: Service, parts: ServiceParts, backends: tuple[BackendSnapshot, ...]
) -> ServiceSnapshot:
    """Return the snapshot of one service."""
    state, reason = service_state(
        tuple(backend.state for backend in backends),
        in_spite=frozenset(backend.weight_reason for backend in backends),
    )
    return ServiceSnapshot(
        service=service,
        id=parts.id,
        state=state,
        reason=reason,
        since=parts.since,
        backends=backends,
        counts=parts.counts,
        drops=parts.drops,
        not_recorded=parts.not_recorded,
        rates=parts.rates,
        replied=parts.replied,
        not_replied=parts.not_replied,
        skew=parts.skew,
        draws=parts.draws,
        spill_over=parts.spill_over,
        challenges=parts.challenges,
        cookies=parts.cookies,
        cookies_taken=parts.cookies_taken,
        cookies_problem=parts.cookies_problem,
        cookies_keys=parts.cookies_keys,
        first_byte=parts.first_byte,
        home=parts.home,
        slo=parts.slo,
        held=parts.held,
        scaling=scaling.decide(service.scale, _seen(service, parts, backends)),
    )


def _seen(
    service: Service, parts: ServiceParts, backends: tuple[BackendSnapshot, ...]
) -> scaling.Seen:
    """Return the part of a service's snapshot by which it is scaled.

    A backend that gets new flows although it is down (fail open, panic) is not usable, because
    nothing shows that it serves.
    """
    usable = [each.state is BackendState.UP and each.weight_effective > 0 for each in backends]
    reports = [_fresh(each.load.reported) for each in backends]
    requests = [(is_usable, both) for is_usable, (both, _) in zip(usable, reports, strict=True)]
    queued = [(is_usable, only) for is_usable, (_, only) in zip(usable, reports, strict=True)]
    waiting = sum(each.load.waiting_bytes or 0 for each in backends)
    is_reported = service.telemetry.kind is not TelemetryKind.NONE
    return scaling.Seen(
        usable=sum(usable),
        draining=sum(each.state is BackendState.DRAIN for each in backends),
        load={
            # Not the embryonic ones: a flood of SYNs must not start servers.
            Signal.CONNECTIONS: sum(each.flows for each in backends),
            Signal.WAITING_BYTES: waiting if counts_waiting(service) else None,
            Signal.REQUESTS: scaling.reported(requests) if is_reported else None,
            Signal.QUEUED: scaling.reported(queued) if is_reported else None,
        },
        first_byte_p95_s=parts.first_byte_p95_s,
        misses_objective=any(each.is_missed for each in parts.slo) if parts.slo else None,
        held=parts.held,
    )


def _fresh(report: Reported | None) -> tuple[float | None, float | None]:
    """Return the requests at a backend, and those of them that are queued; None: not known."""
    if report is None or not report.fresh:
        return None, None
    running, waiting = report.running, report.waiting
    return None if running is None or waiting is None else running + waiting, waiting
