"""Decides what a backend is for the data plane, and says why."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model import (
    AdminState,
    Backend,
    BackendState,
    DownFlows,
    Forward,
    Health,
    HealthStatus,
    NextHop,
    Service,
    ServiceState,
)


@dataclass(frozen=True, slots=True)
class Eligibility:
    """``usable``: new flows may go there; ``alive``: its recorded flows stay there."""

    state: BackendState
    reason: str
    usable: bool
    alive: bool


def eligibility(
    service: Service, backend: Backend, health: HealthStatus, hop: NextHop | None
) -> Eligibility:
    """The operator's word first, then whether packets can get there, then the checks.

    A backend in maintenance gives its flows up; one that drains or has weight 0 keeps them;
    one that is down keeps them unless the service says ``down_flows: reroute``.
    """
    if backend.admin is AdminState.MAINTENANCE:
        return Eligibility(BackendState.MAINTENANCE, "disabled by the operator", False, False)
    unreachable = _unreachable(service, hop)
    if unreachable:
        return Eligibility(BackendState.UNREACHABLE, unreachable, False, False)
    alive = service.down_flows is DownFlows.KEEP or health.health is not Health.DOWN
    if backend.admin is AdminState.DRAIN:
        return Eligibility(BackendState.DRAIN, "drained by the operator", False, alive)
    if health.health is Health.DOWN:
        return Eligibility(BackendState.DOWN, health.reason, False, alive)
    if health.health is Health.CHECKING:
        return Eligibility(BackendState.CHECKING, health.reason, False, True)
    if backend.weight == 0:
        return Eligibility(BackendState.DRAIN, "weight 0: no new flows", False, True)
    return Eligibility(BackendState.UP, health.reason, True, True)


def _unreachable(service: Service, hop: NextHop | None) -> str:
    """Why no packet can be sent to the backend; empty: it can."""
    if hop is None:
        return "the next hop is not looked up yet"
    if hop.mac is None:
        return hop.reason or "the next hop does not answer"
    if service.forward is Forward.DSR and not hop.on_link:
        return "behind a router: dsr needs it on the same segment (use forward: ipip)"
    return ""


def service_state(states: tuple[BackendState, ...]) -> tuple[ServiceState, str]:
    """A service's state from those of its backends.

    Backends that the operator took out do not count against it, unless nothing is left.
    """
    up = sum(state is BackendState.UP for state in states)
    out = sum(state in (BackendState.DRAIN, BackendState.MAINTENANCE) for state in states)
    if not states:
        return ServiceState.DOWN, "no backend is configured"
    if up == 0:
        return ServiceState.DOWN, f"none of {len(states)} backends is up"
    if up + out < len(states):
        return ServiceState.DEGRADED, f"{up} of {len(states) - out} backends up"
    return ServiceState.UP, f"all {up} backends up" if not out else f"{up} backends up, {out} out"
