"""Decides the order of a round-robin ring: smooth weighted round robin.

In each step every member gains its weight; the member that has the most is next and pays the sum of
the weights (as in nginx). Weights of 5, 1, 1 thus give a a b a c a a, which spreads the turns of
each member over the round.

Draws walk the ring, so its length is the period. Weights are divided by their greatest common
divisor, and where their sum is still more than the ring may hold, they are rounded.
"""

from __future__ import annotations

import numpy as np

from agent.rings.maglev import Member, Ring, quotas


def build(members: tuple[Member, ...], most: int) -> Ring:
    """Return a ring of at most ``most`` backend ids, read-only; empty if there is no member.

    ValueError: there are more members than that.
    """
    ordered = sorted(member for member in members if member.weight > 0)
    if len(ordered) > most:
        raise ValueError(f"{len(ordered)} backends do not fit into {most} slots")
    ids = np.array([member.id for member in ordered], dtype=np.uint16)
    ring = ids[_order(_turns([member.weight for member in ordered], most))]
    ring.setflags(write=False)
    return ring


def each_once(members: tuple[Member, ...]) -> Ring:
    """Return a ring that names every member with a weight once (least-conn), read-only."""
    ring = np.array([m.id for m in sorted(members) if m.weight > 0], dtype=np.uint16)
    ring.setflags(write=False)
    return ring


def _turns(weights: list[int], most: int) -> list[int]:
    """Return how often each member is drawn in one round."""
    turns = np.array(weights, dtype=np.int64)
    if not weights:
        return []
    turns //= np.gcd.reduce(turns)
    if turns.sum() > most:
        turns = quotas(turns.astype(np.float64), most)
        turns //= np.gcd.reduce(turns)
    return [int(n) for n in turns]


def _order(turns: list[int]) -> list[int]:
    """Return the indices of members in the order of the draws."""
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
