"""Decides how far the packet path's sums are from the flow table, which is the truth.

The packet path adds and subtracts as flows open and close and as requests come and are
answered. What it can miss (a flow whose slot the agent freed, a scheduler that began to count
in mid-life) would stay in a sum for ever. So after each survey every sum is compared with the
table, and the agent writes the difference beside it: ``open_fix``, ``embryonic_fix``,
``waiting_fix``, and its own row of the counters. The packet path's fields are its own and are
never written.

Flows open and close while the table is read. Each comparison therefore gives a range, and the
part of it that is certain (the end nearer to zero); only what several surveys running say with
one sign is corrected, by the smallest of them. So a correction never makes a sum of flows
worse, and a table that holds still for so many surveys makes it exact.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from agent.dataplane.survey import Counts, Survey
from agent.dataplane.tables import SharedTables

SURVEYS = 4  # running that must agree


@dataclass(frozen=True, slots=True)
class Corrections:
    """What to add: by backend id, ``service_open`` by service id."""

    open: Counts
    embryonic: Counts
    waiting: Counts
    counted: Counts  # to opened - closed
    service_open: Counts

    @property
    def number(self) -> int:
        """Sums that are corrected."""
        return sum(int(np.count_nonzero(getattr(self, f.name))) for f in fields(self))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the last surveys were certain of, newest first: a row of differences each."""

    rows: tuple[Corrections, ...] = ()

    def add(self, found: Survey) -> tuple[Self, Corrections]:
        """The evidence with one more survey, and the corrections that follow from it."""
        rows = (certain(found), *self.rows)[:SURVEYS]
        corrections = Corrections(*(
            _persistent([getattr(row, f.name) for row in rows]) for f in fields(Corrections)
        ))  # fmt: skip
        # What was corrected starts afresh: the rows before it speak of the old sum.
        kept = tuple(
            Corrections(*(
                np.where(getattr(corrections, f.name) != 0, 0, getattr(row, f.name))
                for f in fields(Corrections)
            ))
            for row in rows
        )  # fmt: skip
        return type(self)(kept), corrections


def certain(found: Survey) -> Corrections:
    """The least by which each sum differed from the table when the survey began."""
    before, after = found.before, found.after
    # What the survey counted is what was open when it began, with some of those opened since
    # and without some of those closed since.
    opened, closed = after.opened - before.opened, after.closed - before.closed
    least, most = found.open - opened, found.open + closed
    embryonic = found.open - found.live
    left = closed + after.established - before.established
    services = len(before.service_open)

    def by_service(values: Counts) -> Counts:
        sums = np.bincount(found.service, weights=values, minlength=services)[:services]
        return sums.astype(np.int64) - before.service_open

    service_open = _nearer(by_service(least), by_service(most))
    service_open[0] = 0  # nobody
    waiting = (before.waiting, after.waiting)
    return Corrections(
        open=_nearer(least - before.open, most - before.open),
        embryonic=_nearer(
            embryonic - opened - before.embryonic, embryonic + left - before.embryonic
        ),
        waiting=_nearer(found.waiting - np.maximum(*waiting), found.waiting - np.minimum(*waiting)),
        # opened is read before closed: each end takes what it cannot have missed
        counted=_nearer(
            found.open - after.opened + before.closed, found.open - before.opened + after.closed
        ),
        service_open=service_open,
    )


def _nearer(low: Counts, high: Counts) -> Counts:
    """The end of each range that is nearer to zero; 0 where zero is in it."""
    return np.where(low > 0, low, np.where(high < 0, high, 0))


def _persistent(rows: list[Counts]) -> Counts:
    """The smallest of each column, if all of its rows are there and have one sign."""
    stacked = np.stack(rows)
    if len(stacked) < SURVEYS:
        return np.zeros_like(stacked[0])
    return _nearer(stacked.min(axis=0), stacked.max(axis=0))


class TrueUp:
    """Keeps the sums of one set of tables true; give it every survey, in the thread that writes
    the tables.
    """

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self._evidence = Evidence()

    def take(self, found: Survey) -> int:
        """Correct what the surveys so far agree on; how many sums."""
        self._evidence, corrections = self._evidence.add(found)
        if corrections.number:
            apply(self._tables, corrections)
        return corrections.number


def apply(tables: SharedTables, corrections: Corrections) -> None:
    """Add the corrections to what is the agent's."""
    tables.backend_load["open_fix"] += corrections.open
    tables.backend_load["embryonic_fix"] += corrections.embryonic
    tables.backend_load["waiting_fix"] += corrections.waiting
    tables.service_load["open_fix"] += corrections.service_open
    counted = corrections.counted
    mine = tables.backend_count[-1]
    mine["opened"] += np.maximum(counted, 0).astype(np.uint64)
    mine["closed"] += np.maximum(-counted, 0).astype(np.uint64)
