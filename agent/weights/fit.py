"""Decides which line through a backend's samples says how fast it is: a robust fit. Pure.

Seconds to the first byte are taken as ``per_byte x waiting + per_connection x open + base``. Errors
count in proportion to the time expected, so that long prompts do not outvote short ones, and a
sample far from the line counts little (Huber): a slow client, an image, a cached prompt. No part
is negative. What the samples cannot tell apart stays as it was before: a few imaginary samples lie
on the line that was there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.float64]

_FIRST_ROUNDS = 6  # of a line from nothing; later ones go on from the last, one a call
_PRIOR_SAMPLES = 2.0  # as many imaginary ones hold each part of the line
_HUBER = 1.345  # of the scatter: beyond it a sample counts less; 95 % as good on clean ones
MAD_TO_SIGMA = 1.4826
_LEAST_SCATTER = 0.02  # of the time expected; below it, samples are too alike to be true
_LEAST_SECONDS = 1e-5
_LEAST_SHARE = 0.1  # of the time at the mean load: nothing is taken to be much faster than that
# How the first line divides a typical time among bytes, connections and the rest.
_FIRST_PARTS = (0.5, 0.1, 0.4)


@dataclass(frozen=True, slots=True)
class Line:
    """What a first byte takes; ``scatter`` is the usual error as a share of the time expected."""

    seconds_per_byte: float
    seconds_per_connection: float
    base_seconds: float
    scatter: float

    def at(self, waiting: Floats, connections: Floats) -> Floats:
        """The seconds expected, never quite zero."""
        seconds = (
            self.seconds_per_byte * waiting
            + self.seconds_per_connection * connections
            + self.base_seconds
        )
        return np.maximum(seconds, _LEAST_SECONDS)


def fit(
    waiting: Floats, connections: Floats, seconds: Floats, weights: Floats, before: Line | None
) -> Line:
    """The line through samples; there must be at least one, with a weight above zero."""
    # Each part is measured by what it adds to the time at the mean load: then all are alike.
    columns = np.stack((waiting, connections, np.ones_like(waiting)), axis=1)
    means = weights @ columns / weights.sum()
    scale = np.maximum(means, 1.0)  # of less than a byte or a connection nothing is learned
    columns /= scale
    if before is None:
        typical = weighted_median(seconds, weights)
        parts = typical * np.array(_FIRST_PARTS) * (means >= 1.0)
    else:
        parts = scale * (
            before.seconds_per_byte,
            before.seconds_per_connection,
            before.base_seconds,
        )
    prior = parts
    scatter = 1.0
    for _ in range(1 if before else _FIRST_ROUNDS):
        parts, scatter = _round(columns, seconds, weights, parts, prior, _HUBER, _LEAST_SCATTER)
    # At the mean load no more than the longest answer took, whatever the samples are.
    parts *= min(1.0, seconds.max() / max(parts.sum(), _LEAST_SECONDS))
    per_byte, per_connection, base = (parts / scale).tolist()
    return Line(per_byte, per_connection, base, scatter)


def parts_of(
    columns: Floats,
    seconds: Floats,
    weights: Floats,
    first: tuple[float, ...],
    *,
    trusted_to: float = _HUBER,
    least_scatter: float = _LEAST_SCATTER,
) -> Floats:
    """What one of each column adds to the seconds, none of it negative: the same fit, from
    nothing, for any columns. ``first``: how a usual time may be divided among them; ``trusted_to``:
    of the scatter, from where on a sample counts less.
    """
    means = weights @ columns / weights.sum()
    scale = np.maximum(means, 1e-9)
    columns = columns / scale
    parts = prior = weighted_median(seconds, weights) * np.array(first) * (means > 0)
    for _ in range(_FIRST_ROUNDS):
        parts, _ = _round(columns, seconds, weights, parts, prior, trusted_to, least_scatter)
    found: Floats = parts / scale
    return found


def weighted_median(values: Floats, weights: Floats) -> float:
    """The value that half of the weight lies below."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(below, below[-1] / 2)]])


def _round(
    columns: Floats,
    seconds: Floats,
    weights: Floats,
    parts: Floats,
    prior: Floats,
    trusted_to: float,
    least_scatter: float,
) -> tuple[Floats, float]:
    """Better parts than these, and the scatter of the samples around these."""
    least = max(_LEAST_SHARE * parts.sum(), _LEAST_SECONDS)
    expected = np.maximum(columns @ parts, least)
    errors = np.abs(seconds / expected - 1)
    scatter = max(MAD_TO_SIGMA * weighted_median(errors, weights), least_scatter)
    trusted = weights * np.minimum(1, trusted_to * scatter / np.maximum(errors, 1e-9))
    return _solve(columns, seconds, trusted / expected**2, prior), scatter


def _solve(columns: Floats, seconds: Floats, weights: Floats, prior: Floats) -> Floats:
    """Weighted least squares with a prior; parts that would be negative are zero."""
    weighted = columns * weights[:, None]
    hold = _PRIOR_SAMPLES * weights.mean()
    matrix = weighted.T @ columns + hold * np.eye(len(prior))
    target = weighted.T @ seconds + hold * prior
    parts = np.linalg.solve(matrix, target)
    free = np.ones(len(prior), dtype=bool)
    while (parts < 0).any():
        free &= parts > 0
        parts = np.zeros_like(prior)
        if not free.any():
            break
        parts[free] = np.linalg.solve(matrix[np.ix_(free, free)], target[free])
    return parts
