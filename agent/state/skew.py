"""Decides how unevenly a service's busy connections lie on its backends, and whether it lasts.

Long-lived connections stay where they were opened, so a service can be skewed although every
new connection goes to the right backend. One number tells: the busy connections of the backend
that has most by its weight, beside the mean by weight; 1.0 is even.

Few connections lie unevenly by chance: where each of n goes to a backend with probability p, the
backend has np, with a variance of np(1 - p). A skew is told only where chance is no explanation
(``CHANCE`` standard deviations), or where there are so many connections that one of ``VISIBLE``
would stand out. 5 on 2 equal backends are no skew, however they lie; 9 on one of 2 are.
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
    """What a backend has of its service's connections.

    ``weight``: the effective one; 0: it gets no new connections, and does not count.
    ``busy``: awaiting an answer, or with a packet lately. ``live``: all that are established.
    ``level``: only backends of one level are compared; clients go to another by priority and
    zone, not by weight.
    """

    backend: str
    weight: int
    busy: int
    live: int = 0
    level: str = ""


@dataclass(frozen=True, slots=True)
class Skew:
    """The backend that has most by its weight, and how many times the mean by weight it has."""

    value: float
    backend: str
    busy: int
    fair: float  # what it would have at the mean


def by_level(standings: Iterable[Standing]) -> tuple[tuple[Standing, ...], ...]:
    """The backends with a weight that are beside each other."""
    levels: dict[str, list[Standing]] = {}
    for one in standings:
        if one.weight > 0:
            levels.setdefault(one.level, []).append(one)
    return tuple(tuple(level) for level in levels.values())


def fair_busy(level: Iterable[Standing]) -> dict[str, float]:
    """The busy connections that each backend of a level would have, were all even."""
    beside = tuple(level)
    each = sum(one.busy for one in beside) / sum(one.weight for one in beside)
    return {one.backend: each * one.weight for one in beside}


def stands_out(busy: float, fair: float, total: int) -> bool:
    """Whether chance does not explain that a backend with that share of ``total`` has so many."""
    if total <= 0:
        return False
    deviation = math.sqrt(fair * (1 - fair / total))
    return busy - fair >= CHANCE * deviation > 0


def skew(standings: Iterable[Standing]) -> Skew | None:
    """How skewed a service is: its most skewed level. None: too few connections to say, or no
    level has two backends.
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
    """Whether a service counts as skewed, and since when the newest reading says otherwise."""

    skewed: bool = False
    since: float = 0.0  # that it counts so; 0: always
    other_since: float | None = None
    backend: str = ""  # while it is skewed: which one had most


@dataclass(frozen=True, slots=True)
class Turn:
    """A service has become skewed, or has become even again."""

    service: str
    skewed: bool
    backend: str  # of the skew that begins or ends
    skew: Skew | None  # as of now; None: too few connections to say
    lasted_s: float  # how long the reading had been so; of an end, how long it was skewed


def follow(
    past: Mapping[str, Lasting],
    now_skews: Mapping[str, Skew | None],
    thresholds: Mapping[str, float],
    now: float,
) -> tuple[dict[str, Lasting], tuple[Turn, ...]]:
    """The states after one more reading of every service, and what turned.

    Either turn comes when the reading has been so for ``LASTING_S``. Services that are gone are
    forgotten.
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
