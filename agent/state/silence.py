"""Decides to which services no client gets a connection, although some try. Pure.

Health checks can pass all the while: they reach the servers, but the way back to clients may be
missing. Differences between backends are left to ``agent.state.outliers``; here all fail alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.state.snapshot import Handshakes
from agent.state.synflood import Syns

SPAN_S, STEP_S = 30.0, 5.0
LEAST = 20  # begun in the span: port scanners begin a few connections, and complete none


@dataclass(frozen=True, slots=True)
class Reading:
    """Totals at one moment; ``at_s`` is the time of a clock that only goes forward."""

    at_s: float
    began: int
    followed: int


@dataclass(frozen=True, slots=True)
class Watch:
    """The readings of one service in the last half minute, oldest first, ``STEP_S`` apart."""

    readings: tuple[Reading, ...]

    @property
    def handshakes(self) -> Handshakes:
        """The handshakes between the first and the last reading."""
        first, last = self.readings[0], self.readings[-1]
        return Handshakes(
            last.began - first.began, last.followed - first.followed, last.at_s - first.at_s
        )

    @property
    def begun(self) -> int:
        """How many connections were begun in the span if none was established.

        0: some were established, or too few were begun to tell.
        """
        seen = self.handshakes
        is_whole = seen.span_s >= SPAN_S - STEP_S
        return seen.begun if is_whole and seen.begun >= LEAST and not seen.established else 0


def follow(before: Watch | None, now_s: float, syns: Syns) -> Watch:
    """Add a reading. If a total has fallen, the service was created anew, and we start over."""
    now = Reading(now_s, syns.opened, syns.followed)
    if before is None or before.readings[-1].began > now.began:
        return Watch((now,))
    kept = before.readings
    if len(kept) > 1 and kept[-1].at_s - kept[-2].at_s < STEP_S:
        kept = kept[:-1]  # the newest reading is always the current one
    while len(kept) > 1 and kept[1].at_s <= now_s - SPAN_S:
        kept = kept[1:]
    return Watch((*kept, now))


def follow_all(
    before: Mapping[str, Watch], now_s: float, syns: Mapping[str, Syns]
) -> dict[str, Watch]:
    """Add a reading to the watches of all services, by name."""
    return {name: follow(before.get(name), now_s, seen) for name, seen in syns.items()}
