"""Decides what is measured, how often, and in which order."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from bench.failover.daemons import KEEPALIVED, STEELYARD
from bench.failover.measure import Pairing, Task
from bench.failover.network import Variant

FAST = Variant("v3-10ms", "VRRPv3, adverts every 10 ms", 3, 0.01)
MIDDLE = Variant("v3-100ms", "VRRPv3, adverts every 100 ms", 3, 0.1)
SLOW = Variant("v2-1s", "VRRPv2, adverts every second", 2, 1.0)
FAST_IPV6 = Variant("v3-10ms-ipv6", "VRRPv3 over IPv6, adverts every 10 ms", 3, 0.01, family=6)
VARIANTS = (FAST, FAST_IPV6, MIDDLE, SLOW)

OURS = Pairing("steelyard", (STEELYARD, STEELYARD))
THEIRS = Pairing("keepalived", (KEEPALIVED, KEEPALIVED))
OURS_FIRST = Pairing("steelyard, backup keepalived", (STEELYARD, KEEPALIVED))
THEIRS_FIRST = Pairing("keepalived, backup steelyard", (KEEPALIVED, STEELYARD))
BOTH = (OURS, THEIRS)
MIXED = (OURS_FIRST, THEIRS_FIRST)
PAIRINGS = (*BOTH, *MIXED)


@dataclass(frozen=True, slots=True)
class Series:
    """Cases of some pairings that are measured in turn, and how often each case in all rounds."""

    variant: Variant
    pairings: tuple[Pairing, ...]
    repetitions: Mapping[str, int]
    rounds: int = 1
    alone: bool = True  # nothing else runs at the same time


# The targets ask for 50 heals of the partition and of the cut link.
_ALL = {
    "kill": 20,
    "stop": 20,
    "cut": 50,
    "freeze": 20,
    "partition": 50,
    "mute": 20,
    "one-way": 20,
    "deaf": 5,
}
_FEW = {"kill": 10, "stop": 10, "cut": 10, "partition": 20}
WHOLE = (
    Series(FAST, BOTH, _ALL, rounds=4),
    Series(FAST_IPV6, BOTH, _FEW, rounds=2),
    Series(FAST, MIXED, _FEW, rounds=2),
    Series(MIDDLE, BOTH, _ALL | {"cut": 20, "partition": 20}, alone=False),
    Series(SLOW, BOTH, {"kill": 5, "stop": 5, "cut": 5, "partition": 5}, alone=False),
)
QUICK = (Series(FAST, BOTH, dict.fromkeys(_ALL, 2) | {"deaf": 1}),)


def narrowed(
    series: Iterable[Series],
    cases: Collection[str],
    variants: Collection[str],
    pairings: Collection[str],
    repetitions: int | None,
) -> tuple[Series, ...]:
    """Keep only what is named (an empty set names everything), with this number of repetitions."""
    found = []
    for one in series:
        chosen = tuple(p for p in one.pairings if not pairings or p.name in pairings)
        times = {
            name: count if repetitions is None else repetitions
            for name, count in one.repetitions.items()
            if not cases or name in cases
        }
        if chosen and times and (not variants or one.variant.name in variants):
            found.append(Series(one.variant, chosen, times, one.rounds, one.alone))
    return tuple(found)


def tasks(series: Iterable[Series], seed: int) -> list[Task]:
    """Return tasks in the order of their start: in rounds, each begins with another pairing."""
    return [
        Task(one.variant, pairing, _share(one, number, seed), seed + number)
        for one in series
        for number in range(one.rounds)
        for pairing in (*one.pairings[number % 2 :], *one.pairings[: number % 2])
        if _share(one, number, seed)
    ]


def _share(one: Series, number: int, seed: int) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return a round's part of a series: the times of the faults of each case."""
    draw = random.Random(seed)
    moments = {name: _moments(count, draw) for name, count in one.repetitions.items()}
    shares = {name: tuple(every[number :: one.rounds]) for name, every in moments.items()}
    return tuple((name, share) for name, share in shares.items() if share)


def _moments(count: int, draw: random.Random) -> list[float]:
    """Return times between two adverts, shuffled but evenly spread, so that few are enough."""
    found = [(number + 0.5) / count for number in range(count)]
    draw.shuffle(found)
    return found
