"""Decides how far the packet path's sums are from the flow table, which is the truth.

The packet path adds and subtracts as flows open and close and as requests come and are answered.
What it can miss (a flow whose slot the agent freed, a scheduler that began to count in mid-life)
would stay in a sum for ever. After each survey every sum is therefore compared with the table, and
the agent writes the difference beside it: ``open_fix``, ``embryonic_fix``, ``waiting_fix``, and its
own row of the counters. It never writes the packet path's own fields.

Flows open and close while the table is read. Each comparison therefore gives a range, of which the
end nearer to zero is certain. A sum is corrected only if several surveys in a row have the same
sign, and by the smallest of their differences. A correction thus never makes a sum of flows worse,
and a table that does not change for that many surveys makes it exact.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from agent.dataplane.survey import Counts, Survey
from agent.dataplane.tables import SharedTables

SURVEYS = 4  # in a row that must agree


@dataclass(frozen=True, slots=True)
class Corrections:
    """What to add to each sum: by backend id, ``service_open`` by service id."""

    open: Counts
    embryonic: Counts
    waiting: Counts
    counted: Counts  # to opened - closed
    service_open: Counts

    @property
    def number(self) -> int:
        """How many sums are corrected."""
        return sum(int(np.count_nonzero(getattr(self, f.name))) for f in fields(self))


@dataclass(frozen=True, slots=True)
class Evidence:
    """The differences that the last surveys were certain of, newest first: a row each."""

    rows: tuple[Corrections, ...] = ()

    def add(self, found: Survey) -> tuple[Self, Corrections]:
        """Return the evidence with one more survey, and the corrections that follow from it."""
        rows = (certain(found), *self.rows)[:SURVEYS]
        corrections = Corrections(*(
            _persistent([getattr(row, f.name) for row in rows]) for f in fields(Corrections)
        ))  # fmt: skip
        # A sum that was corrected starts afresh: earlier rows are about the old sum.
        kept = tuple(
            Corrections(*(
                np.where(getattr(corrections, f.name) != 0, 0, getattr(row, f.name))
                for f in fields(Corrections)
            ))
            for row in rows
        )  # fmt: skip
        return type(self)(kept), corrections


def certain(found: Survey) -> Corrections:
    """Return the least by which each sum differed from the table when the survey began."""
    before, after = found.before, found.after
    # The survey counted the flows that were open when it began, plus some of those opened since
    # and minus some of those closed since.
    opened, closed = after.opened - before.opened, after.closed - before.closed
    least, most = found.open - opened, found.open + closed
    embryonic = found.open - found.live
    left = closed + after.established - before.established
    services = len(before.service_open)

    def by_service(values: Counts) -> Counts:
        sums = np.bincount(found.service, weights=values, minlength=services)[:services]
        return sums.astype(np.int64) - before.service_open

    service_open = _nearer(by_service(least), by_service(most))
    service_open[0] = 0  # no service
    waiting = (before.waiting, after.waiting)
    return Corrections(
        open=_nearer(least - before.open, most - before.open),
        embryonic=_nearer(
            embryonic - opened - before.embryonic, embryonic + left - before.embryonic
        ),
        waiting=_nearer(found.waiting - np.maximum(*waiting), found.waiting - np.minimum(*waiting)),
        # opened is read before closed: each end uses the reading that cannot miss any
        counted=_nearer(
            found.open - after.opened + before.closed, found.open - before.opened + after.closed
        ),
        service_open=service_open,
    )


def _nearer(low: Counts, high: Counts) -> Counts:
    """Return the end of each range that is nearer to zero; 0 if zero is in the range."""
    return np.where(low > 0, low, np.where(high < 0, high, 0))


def _persistent(rows: list[Counts]) -> Counts:
    """Return the smallest of each column; 0 unless SURVEYS rows exist and have one sign."""
    stacked = np.stack(rows)
    if len(stacked) < SURVEYS:
        return np.zeros_like(stacked[0])
    return _nearer(stacked.min(axis=0), stacked.max(axis=0))


class TrueUp:
    """Keeps the sums of one set of tables true.

    Give it every survey, in the thread that writes the tables.
    """

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self._evidence = Evidence()

    def take(self, found: Survey) -> int:
        """Correct what the surveys so far agree on; return how many sums were corrected."""
        self._evidence, corrections = self._evidence.add(found)
        if corrections.number:
            apply(self._tables, corrections)
        return corrections.number


def apply(tables: SharedTables, corrections: Corrections) -> None:
    """Add the corrections to the fields that are the agent's."""
    tables.backend_load["open_fix"] += corrections.open
    tables.backend_load["embryonic_fix"] += corrections.embryonic
    tables.backend_load["waiting_fix"] += corrections.waiting
    tables.service_load["open_fix"] += corrections.service_open
    counted = corrections.counted
    mine = tables.backend_count[-1]
    mine["opened"] += np.maximum(counted, 0).astype(np.uint64)
    mine["closed"] += np.maximum(-counted, 0).astype(np.uint64)
