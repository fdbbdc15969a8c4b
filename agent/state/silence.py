"""Decides to which services nobody gets a connection, though clients begin some. Pure.

Checks can pass all the while: they ask the servers, and what is missing may be the way back to
clients. Between backends this is for outliers (``agent.state.outliers``); here all fail alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.state.snapshot import Handshakes
from agent.state.synflood import Syns

SPAN_S, STEP_S = 30.0, 5.0
LEAST = 20  # begun in the span: strangers who try ports begin one now and then, and end none


@dataclass(frozen=True, slots=True)
class Reading:
    """``began`` and ``followed`` are totals, ``at_s`` is of a clock that only goes forward."""

    at_s: float
    began: int
    followed: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Of one service: readings of the last half minute, oldest first, ``STEP_S`` apart."""

    readings: tuple[Reading, ...]

    @property
    def handshakes(self) -> Handshakes:
        """What the readings say."""
        first, last = self.readings[0], self.readings[-1]
        return Handshakes(
            last.began - first.began, last.followed - first.followed, last.at_s - first.at_s
        )

    @property
    def begun(self) -> int:
        """So many connections were begun in the span and none was established; 0: some were, or
        too few were begun to say.
        """
        seen = self.handshakes
        is_whole = seen.span_s >= SPAN_S - STEP_S
        return seen.begun if is_whole and seen.begun >= LEAST and not seen.established else 0


def follow(before: Watch | None, now_s: float, syns: Syns) -> Watch:
    """The next reading. A total that has fallen is another one: the service was made anew."""
    now = Reading(now_s, syns.opened, syns.followed)
    if before is None or before.readings[-1].began > now.began:
        return Watch((now,))
    kept = before.readings
    if len(kept) > 1 and kept[-1].at_s - kept[-2].at_s < STEP_S:
        kept = kept[:-1]  # the newest is always exact
    while len(kept) > 1 and kept[1].at_s <= now_s - SPAN_S:
        kept = kept[1:]
    return Watch((*kept, now))


def follow_all(
    before: Mapping[str, Watch], now_s: float, syns: Mapping[str, Syns]
) -> dict[str, Watch]:
    """All services, by name."""
    return {name: follow(before.get(name), now_s, seen) for name, seen in syns.items()}
