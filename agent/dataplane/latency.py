"""Reads the histograms of times: how long backends took for the first byte and the handshake.

The packet path counts each time in a bucket of half an octave (``struct backend_latency``). The
counts give quantiles of the last minute, exact to within a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.tables import Table
from agent.state.roster import Numbers
from agent.state.snapshot import Latency, RecentTimes

type Counts = npt.NDArray[np.uint64]  # by bucket
type Nanoseconds = npt.NDArray[np.int64]
type Times = npt.NDArray[np.void]  # a row of the table

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
_NOTHING = np.zeros(abi.LATENCY_BUCKETS, np.uint64)


def bucket_bounds_us() -> tuple[int, ...]:
    """Return where each bucket begins, in microseconds; the last has no end."""
    octaves = range(abi.LATENCY_BUCKETS // 2)
    bounds = [0, *(bound for k in octaves for bound in (FIRST_US << k, (FIRST_US << k) * 3 // 2))]
    return tuple(bounds[: abi.LATENCY_BUCKETS])


BOUNDS_US = bucket_bounds_us()
BUCKETS = len(BOUNDS_US)


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


def octaves(counts: Counts) -> tuple[tuple[float, int], ...]:
    """Return the counts of times up to each octave's end (seconds): a Prometheus histogram."""
    upto = np.cumsum(counts)
    ends = range(0, abi.LATENCY_BUCKETS - 1, 2)  # the last bucket before each octave
    return tuple((BOUNDS_US[end + 1] / 1e6, int(upto[end])) for end in ends)


@dataclass(frozen=True, slots=True)
class LatencyWindow:
    """What was counted over about the last minute; feed it with ``add``.

    ``readings``: the time of each (of any clock that only goes forward, in seconds) and the rows by
    backend id, oldest first.
    """

    readings: tuple[tuple[float, Mapping[int, Times]], ...] = ()

    def is_due(self, at: float) -> bool:
        """Return whether it is time to ``add`` a reading."""
        return not self.readings or at - self.readings[-1][0] >= STEP_S

    def add(self, at: float, rows: Mapping[int, Times]) -> Self:
        """Return the window with the rows read at ``at``."""
        outside = sum(1 for when, _ in self.readings if when <= at - WINDOW_S)
        # The window starts at the newest reading that is outside of it.
        return type(self)((*self.readings[max(0, outside - 1) :], (at, rows)))

    def increase(self, ident: int, field: str, now: Counts) -> Counts:
        """Return what a backend has counted since the window began.

        A backend that did not exist then, or whose counts went back, has started again at 0.
        """
        before = self.readings[0][1].get(ident) if self.readings else None
        if before is None or (now < before[field]).any():
            return now
        grown: Counts = now - before[field]
        return grown


def read(table: Table, ids: list[int]) -> dict[int, Times]:
    """Return a copy of the rows of these backends."""
    return dict(zip(ids, table[ids], strict=True))


def recent_first_bytes(table: Table, window: LatencyWindow, ids: Numbers) -> Numbers:
    """Return the answers of the last minute, a row of buckets for each of these backends."""
    now = table[FIRST_BYTE][ids].astype(np.int64)
    first = window.readings[0][1] if window.readings else {}
    before = [first[i][FIRST_BYTE] if i in first else _NOTHING for i in ids.tolist()]
    grown = now - np.array(before, np.int64).reshape(now.shape)
    return np.where((grown < 0).any(axis=1)[:, np.newaxis], now, grown)


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


def summary(row: Times, window: LatencyWindow, ident: int, field: str) -> Latency:
    """Return one kind of times (``field``) of a backend, for display."""
    counts: Counts = row[field]
    recent = window.increase(ident, field, counts)
    return Latency(
        octaves=octaves(counts),
        count=int(counts.sum()),
        sum_s=int(row[f"{field}_us"]) / 1e6,
        recent_count=int(recent.sum()),
        recent_p50_ms=quantile_ms(recent, 0.5),
        recent_p99_ms=quantile_ms(recent, 0.99),
    )
