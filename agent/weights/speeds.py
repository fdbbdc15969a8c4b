"""Decides what learned speeds mean for the weights and the bytes' worth of a service. Pure.

Backends are compared by the time that each would need to the first byte of one and the same
request at one and the same load: what the service's requests meet as a rule. Every backend has
samples near there, so nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from agent.model import BackendRef
from agent.weights.learn import Estimate, level_error

LEAST, MOST = 0.25, 4.0  # of what is configured
# Generating tokens differs less between servers than reading prompts does, and a weight too high
# costs more than one too low.
_DAMPING = 0.8
_STAYS = math.log(1.08)  # a new value must differ by this much and its error
_STEP = math.log(1.25)  # and is reached in steps of at most this much


@dataclass(frozen=True, slots=True)
class Learned:
    """For one backend; the weight is a share of the configured one, 1: as configured."""

    weight_share: float
    bytes_per_connection: int | None  # None: as configured
    confidence: float


def speeds(
    estimates: Mapping[BackendRef, Estimate],
    weights: Mapping[BackendRef, int],
    bytes_per_connection: int,
) -> dict[BackendRef, Learned]:
    """What is wanted for the backends of one service; move towards it by ``advance``."""
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
    """The next share: it stays until the wanted one differs clearly, then moves in steps.

    A new weight is a new ring, so what is but noise must not move it. What is wanted because
    nothing is known (confidence 0), or is exactly as configured, is always reached. Call it every
    few seconds.
    """
    by = math.log(wanted / previous)
    may_stay = confidence > 0 and wanted != 1.0
    if may_stay and abs(by) < _STAYS + level_error(confidence):
        return previous
    if abs(by) <= _STEP:
        return wanted
    # What is left must not be so little that it would stay: half of the way, or a step.
    return previous * math.exp(math.copysign(min(_STEP, abs(by) / 2), by))


def _worth(
    known: Mapping[BackendRef, Estimate], connections: float, bytes_per_connection: int
) -> float:
    """Bytes that weigh as one connection, as a share of what is configured.

    The score is ``waiting / beta + open + 1`` by weight, the time ``per_byte x waiting`` and a
    rest. What one connection more adds to the rest is too little to be told from noise; what all
    that are open and the base add together is known well, so it is divided among them. One value
    for all backends: their weights say how they differ.
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
    """Shares whose mean by weight is 1, as far from 1 as is known for sure."""
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
