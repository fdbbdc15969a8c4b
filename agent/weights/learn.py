"""Decides what a backend's own answers say about its speed. Pure.

The packet path samples requests: the load that waited at the backend when a request came, and the
time to the first byte of its answer. A line through the samples says what a request costs *at a
given load*, so a backend that gets less to do does not look faster than it is. Old samples count
less and less. After a sudden change, such as a GPU that throttles, all recent answers take longer
than the line says, by some factor. Then the samples from before the change are forgotten at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from agent.weights.fit import MAD_TO_SIGMA, Floats, Line, fit, weighted_median

HALF_LIFE_S = 60.0  # a sample this old counts half
FORGOTTEN_S = 6 * HALF_LIFE_S
KEPT = 256  # samples per backend, which bounds the memory
# Of samples that came together, so many are kept: they met the same batch and say the same.
KEPT_EACH_TIME = 16
ENOUGH = 6  # samples, weighted by age; with fewer, nothing is known

# Samples beyond these are invalid.
LONGEST_S = 600.0
_LARGEST_BYTES = float(1 << 33)
_MOST_CONNECTIONS = float(1 << 24)

_DOUBT = 0.4  # the relative error at which confidence is a half; servers may well differ by so much
_MEDIAN_ERROR = 1.25  # the ratio of a median's standard error to a mean's
_MOST_ALIKE = 0.95  # correlation of neighbours, at most

# A change is found by comparing recent samples with all older ones. The longer of the two periods
# is for backends with few samples.
_RECENT_S = (12.0, 30.0)
_RECENT_LEAST = 8  # samples
_OLDER_LEAST = 12
_CHANGE = math.log(1.35)  # smaller changes show as old samples lose their weight
_CHANGE_ERRORS = 4.0  # a change must also be this many standard errors

_TIME, _WAITING, _OPEN, _SECONDS = range(4)  # columns of Learner.rows


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Answered requests of one backend: arrays of one length, the oldest answer first."""

    ahead: Floats  # request bytes that waited at the backend when the request came
    bytes: Floats  # bytes of the request itself
    open: Floats  # open connections, including its own
    seconds: Floats  # time to the first byte of the answer

    def where(self, wanted: np.ndarray) -> Samples:
        """Return the wanted ones of them; ``wanted`` is a mask or indices."""
        return Samples(
            self.ahead[wanted], self.bytes[wanted], self.open[wanted], self.seconds[wanted]
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """How fast a backend is, and how sure that is (``confidence``, 0 to 1).

    ``waiting_bytes`` and ``open`` are the usual load that its requests meet, including their own.
    Of ``seconds_per_connection`` and ``base_seconds``, which bytes do not explain, only the sum at
    that load is known well.
    """

    seconds_per_byte: float
    seconds_per_connection: float
    base_seconds: float
    confidence: float
    samples: float  # weighted by age: one that is 60 s old counts half
    waiting_bytes: float
    open: float

    def seconds(self, waiting_bytes: float, connections: float) -> float:
        """Return the expected seconds to the first byte at that load."""
        return (
            self.seconds_per_byte * waiting_bytes
            + self.seconds_per_connection * connections
            + self.base_seconds
        )


UNKNOWN = Estimate(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """What is remembered about one backend; start with ``Learner()``. ``rows``: shape (n, 4)."""

    rows: Floats = field(default_factory=lambda: np.empty((0, 4)))
    line: Line | None = None
    changed_s: float | None = None  # when the last sudden change was noticed
    estimate: Estimate = UNKNOWN


def learn(state: Learner, samples: Samples, now_s: float) -> Learner:
    """Return the state with new samples. Call it about once a second, even without samples."""
    fresh = _valid(samples, now_s)
    rows = np.concatenate((state.rows, fresh))
    # A clock that was set back must not keep samples for ever.
    rows[:, _TIME] = np.minimum(rows[:, _TIME], now_s)
    rows = rows[now_s - rows[:, _TIME] < FORGOTTEN_S][-KEPT:]
    if len(rows) == 0:
        return Learner(changed_s=state.changed_s)
    line, changed_s = state.line, state.changed_s
    if len(fresh):
        line = _line(rows, now_s, line)
        changed = _since_change(rows, line, now_s)
        if changed is not None:
            rows, changed_s = changed, now_s
            line = _line(rows, now_s, line)
    return Learner(rows, line, changed_s, _estimate(rows, line, now_s))


def _valid(samples: Samples, now_s: float) -> Floats:
    """Return samples as rows of shape (n, 4), without invalid ones, and thinned evenly."""
    waiting = samples.ahead + samples.bytes
    times = np.full(len(waiting), now_s)
    rows = np.stack((times, waiting, samples.open, samples.seconds), axis=1)
    # The comparisons are written so that NaN is not good.
    good = (samples.seconds > 0) & (samples.seconds <= LONGEST_S)
    good &= (waiting >= 0) & (waiting <= _LARGEST_BYTES)
    good &= (samples.open >= 0) & (samples.open <= _MOST_CONNECTIONS)
    rows = rows[good]
    if len(rows) > KEPT_EACH_TIME:
        rows = rows[np.linspace(0, len(rows) - 1, KEPT_EACH_TIME).astype(int)]
    return rows


def _ages_weigh(rows: Floats, now_s: float) -> Floats:
    weights: Floats = np.exp2((rows[:, _TIME] - now_s) / HALF_LIFE_S)
    return weights


def _line(rows: Floats, now_s: float, before: Line | None) -> Line:
    weights = _ages_weigh(rows, now_s)
    return fit(rows[:, _WAITING], rows[:, _OPEN], rows[:, _SECONDS], weights, before)


def _since_change(rows: Floats, line: Line, now_s: float) -> Floats | None:
    """Return the rows since a sudden change; None: there was none."""
    off = _off(rows, line)
    for recent_s in _RECENT_S:
        count = max(_RECENT_LEAST, int((rows[:, _TIME] > now_s - recent_s).sum()))
        if len(rows) >= count + _OLDER_LEAST and _differ(off[:-count], off[-count:]):
            # The median of the recent samples has moved, so at least their newer half is from
            # after the change.
            return rows[-max(ENOUGH, count // 2) :]
    return None


def _differ(before: Floats, after: Floats) -> bool:
    """Return whether the median has moved by more than chance explains."""
    middle = _median(before)
    by = abs(_median(after) - middle)
    if by < _CHANGE:
        return False
    scatter = MAD_TO_SIGMA * _median(np.abs(before - middle))
    each = 1 / len(before) + 1 / len(after)
    error = _MEDIAN_ERROR * scatter * math.sqrt(each / _independent(before - middle))
    return by >= _CHANGE_ERRORS * error


def _off(rows: Floats, line: Line) -> Floats:
    """Return the natural logarithm of each sample's time relative to the line."""
    off: Floats = np.log(rows[:, _SECONDS] / line.at(rows[:, _WAITING], rows[:, _OPEN]))
    return off


def _independent(off: Floats) -> float:
    """Return the share of samples that count as independent: neighbours met the same batch, and say
    the same.
    """
    off = np.clip(off, -1, 1)  # a single outlier must not hide how alike the others are
    squares = float(off @ off)
    if squares <= 0:
        return 1.0
    alike = min(max(float(off[1:] @ off[:-1]) / squares, 0.0), _MOST_ALIKE)
    return (1 - alike) / (1 + alike)


def _median(values: Floats) -> float:
    """Return the median, the upper one of two. NumPy's own function takes ten times as long."""
    middle = len(values) // 2
    return float(np.partition(values, middle)[middle])


def level_error(confidence: float) -> float:
    """Return the relative standard error that a confidence stands for."""
    if confidence <= 0:
        return math.inf
    return _DOUBT * math.sqrt(1 / min(confidence, 1.0) - 1)


def _estimate(rows: Floats, line: Line | None, now_s: float) -> Estimate:
    if line is None:
        return UNKNOWN
    weights = _ages_weigh(rows, now_s)
    count = float(weights.sum())
    independent = count * _independent(_off(rows, line))
    error = _MEDIAN_ERROR * line.scatter / math.sqrt(independent)
    confidence = 1 / (1 + (error / _DOUBT) ** 2) if count >= ENOUGH else 0.0
    return Estimate(
        seconds_per_byte=line.seconds_per_byte,
        seconds_per_connection=line.seconds_per_connection,
        base_seconds=line.base_seconds,
        confidence=confidence,
        samples=count,
        waiting_bytes=weighted_median(rows[:, _WAITING], weights),
        open=weighted_median(rows[:, _OPEN], weights),
    )
