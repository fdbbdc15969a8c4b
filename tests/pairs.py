"""Chooses from a product of parameters so many cases that every pair of values occurs.

Most faults need two values at most to show (Kuhn, Wallace and Gallo 2004).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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
