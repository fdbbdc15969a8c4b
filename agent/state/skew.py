"""Decides how unevenly busy connections are spread over a service's backends, and whether it lasts.

Long-lived connections stay where they were opened, so a service can be skewed although every
new connection goes to the right backend. The skew is one number: the busy connections of the
backend that has the most for its weight, divided by the mean for that weight; 1.0 is even.

A few connections are unevenly spread by chance: if each of n goes to a backend with probability p,
the backend has np of them on average, with a variance of np(1 - p). A skew is reported only if
chance does not explain it (``CHANCE`` standard deviations), or if there are so many connections
that a skew of ``VISIBLE`` would stand out. 5 connections on 2 equal backends are no skew, however
they are spread; 9 on one of 2 are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CHANCE = 3.0
VISIBLE = 1.5
LASTING_S = 60.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A backend's part of its service's connections.

    ``weight``: the effective weight; 0: it gets no new connections, and does not count.
    ``busy``: connections that await an answer or had a packet lately. ``live``: all established
    connections. ``level``: only backends of the same level are compared, because clients are sent
    to another level by priority and zone rather than by weight.
    """

    backend: str
    weight: int
    busy: int
    live: int = 0
    level: str = ""


@dataclass(frozen=True, slots=True)
class Skew:
    """The backend with the most for its weight; ``value`` is how many times the mean it has."""

    value: float
    backend: str
    busy: int
    fair: float  # what it would have at the mean


def by_level(standings: Iterable[Standing]) -> tuple[tuple[Standing, ...], ...]:
    """Group the backends that have a weight by level."""
    levels: dict[str, list[Standing]] = {}
    for one in standings:
        if one.weight > 0:
            levels.setdefault(one.level, []).append(one)
    return tuple(tuple(level) for level in levels.values())


def fair_busy(level: Iterable[Standing]) -> dict[str, float]:
    """Return the busy connections that each backend of a level would have if all were even."""
    standings = tuple(level)
    each = sum(one.busy for one in standings) / sum(one.weight for one in standings)
    return {one.backend: each * one.weight for one in standings}


def stands_out(busy: float, fair: float, total: int) -> bool:
    """Return whether chance fails to explain that a backend has ``busy`` connections of ``total``
    when ``fair`` would be its share.
    """
    if total <= 0:
        return False
    deviation = math.sqrt(fair * (1 - fair / total))
    return busy - fair >= CHANCE * deviation > 0


def skew(standings: Iterable[Standing]) -> Skew | None:
    """Return the skew of a service, which is that of its most skewed level.

    None: there are too few connections to tell, or no level has two backends.
    """
    found = [one for level in by_level(standings) if (one := _of_level(level)) is not None]
    return max(found, key=lambda one: one.value, default=None)


def _of_level(level: tuple[Standing, ...]) -> Skew | None:
    total = sum(one.busy for one in level)
    if len(level) < 2 or not total:
        return None
    worst = max(level, key=lambda one: (one.busy / one.weight, one.backend))
    even = fair_busy(level)[worst.backend]
    if not stands_out(max(worst.busy, VISIBLE * even), even, total):
        return None
    return Skew(worst.busy / even, worst.backend, worst.busy, even)


@dataclass(frozen=True, slots=True)
class Lasting:
    """Whether a service counts as skewed, and since when its readings have said otherwise."""

    skewed: bool = False
    since: float = 0.0  # since when it has counted as such; 0: always
    other_since: float | None = None
    backend: str = ""  # while it is skewed: the backend that had most


@dataclass(frozen=True, slots=True)
class Turn:
    """A service has become skewed, or has become even again."""

    service: str
    skewed: bool
    backend: str  # the one that has, or had, the most
    skew: Skew | None  # as of now; None: too few connections to tell
    lasted_s: float  # how long the readings had been skewed; at the end, how long the skew lasted


def follow(
    past: Mapping[str, Lasting],
    now_skews: Mapping[str, Skew | None],
    thresholds: Mapping[str, float],
    now: float,
) -> tuple[dict[str, Lasting], tuple[Turn, ...]]:
    """Return the states after one more reading of every service, and the turns.

    A turn in either direction needs readings that have agreed for ``LASTING_S``. Services that no
    longer exist are forgotten.
    """
    states, turns = {}, []
    for name, found in now_skews.items():
        before = past.get(name, Lasting())
        reads = found is not None and found.value >= thresholds[name]
        if reads is before.skewed:
            states[name] = Lasting(before.skewed, before.since, None, before.backend)
            continue
        since = now if before.other_since is None else before.other_since
        if now - since < LASTING_S:
            states[name] = Lasting(before.skewed, before.since, since, before.backend)
            continue
        backend = found.backend if reads and found is not None else before.backend
        lasted_s = now - since if reads else since - before.since
        turns.append(Turn(name, reads, backend, found, lasted_s))
        states[name] = Lasting(reads, since, None, backend if reads else "")
    return states, tuple(turns)
