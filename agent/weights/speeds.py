"""Decides what learned speeds mean for a service's weights and its bytes per connection. Pure.

Backends are compared by the time that each would need to the first byte of the same request at the
same load, namely the service's usual load. Every backend has samples near that load, so nothing is
extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from agent.model import BackendRef
from agent.weights.learn import Estimate, level_error

LEAST, MOST = 0.25, 4.0  # bounds, as shares of the configured value
# Servers differ less in generating tokens than in reading prompts, and a weight that is too high
# costs more than one that is too low.
_DAMPING = 0.8
_STAYS = math.log(1.08)  # a new value must differ by this much plus its error
_STEP = math.log(1.25)  # the value moves in steps of at most this much


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned for one backend. The weight is a share of the configured one."""

    weight_share: float
    bytes_per_connection: int | None  # None: as configured
    confidence: float


type Speeds = Mapping[BackendRef, Learned]


def speeds(
    estimates: Mapping[BackendRef, Estimate],
    weights: Mapping[BackendRef, int],
    bytes_per_connection: int,
) -> dict[BackendRef, Learned]:
    """Return the wanted values for the backends of one service; move to them with ``advance``."""
    known = {
        ref: estimate
        for ref, estimate in estimates.items()
        if estimate.confidence > 0 and weights.get(ref, 0) > 0
    }
    result = dict.fromkeys(estimates, Learned(1.0, None, 0.0))
    if not known:
        return result
    waiting = median(estimate.waiting_bytes for estimate in known.values())
    connections = median(estimate.open for estimate in known.values())
    worth = round(bytes_per_connection * _worth(known, connections, bytes_per_connection))
    shares = _shares(known, weights, waiting, connections)
    for ref, estimate in known.items():
        result[ref] = Learned(shares[ref], max(worth, 1), estimate.confidence)
    return result


def advance(previous: float, wanted: float, confidence: float = 1.0) -> float:
    """Return the next share: it stays until the wanted one differs clearly, then moves in steps.

    A new weight means a new ring, so mere noise must not move it. A share that is wanted because
    nothing is known (confidence 0), or that is exactly as configured, is always reached. Call it
    every few seconds.
    """
    by = math.log(wanted / previous)
    may_stay = confidence > 0 and wanted != 1.0
    if may_stay and abs(by) < _STAYS + level_error(confidence):
        return previous
    if abs(by) <= _STEP:
        return wanted
    # Move by a step, or by half of the way. The rest must not be so small that it would never be
    # covered.
    return previous * math.exp(math.copysign(min(_STEP, abs(by) / 2), by))


def _worth(
    known: Mapping[BackendRef, Estimate], connections: float, bytes_per_connection: int
) -> float:
    """Return the bytes that weigh as much as one connection, as a share of the configured value.

    The score is ``(waiting / beta + open + 1) / weight``, and the time is ``per_byte x waiting``
    plus a rest. What one more connection adds to the rest is too little to separate from noise. But
    the sum of what all open connections and the base add is known well, so it is divided among
    them. There is one value for all backends, because their weights express how they differ.
    """
    total = 0.0
    for estimate in known.values():
        rest = estimate.seconds(0, connections) / (connections + 1)
        of_bytes = estimate.seconds_per_byte * bytes_per_connection
        found = _bounded(rest / of_bytes) if of_bytes > 0 else MOST
        total += estimate.confidence * math.log(found)
    return math.exp(total / len(known))


def _shares(
    known: Mapping[BackendRef, Estimate],
    weights: Mapping[BackendRef, int],
    waiting: float,
    connections: float,
) -> dict[BackendRef, float]:
    """Return shares with a weighted mean of 1, which differ from 1 only as far as it is certain."""
    found = {
        ref: max(estimate.seconds(waiting, connections), 1e-6) ** -_DAMPING / weights[ref]
        for ref, estimate in known.items()
    }
    mean = _mean(found, weights)
    careful = {ref: _bounded(speed / mean) ** known[ref].confidence for ref, speed in found.items()}
    mean = _mean(careful, weights)
    return {ref: _bounded(share / mean) for ref, share in careful.items()}


def _mean(values: Mapping[BackendRef, float], weights: Mapping[BackendRef, int]) -> float:
    total = sum(weights[ref] for ref in values)
    return sum(value * weights[ref] for ref, value in values.items()) / total


def _bounded(value: float) -> float:
    return min(max(value, LEAST), MOST)
