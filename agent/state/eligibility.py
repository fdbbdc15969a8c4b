"""Decides whether a backend gets new flows and keeps its recorded ones, and says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.humanise import plural
from agent.model import (
    AdminState,
    Backend,
    BackendState,
    DownFlows,
    Forward,
    Health,
    HealthStatus,
    NextHop,
    NoBackend,
    Service,
    ServiceState,
)
from agent.weights.influence import Influence

CONFIGURED, BACKUP, FAIL_OPEN, PANIC = "configured", "backup", "fail open", "panic"
IN_SPITE = (FAIL_OPEN, PANIC)  # why backends that are not up get new flows
# Backends in these states do not count when we judge whether the health checks can be right.
_TAKEN_OUT = (BackendState.MAINTENANCE, BackendState.DRAIN, BackendState.CHECKING)


@dataclass(frozen=True, slots=True)
class Eligibility:
    """``usable``: new flows may go to the backend; ``alive``: its recorded flows stay there.

    ``weight``: the effective weight, 0 if not usable; ``weight_reason`` says how it came about.
    ``bytes_per_connection``: the learned value; None: as configured. ``learned``: the factor in
    the weight that comes from the learned speed. It is kept apart because a slow server is not
    an unhealthy one.
    """

    state: BackendState
    reason: str
    usable: bool
    alive: bool
    weight: int
    weight_reason: str
    bytes_per_connection: int | None = None
    learned: float = 1.0


def eligibility(
    service: Service, backend: Backend, health: HealthStatus, hop: NextHop | None
) -> Eligibility:
    """Judge a backend by the operator's orders first, then reachability, then the health checks.

    A backend in maintenance gives its flows up; one that drains or has weight 0 keeps them;
    one that is down keeps them unless the service says ``down_flows: reroute``. Flows that are to
    be reset are reset some time later (``agent.state.deaths``).
    """
    if backend.admin is AdminState.MAINTENANCE:
        return _out(BackendState.MAINTENANCE, "disabled by the operator", alive=False)
    unreached = _unreached(service, hop)
    if unreached:
        return unreachable(unreached)
    alive = service.down_flows is not DownFlows.REROUTE or health.health is not Health.DOWN
    if backend.admin is AdminState.DRAIN:
        return _out(BackendState.DRAIN, "drained by the operator", alive)
    if health.health is Health.DOWN:
        return _out(BackendState.DOWN, health.reason, alive)
    if health.health is Health.CHECKING:
        return _out(BackendState.CHECKING, health.reason, alive=True)
    if backend.weight == 0:
        return _out(BackendState.DRAIN, "weight 0: no new flows", alive=True)
    return Eligibility(BackendState.UP, health.reason, True, True, backend.weight, CONFIGURED)


def _out(state: BackendState, reason: str, alive: bool) -> Eligibility:
    """Return the verdict for a backend that gets no new flows."""
    return Eligibility(state, reason, False, alive, 0, state.value)


def influenced(service: Service, verdict: Eligibility, influence: Influence) -> Eligibility:
    """Apply reports and learned speed to the verdict on a backend that would get new flows."""
    if not verdict.usable:
        return verdict
    if influence.out:
        is_down = influence.state is BackendState.DOWN
        alive = service.down_flows is not DownFlows.REROUTE or not is_down
        return _out(influence.state, influence.out, alive)
    return replace(
        verdict,
        weight=influence.weight(verdict.weight),
        weight_reason=", ".join(influence.reasons) or verdict.weight_reason,
        bytes_per_connection=influence.bytes_per_connection,
        learned=influence.learned,
    )


def unreachable(reason: str) -> Eligibility:
    """Return the verdict for a backend to which no packet can be sent."""
    return _out(BackendState.UNREACHABLE, reason, alive=False)


def _unreached(service: Service, hop: NextHop | None) -> str:
    """Return why no packet can be sent to the backend; empty if packets can be sent."""
    if hop is None:
        return "the next hop is not looked up yet"
    if hop.mac is None:
        return hop.reason or "the next hop does not answer"
    if service.forward is Forward.DSR and not hop.on_link:
        return "behind a router: dsr needs it on the same segment (use forward: ipip)"
    return ""


def together(service: Service, found: Sequence[Eligibility]) -> tuple[Eligibility, ...]:
    """Adjust the verdicts on a service's backends (in its order) to each other.

    Backups get new flows only while no other backend is usable. If no backend at all is usable, a
    service with ``no_backend: any`` fails open: a backend that its checks doubt is better than
    none, so every backend that is reachable and not disabled by the operator gets new flows. The
    same happens if the usable share falls below ``panic``, so that the load of failed backends
    does not overload the remaining ones.
    """
    primary = any(
        one.usable and not backend.backup
        for backend, one in zip(service.backends, found, strict=True)
    )
    if _panics(service, found) and (primary or not any(one.usable for one in found)):
        found = [
            one if backend.backup or one.usable else _panic(backend, one)
            for backend, one in zip(service.backends, found, strict=True)
        ]
        primary = any(one.usable for one in found)
    if primary:
        return tuple(
            replace(one, usable=False, weight=0, weight_reason=BACKUP)
            if backend.backup and one.usable
            else one
            for backend, one in zip(service.backends, found, strict=True)
        )
    if service.no_backend is not NoBackend.ANY or any(one.usable for one in found):
        return tuple(found)
    return tuple(
        _fail_open(backend, one) for backend, one in zip(service.backends, found, strict=True)
    )


def _panics(service: Service, found: Sequence[Eligibility]) -> bool:
    judged = [
        one.usable
        for backend, one in zip(service.backends, found, strict=True)
        if not backend.backup and one.state not in _TAKEN_OUT
    ]
    return sum(judged) < service.panic * len(judged)


def _panic(backend: Backend, one: Eligibility) -> Eligibility:
    if one.state in _TAKEN_OUT or one.state is BackendState.UNREACHABLE or not backend.weight:
        return one
    return _in_spite(backend, one, PANIC, "too few backends are up")


def _fail_open(backend: Backend, one: Eligibility) -> Eligibility:
    if one.state in (BackendState.MAINTENANCE, BackendState.UNREACHABLE):
        return one
    return _in_spite(backend, one, FAIL_OPEN, "no backend is up")


def _in_spite(backend: Backend, one: Eligibility, what: str, why: str) -> Eligibility:
    """Return the verdict for a backend that gets new flows although it is not up."""
    return replace(
        one,
        reason=f"{one.reason}; {what}: {why}",
        usable=True,
        alive=True,
        weight=max(backend.weight, 1),
        weight_reason=what,
    )


_WORDS = {
    BackendState.DRAIN: "drained",
    BackendState.MAINTENANCE: "in maintenance",
    BackendState.CHECKING: "not checked yet",
}


def _none_is_up(states: tuple[BackendState, ...]) -> str:
    """Say in which states the backends of a service are when none is up."""
    found = Counter(_WORDS.get(state, state.value) for state in states).most_common()
    if len(states) == 1:
        return f"its only backend is {found[0][0]}"
    if len(found) == 1:
        return f"all {len(states)} backends are {found[0][0]}"
    counts = ", ".join(f"{count} {word}" for word, count in found)
    return f"none of {len(states)} backends is up: {counts}"


def service_state(
    states: tuple[BackendState, ...], *, in_spite: frozenset[str] = frozenset()
) -> tuple[ServiceState, str]:
    """Return a service's state and the reason, from the states of its backends.

    ``in_spite``: why some backends that are not up get new flows. Backends that the operator took
    out do not count against the service, unless none is left. A service that fails open still
    counts as down, because nothing shows that its backends serve.
    """
    up = sum(state is BackendState.UP for state in states)
    out = sum(state in (BackendState.DRAIN, BackendState.MAINTENANCE) for state in states)
    if not states:
        return ServiceState.DOWN, "no backend is configured"
    also = sorted(in_spite.intersection(IN_SPITE))
    after = f"; {also[0]}: the others get new flows all the same" if also else ""
    if up == 0:
        return ServiceState.DOWN, f"{_none_is_up(states)}{after}"
    if up + out < len(states):
        more = f", {out} out" if out else ""
        return ServiceState.DEGRADED, f"{up} of {len(states) - out} backends up{more}{after}"
    return (
        ServiceState.UP,
        f"all {up} backends up" if not out else f"{plural(up, 'backend')} up, {out} out",
    )
