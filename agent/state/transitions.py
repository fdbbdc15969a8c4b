"""Decides what to log when the states of backends and services change. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.logs import LogLevel
from agent.model import BackendRef, BackendState, Config, Service, ServiceState
from agent.state import zones
from agent.state.eligibility import CONFIGURED, Eligibility
from agent.state.journal import Line
from agent.state.situation import Past, Situation, state_of
from agent.state.slowstart import SLOW_START
from agent.weights.influence import HASTY, LEARNED

_BAD = (BackendState.DOWN, BackendState.EJECTED, BackendState.UNREACHABLE)


def transitions(
    past: Past, before: Situation | None, after: Situation, part: Config
) -> tuple[Line, ...]:
    """Return lines for what has changed in ``after``, for the services of ``part``.

    ``past``: the states known so far, including those from before a restart; ``before``: the last
    situation of this agent.
    """
    lines: list[Line] = []
    for service in part.services:
        refs = [BackendRef(service.name, backend.name) for backend in service.backends]
        moved = [ref for ref in refs if _has_moved(ref, past, before, after)]
        if moved:
            lines += _of_backends(service, moved, past, before, after)
        was = past.services.get(service.name)
        now = after.services[service.name].state
        if was is not None and was.state is not now:
            _, why = state_of(service, after.verdicts)
            fields = {"service": service.name, "old": was.state.value, "new": now.value, "why": why}
            lines.append(Line(_level(was.state, now), "service", fields))
    return tuple(lines)


def _level(old: ServiceState, new: ServiceState) -> LogLevel:
    if new is ServiceState.DOWN:
        return LogLevel.ERROR
    got_worse = new is ServiceState.DEGRADED and old is ServiceState.UP
    return LogLevel.WARNING if got_worse else LogLevel.INFO


def _has_moved(ref: BackendRef, past: Past, before: Situation | None, after: Situation) -> bool:
    was = past.backends.get(ref)
    if was is None:
        return False  # it is new, and the change that added it was logged
    if was.state is not after.backends[ref].state:
        return True
    old = before.verdicts.get(ref) if before else None
    return old is not None and _is_reweighed(old, after.verdicts[ref])


def _is_reweighed(old: Eligibility, new: Eligibility) -> bool:
    """Return whether the reasons for the weight have changed.

    The end of a slow start is not worth a line, and changes by learned speed are logged elsewhere.
    """
    return _reasons(old) != _reasons(new)


def _reasons(verdict: Eligibility) -> set[str]:
    ignored = {CONFIGURED, SLOW_START, LEARNED, HASTY}
    return set(verdict.weight_reason.split(", ")) - ignored


def _of_backends(
    service: Service,
    moved: list[BackendRef],
    past: Past,
    before: Situation | None,
    after: Situation,
) -> Iterator[Line]:
    shares_before = _shares(service, before)
    shares_after = _shares(service, after) or {}
    taking = sum(after.verdicts[BackendRef(service.name, b.name)].usable for b in service.backends)
    for ref in moved:
        share = _percent(shares_after.get(ref.backend, 0.0))
        if shares_before is not None and ref.backend in shares_before | shares_after:
            share = f"{_percent(shares_before.get(ref.backend, 0.0))} → {share}"
        effect = (
            f"{share} of new connections; {taking} of {len(service.backends)} backends get some"
        )
        verdict, was = after.verdicts[ref], past.backends[ref].state
        fields: dict[str, object] = {"backend": str(ref)}
        if was is not verdict.state:
            level = LogLevel.WARNING if verdict.state in _BAD else LogLevel.INFO
            fields |= {"old": was.value, "new": verdict.state.value, "why": verdict.reason}
            yield Line(level, "backend", fields | {"effect": effect})
        elif before is not None:
            old = before.verdicts[ref]
            fields |= {"old": old.weight, "new": verdict.weight, "why": verdict.weight_reason}
            yield Line(LogLevel.INFO, "weight", fields | {"effect": effect})


def _shares(service: Service, seen: Situation | None) -> dict[str, float] | None:
    """Return the shares of new connections that the service's backends get, by name, for clients
    that are in no zone; None: the service did not exist.
    """
    if seen is None:
        return None
    known = next((each for each in seen.config.services if each.name == service.name), None)
    if known is None:
        return None
    found = [seen.verdicts[BackendRef(known.name, backend.name)] for backend in known.backends]
    return zones.expected(zones.levels(known, found, None))


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
