"""Decides which problems with other nodes are shown, and when one is worth a line in the log.

A problem comes with every advert: it is logged when it is new or its text changes, and forgotten
after a while without it. What a stranger sends is bounded in memory and in lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.failover.status import Problem
from agent.failover.vrrp.compare import Mismatch
from agent.model import Address

MAX_PROBLEMS = 16  # of one virtual router: more come only from somebody who forges sources
_LOG_AGAIN_S = 10.0  # at the earliest, for a text that keeps changing
_FORGET_S = 5.0  # at the earliest, and not before so many intervals
_FORGET_INTERVALS = 10


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
        self._forget_s = max(_FORGET_S, _FORGET_INTERVALS * interval_s)
        self._entries: dict[tuple[str, Address], _Entry] = {}

    def note(self, found: Iterable[Mismatch], now: float) -> list[Mismatch]:
        """Take in what came with one advert; what of it is to be logged."""
        news: list[Mismatch] = []
        for mismatch in found:
            key = (mismatch.kind, mismatch.source)
            entry = self._entries.get(key)
            if entry is None:
                self._expire(now)
                if len(self._entries) >= MAX_PROBLEMS:
                    continue
                text = mismatch.text
                self._entries[key] = _Entry(text, now, now, 1, now, text)
                news.append(mismatch)
                continue
            entry.text, entry.last, entry.count = mismatch.text, now, entry.count + 1
            if entry.text != entry.logged_text and now - entry.logged >= _LOG_AGAIN_S:
                entry.logged, entry.logged_text = now, entry.text
                news.append(mismatch)
        return news

    def current(self, now: float) -> tuple[Problem, ...]:
        """What is still so, oldest first."""
        self._expire(now)
        return tuple(
            Problem(kind, entry.text, entry.since, entry.last, entry.count)
            for (kind, _), entry in self._entries.items()
        )

    def _expire(self, now: float) -> None:
        # A clock that was set back makes an age negative: forgotten too, it comes again.
        self._entries = {
            key: entry
            for key, entry in self._entries.items()
            if 0 <= now - entry.last <= self._forget_s
        }
