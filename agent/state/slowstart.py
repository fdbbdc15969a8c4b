"""Decides the effective weight of backends that have just come up: slow start. Pure.

A backend that comes up begins at a tenth of its weight and reaches its full weight in equal steps
over ``slow_start``. Weights only say how new flows are shared, so what matters is how far a
backend has got relative to the others: the weights of a service are scaled until the backend that
is furthest has its full weight. So if all backends of a service start together, flows are shared
as configured from the first one; a backend that comes back alone gets everything; and a new
backend is spared only while a warmer one is present.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from agent.model import BackendRef, BackendState, Config, Service
from agent.state.eligibility import CONFIGURED, IN_SPITE, Eligibility
from agent.state.identities import Member, member_of

STEPS = 10
SLOW_START = "slow start"
ALWAYS = -math.inf  # up since before the agent first looked


def effective_weight(configured: int, up_since: float, slow_start_s: float, now: float) -> int:
    """Return the weight of a backend by itself.

    It is at least 1, and grows by at least a tenth of the configured weight at a time.
    """
    step, count = _steps(configured)
    if slow_start_s <= 0 or now - up_since >= slow_start_s:
        return configured
    done = math.floor(max(now - up_since, 0.0) / slow_start_s * count)
    return min((done + 1) * step, configured)


def _steps(configured: int) -> tuple[int, int]:
    """Return the size of a step, and the number of steps."""
    step = max(1, math.ceil(configured / STEPS))
    return step, max(1, math.ceil(configured / step))


def _next_step_s(configured: int, up_since: float, slow_start_s: float, now: float) -> float | None:
    """Return the seconds until the weight grows; None: it has reached its full value."""
    _, count = _steps(configured)
    if slow_start_s <= 0 or now - up_since >= slow_start_s:
        return None
    done = math.floor(max(now - up_since, 0.0) / slow_start_s * count)
    return up_since + (done + 1) * slow_start_s / count - now


def follow(
    config: Config,
    found: Mapping[BackendRef, Eligibility],
    before: Mapping[Member, float],
    now: float,
) -> dict[Member, float]:
    """Return since when each backend has been up; those that were up before keep their time."""
    return {
        member: before.get(member, now)
        for service in config.services
        for member, _, verdict in _members(service, found)
        if verdict.state is BackendState.UP
    }


def slowed(
    config: Config,
    found: Mapping[BackendRef, Eligibility],
    up_since: Mapping[Member, float],
    now: float,
) -> dict[BackendRef, Eligibility]:
    """Return the verdicts with the weights at ``now``."""
    result = dict(found)
    for service in config.services:
        if service.slow_start_s <= 0:
            continue
        weights = {
            ref: (
                verdict.weight,
                effective_weight(
                    verdict.weight, up_since.get(member, now), service.slow_start_s, now
                ),
            )
            for member, ref, verdict in _members(service, found)
            if verdict.usable and verdict.weight_reason not in IN_SPITE
        }
        furthest = max((weight / full for full, weight in weights.values()), default=1.0)
        for ref, (full, weight) in weights.items():
            scaled = min(round(weight / furthest), full)
            if scaled < full:
                result[ref] = replace(
                    found[ref], weight=scaled, weight_reason=_reason(found[ref].weight_reason)
                )
    return result


def _reason(before: str) -> str:
    return SLOW_START if before == CONFIGURED else f"{SLOW_START}, {before}"


def next_steps_s(
    config: Config,
    found: Mapping[BackendRef, Eligibility],
    up_since: Mapping[Member, float],
    now: float,
) -> dict[str, float]:
    """Return, by service, the seconds until one of its weights grows; others are left out."""
    result = {}
    for service in config.services:
        if service.slow_start_s <= 0:
            continue
        waits = (
            _next_step_s(verdict.weight, up_since[member], service.slow_start_s, now)
            for member, _, verdict in _members(service, found)
            if verdict.usable and member in up_since
        )
        wait = min((wait for wait in waits if wait is not None), default=None)
        if wait is not None:
            result[service.name] = wait
    return result


def _members(
    service: Service, found: Mapping[BackendRef, Eligibility]
) -> Iterator[tuple[Member, BackendRef, Eligibility]]:
    for backend in service.backends:
        ref = BackendRef(service.name, backend.name)
        yield member_of(service, backend), ref, found[ref]
