"""Decides which problems with other nodes are shown, and when one is worth a line in the log.

A problem comes again with every advert. It is logged when it is new or its text changes, and
forgotten after a while without it. The memory and the log lines that an unknown sender can cause
are limited: each kind of problem gets a few lines a minute, and the next line says how many were
left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.failover.status import Problem
from agent.failover.times import (
    PROBLEM_KEPT_INTERVALS,
    PROBLEM_KEPT_S,
    PROBLEM_LINES_S,
    PROBLEM_LOGGED_AGAIN_S,
)
from agent.failover.vrrp.compare import Mismatch
from agent.model import Address

MAX_PROBLEMS = 16  # for each virtual router; only a host that forges sources causes more
_MOST_LINES = 4  # for each kind, in PROBLEM_LINES_S


@dataclass(slots=True)
class _Entry:
    text: str
    since: float
    last: float
    count: int
    logged: float
    logged_text: str


class Ledger:
    """The problems of one virtual router. All times are seconds since the epoch."""

    def __init__(self, interval_s: float) -> None:
        self._forget_s = max(PROBLEM_KEPT_S, PROBLEM_KEPT_INTERVALS * interval_s)
        self._entries: dict[tuple[str, Address], _Entry] = {}
        # By kind: the times of recent log lines, and how many lines were left out since.
        self._lines: dict[str, tuple[tuple[float, ...], int]] = {}

    def note(self, found: Iterable[Mismatch], now: float, count: int = 1) -> list[Mismatch]:
        """Take in what is wrong with one advert, or with ``count`` equal ones.

        Returns the mismatches that are to be logged.
        """
        news: list[Mismatch] = []
        for mismatch in found:
            key = (mismatch.kind, mismatch.source)
            entry = self._entries.get(key)
            if entry is None:
                self._expire(now)
                if len(self._entries) >= MAX_PROBLEMS:
                    continue
                entry = self._entries[key] = _Entry(mismatch.text, now, now, 0, -math.inf, "")
            entry.text, entry.last, entry.count = mismatch.text, now, entry.count + count
            if entry.text != entry.logged_text and now - entry.logged >= PROBLEM_LOGGED_AGAIN_S:
                entry.logged, entry.logged_text = now, entry.text
                news += self._limited(mismatch, now)
        return news

    def _limited(self, mismatch: Mismatch, now: float) -> list[Mismatch]:
        """Return the mismatch, or nothing if its kind has had enough lines recently."""
        recent, left_out = self._lines.get(mismatch.kind, ((), 0))
        recent = tuple(when for when in recent if 0 <= now - when < PROBLEM_LINES_S)
        if len(recent) >= _MOST_LINES:
            self._lines[mismatch.kind] = recent, left_out + 1
            return []
        self._lines[mismatch.kind] = (*recent, now), 0
        more = f" ({left_out} such lines were left out before this one)" if left_out else ""
        return [replace(mismatch, text=mismatch.text + more)]

    def current(self, now: float) -> tuple[Problem, ...]:
        """Return the problems that still exist, oldest first."""
        self._expire(now)
        return tuple(
            Problem(kind, entry.text, entry.since, entry.last, entry.count)
            for (kind, _), entry in self._entries.items()
        )

    def _expire(self, now: float) -> None:
        # If the clock was set back, an age is negative. Such a problem is forgotten too; it comes
        # again with the next advert.
        self._entries = {
            key: entry
            for key, entry in self._entries.items()
            if 0 <= now - entry.last <= self._forget_s
        }
