"""Decides what a backend's own answers say about its speed. Pure.

The packet path samples requests: what waited at the backend when each came, and the time to the
first byte of its answer. A line through them says what a request costs *at a given load*, so a
backend that gets less to do does not look faster than it is. Old samples count less and less. A
sudden change, such as a GPU that throttles, shows as recent answers that all take some factor more
than the line says: then what was before it is forgotten at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from agent.weights.fit import MAD_TO_SIGMA, Floats, Line, fit, weighted_median

HALF_LIFE_S = 60.0  # a sample this old counts half
FORGOTTEN_S = 6 * HALF_LIFE_S
KEPT = 256  # samples of a backend; they bound the memory that it takes
KEPT_EACH_TIME = 16  # of those that came together: they met the same batch and tell the same
ENOUGH = 6  # samples, by age; with less, nothing is known

# Beyond these, a sample is none.
LONGEST_S = 600.0
_LARGEST_BYTES = float(1 << 33)
_MOST_CONNECTIONS = float(1 << 24)

_DOUBT = 0.4  # the error with which confidence is a half: servers may well differ so much
_MEDIAN_ERROR = 1.25  # standard error of a median, by that of a mean
_MOST_ALIKE = 0.95  # correlation of neighbours

# A change is looked for in what is recent, beside all that is older; the longer time shows the
# changes of backends with few samples.
_RECENT_S = (12.0, 30.0)
_RECENT_LEAST = 8  # samples
_OLDER_LEAST = 12
_CHANGE = math.log(1.35)  # smaller ones come through forgetting
_CHANGE_ERRORS = 4.0  # and it is this many standard errors

_TIME, _WAITING, _OPEN, _SECONDS = range(4)  # columns of Learner.rows


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Answered requests of one backend: arrays of one length, the oldest answer first."""

    ahead: Floats  # request bytes that waited at the backend when the request came
    bytes: Floats  # its own
    open: Floats  # connections, its own included
    seconds: Floats  # to the first byte of the answer

    def where(self, wanted: np.ndarray) -> Samples:
        """Those of them."""
        return Samples(
            self.ahead[wanted], self.bytes[wanted], self.open[wanted], self.seconds[wanted]
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """How fast a backend is, and how much of that is known (``confidence``, 0 to 1).

    ``waiting_bytes`` and ``open`` are what its requests meet as a rule, their own included. Of the
    two parts that bytes do not explain only the sum at that load is known well.
    """

    seconds_per_byte: float
    seconds_per_connection: float
    base_seconds: float
    confidence: float
    samples: float  # by age: one that is 60 s old is half a sample
    waiting_bytes: float
    open: float

    def seconds(self, waiting_bytes: float, connections: float) -> float:
        """To the first byte, expected at that load."""
        return (
            self.seconds_per_byte * waiting_bytes
            + self.seconds_per_connection * connections
            + self.base_seconds
        )


UNKNOWN = Estimate(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """What is remembered of one backend; start with ``Learner()``."""

    rows: Floats = field(default_factory=lambda: np.empty((0, 4)))
    line: Line | None = None
    changed_s: float | None = None  # when the last sudden change was noticed
    estimate: Estimate = UNKNOWN


def learn(state: Learner, samples: Samples, now_s: float) -> Learner:
    """Take in what came since the last time; call it about once a second, samples or none."""
    came = _valid(samples, now_s)
    rows = np.concatenate((state.rows, came))
    # A clock that was set back must not keep samples for ever.
    rows[:, _TIME] = np.minimum(rows[:, _TIME], now_s)
    rows = rows[now_s - rows[:, _TIME] < FORGOTTEN_S][-KEPT:]
    if len(rows) == 0:
        return Learner(changed_s=state.changed_s)
    line, changed_s = state.line, state.changed_s
    if len(came):
        line = _line(rows, now_s, line)
        changed = _since_change(rows, line, now_s)
        if changed is not None:
            rows, changed_s = changed, now_s
            line = _line(rows, now_s, line)
    return Learner(rows, line, changed_s, _estimate(rows, line, now_s))


def _valid(samples: Samples, now_s: float) -> Floats:
    """Samples as rows; without those that cannot be, and thinned evenly."""
    waiting = samples.ahead + samples.bytes
    times = np.full(len(waiting), now_s)
    rows = np.stack((times, waiting, samples.open, samples.seconds), axis=1)
    # Written so that what is not a number is not good.
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
    """The rows since a sudden change; None: there was none."""
    off = _off(rows, line)
    for recent_s in _RECENT_S:
        count = max(_RECENT_LEAST, int((rows[:, _TIME] > now_s - recent_s).sum()))
        if len(rows) >= count + _OLDER_LEAST and _differ(off[:-count], off[-count:]):
            # The middle of what is recent has changed, so at least its newer half has.
            return rows[-max(ENOUGH, count // 2) :]
    return None


def _differ(before: Floats, after: Floats) -> bool:
    """Whether the middle has moved, more than by chance."""
    middle = _median(before)
    by = abs(_median(after) - middle)
    if by < _CHANGE:
        return False
    scatter = MAD_TO_SIGMA * _median(np.abs(before - middle))
    each = 1 / len(before) + 1 / len(after)
    error = _MEDIAN_ERROR * scatter * math.sqrt(each / _independent(before - middle))
    return by >= _CHANGE_ERRORS * error


def _off(rows: Floats, line: Line) -> Floats:
    """How far each sample is from the line, in powers of e."""
    off: Floats = np.log(rows[:, _SECONDS] / line.at(rows[:, _WAITING], rows[:, _OPEN]))
    return off


def _independent(off: Floats) -> float:
    """The share of samples that count: neighbours met the same batch, and tell the same."""
    off = np.clip(off, -1, 1)  # one far off must not hide how alike the others are
    squares = float(off @ off)
    if squares <= 0:
        return 1.0
    alike = min(max(float(off[1:] @ off[:-1]) / squares, 0.0), _MOST_ALIKE)
    return (1 - alike) / (1 + alike)


def _median(values: Floats) -> float:
    """The upper one of two middles: numpy's own takes ten times as long."""
    middle = len(values) // 2
    return float(np.partition(values, middle)[middle])


def level_error(confidence: float) -> float:
    """The relative standard error that a confidence stands for."""
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
