"""Reads the histograms of times: how long backends took for the first byte and the handshake.

The packet path counts each time in a bucket of half an octave (``struct backend_latency``). The
counts give quantiles of the last minute, exact to within a bucket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.tables import Table
from agent.state.roster import Numbers
from agent.state.snapshot import Latency, RecentTimes

type Counts = npt.NDArray[np.uint64]  # by bucket
type Nanoseconds = npt.NDArray[np.int64]

FIRST_US = 64
WINDOW_S = 60.0
STEP_S = 10.0  # between two readings that a window keeps
FIELDS = FIRST_BYTE, HANDSHAKE = "first_byte", "handshake"
# A request that has waited PATIENCE_TIMES as long as the slowest hundredth of a backend's answers
# will hardly be answered. But engines have bad minutes, so it may wait LEAST_PATIENCE_S in any
# case. Nothing is known about a backend that has answered fewer than _KNOWN_FROM.
PATIENCE_TIMES = 8
LEAST_PATIENCE_S, MOST_PATIENCE_S = 60.0, 900.0
_KNOWN_FROM = 20
_NO_ROWS = np.zeros(0, abi.BACKEND_LATENCY)


def bucket_bounds_us() -> tuple[int, ...]:
    """Return where each bucket begins, in microseconds; the last has no end."""
    octaves = range(abi.LATENCY_BUCKETS // 2)
    bounds = [0, *(bound for k in octaves for bound in (FIRST_US << k, (FIRST_US << k) * 3 // 2))]
    return tuple(bounds[: abi.LATENCY_BUCKETS])


BOUNDS_US = bucket_bounds_us()
BUCKETS = len(BOUNDS_US)
_BEFORE_ENDS = slice(0, BUCKETS - 1, 2)  # the last bucket before the end of each octave
OCTAVE_ENDS_S = tuple(BOUNDS_US[end + 1] / 1e6 for end in range(BUCKETS)[_BEFORE_ENDS])
_NO_TIMES = Latency(octaves=(0,) * len(OCTAVE_ENDS_S))


def quantile_ms(counts: Counts, share: float) -> float | None:
    """Return the time, in milliseconds, that this share (0 to 1) of the counted ones was below.

    None if there are none. Within a bucket, times are taken to be spread evenly on a log scale. Of
    the last bucket only its beginning is known.
    """
    total = int(counts.sum())
    if not total:
        return None
    wanted = share * total
    upto = np.cumsum(counts)
    bucket = int(np.searchsorted(upto, wanted))
    if bucket >= len(BOUNDS_US) - 1:
        return BOUNDS_US[-1] / 1000
    low, high = float(BOUNDS_US[bucket]), float(BOUNDS_US[bucket + 1])
    inside = (wanted - float(upto[bucket] - counts[bucket])) / float(counts[bucket])
    if bucket == 0:  # it begins at zero, which a log scale does not have
        return high * inside / 1000
    return low * math.pow(high / low, inside) / 1000


def above(counts: Numbers, limit_s: float) -> float:
    """Return how many of the counted times were longer than ``limit_s``.

    Times are spread within a bucket as in ``quantile_ms``. ``limit_s`` must be below the beginning
    of the last bucket, which is 134 s.
    """
    limit_us = limit_s * 1e6
    bucket = int(np.searchsorted(BOUNDS_US, limit_us, side="right")) - 1
    beyond = float(counts[bucket + 1 :].sum())
    low, high = float(BOUNDS_US[bucket]), float(BOUNDS_US[bucket + 1])
    below = limit_us / high if bucket == 0 else math.log(limit_us / low) / math.log(high / low)
    return beyond + float(counts[bucket]) * (1 - below)


def patience_ns(rows: Table) -> Nanoseconds:
    """Return how long a request may wait at each of these backends before its bytes stop counting,
    in nanoseconds.
    """
    counts = rows[FIRST_BYTE]
    upto = np.cumsum(counts, axis=1, dtype=np.int64)
    total = upto[:, -1]
    bucket = np.argmax(upto >= np.ceil(0.99 * total)[:, np.newaxis], axis=1)
    ends_s = np.array([*BOUNDS_US[1:], BOUNDS_US[-1] * 2]) / 1e6
    wanted_s = np.where(total < _KNOWN_FROM, MOST_PATIENCE_S, PATIENCE_TIMES * ends_s[bucket])
    seconds = np.clip(wanted_s, LEAST_PATIENCE_S, MOST_PATIENCE_S)
    found: Nanoseconds = (seconds * 1e9).astype(np.int64)
    return found


def octaves(counts: Counts) -> tuple[int, ...]:
    """Return the counts of times up to each of OCTAVE_ENDS_S: a Prometheus histogram."""
    return tuple(np.cumsum(counts)[_BEFORE_ENDS].tolist())


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read at one time (of any clock that only goes forward, in seconds).

    ``known``: whether there was a backend, by id. ``rows``: those of the ids in ``moved``, whose
    rows differ from those of the reading before.
    """

    at: float
    known: npt.NDArray[np.bool_]
    moved: Numbers
    rows: Table


@dataclass(frozen=True, slots=True)
class LatencyWindow:
    """What was counted over about the last minute; feed it with ``add``.

    ``readings``: oldest first; the window begins at the first. ``begun`` and ``last`` are all rows
    at the first and at the last of them. In between, only what has moved is kept, because whole
    copies of ten thousand backends' rows are 7 MB each.
    """

    readings: tuple[_Reading, ...] = ()
    begun: Table = field(default_factory=lambda: _NO_ROWS)
    last: Table = field(default_factory=lambda: _NO_ROWS)

    def is_due(self, at: float) -> bool:
        """Return whether it is time to ``add`` a reading."""
        return not self.readings or at - self.readings[-1].at >= STEP_S

    def add(self, at: float, table: Table, ids: Numbers) -> Self:
        """Return the window with the rows of these backends, read at ``at``."""
        now = table.copy()
        known = np.zeros(len(now), np.bool_)
        known[ids] = True
        if not self.readings:
            return type(self)((_Reading(at, known, ids[:0], now[:0]),), now, now)
        moved = np.flatnonzero((_bytes_of(now) != _bytes_of(self.last)).any(axis=1))
        readings = (*self.readings, _Reading(at, known, moved, now[moved]))
        # The window starts at the newest reading that is outside of it.
        outside = sum(1 for each in self.readings if each.at <= at - WINDOW_S)
        first = max(0, outside - 1)
        begun = self.begun.copy() if first else self.begun
        for each in readings[1 : first + 1]:
            begun[each.moved] = each.rows
        return type(self)(readings[first:], begun, now)

    def before(self, ids: Numbers, kind: str) -> Numbers:
        """Return the counts (of the field ``kind``) of these backends when the window began: a row
        for each; zeros for a backend that did not exist then.
        """
        if not self.readings:
            return np.zeros((len(ids), BUCKETS), np.int64)
        known = self.readings[0].known[ids]
        return np.where(known[:, np.newaxis], self.begun[kind][ids].astype(np.int64), 0)


def _bytes_of(table: Table) -> npt.NDArray[np.uint8]:
    """Return the bytes of each row."""
    return table.view(np.uint8).reshape(len(table), -1)


def recent(table: Table, window: LatencyWindow, ids: Numbers, kind: str) -> Numbers:
    """Return what these backends have counted since the window began: a row of buckets for each.

    A backend whose counts went back has started again at 0.
    """
    now = table[kind][ids].astype(np.int64)
    grown = now - window.before(ids, kind)
    return np.where((grown < 0).any(axis=1)[:, np.newaxis], now, grown)


def recent_first_bytes(table: Table, window: LatencyWindow, ids: Numbers) -> Numbers:
    """Return the answers of the last minute, a row of buckets for each of these backends."""
    return recent(table, window, ids, FIRST_BYTE)


def together(rows: Numbers) -> RecentTimes:
    """Return count and quantiles of the backends' rows of buckets, taken together."""
    counts: Counts = rows.sum(axis=0).astype(np.uint64)
    return RecentTimes(int(counts.sum()), quantile_ms(counts, 0.5), quantile_ms(counts, 0.99))


def p95_s(table: Table, window: LatencyWindow, ids: Numbers) -> float | None:
    """Return the time in seconds within which 95 % of the last minute's answers of these backends
    began; None: there were none.
    """
    counts: Counts = recent_first_bytes(table, window, ids).sum(axis=0).astype(np.uint64)
    found_ms = quantile_ms(counts, 0.95)
    return None if found_ms is None else found_ms / 1000


def p99_buckets(table: Table, window: LatencyWindow, ids: Numbers) -> Numbers:
    """Return the bucket in which the slowest hundredth of each backend's answers of the last minute
    begins; -1 if there were none.

    It serves to rank thousands of backends at once.
    """
    upto = np.cumsum(recent_first_bytes(table, window, ids), axis=1)
    total = upto[:, -1]
    buckets = np.argmax(upto >= 0.99 * total[:, np.newaxis], axis=1)
    return np.where(total > 0, buckets, -1)


def summary(table: Table, window: LatencyWindow, ident: int, kind: str) -> Latency:
    """Return one kind of times of a backend, for display."""
    counts: Counts = table[kind][ident]
    if not counts.any():
        return _NO_TIMES
    grown: Counts = recent(table, window, np.array([ident]), kind)[0].astype(np.uint64)
    return Latency(
        octaves=octaves(counts),
        count=int(counts.sum()),
        sum_s=int(table[f"{kind}_us"][ident]) / 1e6,
        recent_count=int(grown.sum()),
        recent_p50_ms=quantile_ms(grown, 0.5),
        recent_p99_ms=quantile_ms(grown, 0.99),
    )
