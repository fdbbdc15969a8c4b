"""Chooses from a product of parameters so many cases that every pair of values occurs.

Most faults need two values at most to show (Kuhn, Wallace and Gallo 2004).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Collection, Sequence

HOOKED = ("xdp", "tc")  # the values of the parameter of packet tests that are for both hooks

type Case = Sequence[tuple[str, object]]  # parameters and their values


def covering(cases: Sequence[Case]) -> set[int]:
    """Which of these cases have all pairs that any has: each time, one of those with most new."""
    pairs = [frozenset(itertools.combinations(case, 2)) for case in cases]
    wanted = set().union(*pairs)
    chosen: set[int] = set()
    while wanted:
        best = max(range(len(pairs)), key=lambda place: len(pairs[place] & wanted))
        chosen.add(best)
        wanted -= pairs[best]
    return chosen


def turns(cases: Collection[str], count: int) -> dict[str, set[int]]:
    """At which of ``count`` places each case is: at one of them in turn, a lone case at all.

    The order is that of a checksum. In the order of their names one value of a parameter, such as a
    family of addresses, would always be at the same place.
    """
    if len(cases) == 1:
        return {case: set(range(count)) for case in cases}
    ordered = sorted(cases, key=lambda case: (zlib.crc32(case.encode()), case))
    return {case: {number % count} for number, case in enumerate(ordered)}
