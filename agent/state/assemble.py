"""Decides what a snapshot says: names, states and counters put together. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import (
    Backend,
    BackendState,
    HealthStatus,
    NextHop,
    Service,
    ServiceState,
)
from agent.state.eligibility import Eligibility, service_state
from agent.state.snapshot import BackendCounts, BackendSnapshot, Rates, ServiceSnapshot


@dataclass(frozen=True, slots=True)
class Tracked[State: (BackendState, ServiceState)]:
    """A state and since when it has been that one (seconds since the epoch)."""

    state: State
    since: float


def track[State: (BackendState, ServiceState)](
    before: Tracked[State] | None, state: State, now: float
) -> Tracked[State]:
    """``since`` moves only when the state does."""
    return before if before is not None and before.state is state else Tracked(state, now)


@dataclass(frozen=True, slots=True)
class BackendParts:
    """Everything known of one backend."""

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


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """Everything known of one service besides its backends."""

    id: int
    since: float
    counts: BackendCounts
    drops: dict[str, int]
    not_recorded: int
    rates: Rates


def backend_snapshot(backend: Backend, parts: BackendParts) -> BackendSnapshot:
    """One backend as people see it."""
    weight, reason = effective_weight(backend, parts.verdict)
    return BackendSnapshot(
        backend=backend,
        id=parts.id,
        state=parts.verdict.state,
        reason=parts.verdict.reason,
        since=parts.since,
        health=parts.health,
        next_hop=parts.hop,
        weight_effective=weight,
        weight_reason=reason,
        share_expected=parts.share_expected,
        share_actual=parts.share_actual,
        flows=parts.flows,
        counts=parts.counts,
        rates=parts.rates,
    )


def effective_weight(backend: Backend, verdict: Eligibility) -> tuple[int, str]:
    """The weight that the ring is built with, and why it is that one."""
    if verdict.usable:
        return backend.weight, "configured"
    return 0, verdict.state.value


def service_snapshot(
    service: Service, parts: ServiceParts, backends: tuple[BackendSnapshot, ...]
) -> ServiceSnapshot:
    """One service as people see it."""
    state, reason = service_state(tuple(backend.state for backend in backends))
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
    )
