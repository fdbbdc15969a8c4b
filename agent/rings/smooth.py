"""Decides the order of a round-robin ring: smooth weighted round robin.

Each step every member gains its weight; the one that has most is next and pays the sum of the
weights (the way of nginx). So 5, 1, 1 is a a b a c a a, and no member waits or bunches.

Draws walk the ring, so its length is the period: weights are divided by what they have in
common, and where the sum is still more than the ring may hold, they are rounded.
"""

from __future__ import annotations

import numpy as np

from agent.rings.maglev import Member, Ring, quotas


def build(members: tuple[Member, ...], most: int) -> Ring:
    """A ring of at most ``most`` backend ids, read-only; empty where there is no member.

    More members than that is refused with ValueError.
    """
    ordered = sorted(member for member in members if member.weight > 0)
    if len(ordered) > most:
        raise ValueError(f"{len(ordered)} backends do not fit into {most} slots")
    ids = np.array([member.id for member in ordered], dtype=np.uint16)
    ring = ids[_order(_turns([member.weight for member in ordered], most))]
    ring.setflags(write=False)
    return ring


def each_once(members: tuple[Member, ...]) -> Ring:
    """A ring that names every member with a weight once (least-conn), read-only."""
    ring = np.array([m.id for m in sorted(members) if m.weight > 0], dtype=np.uint16)
    ring.setflags(write=False)
    return ring


def _turns(weights: list[int], most: int) -> list[int]:
    """How often each is drawn in one round."""
    turns = np.array(weights, dtype=np.int64)
    if not weights:
        return []
    turns //= np.gcd.reduce(turns)
    if turns.sum() > most:
        turns = quotas(turns.astype(np.float64), most)
        turns //= np.gcd.reduce(turns)
    return [int(n) for n in turns]


def _order(turns: list[int]) -> list[int]:
    """Indices in the order of the draws."""
    if len(set(turns)) <= 1:
        return list(range(len(turns)))
    gain = np.array(turns, dtype=np.int64)
    total = int(gain.sum())
    credit = np.zeros_like(gain)
    order = []
    for _ in range(total):
        credit += gain
        best = int(credit.argmax())  # the first of equals
        credit[best] -= total
        order.append(best)
    return order
