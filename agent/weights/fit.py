"""Fits a line to a backend's samples that says how fast the backend is; the fit is robust. Pure.

The model for the seconds to the first byte is ``per_byte x waiting + per_connection x open +
base``. Errors count relative to the expected time, so that long prompts do not outvote short ones.
Samples far from the line count little (Huber): a slow client, an image, a cached prompt. No part is
negative. Parts that the samples cannot separate stay as they were, because a few imaginary samples
on the previous line are part of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.float64]

_FIRST_ROUNDS = 6  # iterations for a first line; later calls do one, starting from the last line
_PRIOR_SAMPLES = 2.0  # how many imaginary samples hold each part of the line in place
# In units of the scatter: samples with larger errors count less. This value has an efficiency of
# 95 % on normally distributed samples.
_HUBER = 1.345
MAD_TO_SIGMA = 1.4826
_LEAST_SCATTER = 0.02  # share of the expected time; samples with less scatter are implausibly alike
_LEAST_SECONDS = 1e-5
_LEAST_SHARE = 0.1  # of the time at the mean load: no expected time is taken to be less than that
# How the first line divides a typical time among bytes, connections and the rest.
_FIRST_PARTS = (0.5, 0.1, 0.4)


@dataclass(frozen=True, slots=True)
class Line:
    """The time to the first byte; ``scatter`` is the usual error as a share of that time."""

    seconds_per_byte: float
    seconds_per_connection: float
    base_seconds: float
    scatter: float

    def at(self, waiting: Floats, connections: Floats) -> Floats:
        """Return the expected seconds, which are never quite zero."""
        seconds = (
            self.seconds_per_byte * waiting
            + self.seconds_per_connection * connections
            + self.base_seconds
        )
        return np.maximum(seconds, _LEAST_SECONDS)


def fit(
    waiting: Floats, connections: Floats, seconds: Floats, weights: Floats, before: Line | None
) -> Line:
    """Return the line through samples; there must be at least one, with a weight above zero."""
    # Each part is scaled to what it adds to the time at the mean load, so that all parts have
    # similar sizes.
    columns = np.stack((waiting, connections, np.ones_like(waiting)), axis=1)
    means = weights @ columns / weights.sum()
    scale = np.maximum(means, 1.0)  # less than one byte or connection allows no conclusion
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
    # Whatever the samples are, the time at the mean load is not more than that of the slowest
    # answer.
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
    """Return what one unit of each column adds to the seconds, by the same fit, for any columns.

    ``columns`` has the shape (samples, parts). There is no previous line, and no part is negative.
    ``first``: how a usual time is divided among the parts at first. ``trusted_to``: in units of the
    scatter, the error from which on a sample counts less.
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
    """Return the value below which half of the weight lies."""
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
    """Return improved parts, and the scatter of the samples around the given ones."""
    least = max(_LEAST_SHARE * parts.sum(), _LEAST_SECONDS)
    expected = np.maximum(columns @ parts, least)
    errors = np.abs(seconds / expected - 1)
    scatter = max(MAD_TO_SIGMA * weighted_median(errors, weights), least_scatter)
    trusted = weights * np.minimum(1, trusted_to * scatter / np.maximum(errors, 1e-9))
    return _solve(columns, seconds, trusted / expected**2, prior), scatter


def _solve(columns: Floats, seconds: Floats, weights: Floats, prior: Floats) -> Floats:
    """Solve weighted least squares with a prior; parts that would be negative are zero."""
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
