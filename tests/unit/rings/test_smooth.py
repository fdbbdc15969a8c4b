"""Round-robin rings: the order of smooth weighted round robin, one round long."""

from __future__ import annotations

import numpy as np
import pytest

from agent.rings.maglev import Member
from agent.rings.smooth import build, each_once


def members(*weights: int) -> tuple[Member, ...]:
    return tuple(
        Member((0x0A000000 + n).to_bytes(4), weight, n) for n, weight in enumerate(weights, 1)
    )


def order(*weights: int, most: int = 101) -> list[int]:
    return build(members(*weights), most).tolist()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((5, 1, 1), [1, 1, 2, 1, 3, 1, 1]),  # the example of nginx
        ((100,), [1]),
        ((100, 100, 100), [1, 2, 3]),
        ((200, 100), [1, 2, 1]),
        ((7, 0, 7), [1, 3]),
        ((0, 0), []),
        ((), []),
    ],
)
def test_the_order_is_that_of_smooth_weighted_round_robin(weights, expected: list[int]):
    assert order(*weights) == expected


def test_the_light_ones_are_spread_among_the_heavy():
    ring = order(30, *(1,) * 30)
    assert ring.count(1) == 30
    gaps = np.diff(np.flatnonzero(np.array(ring) == 1))
    assert gaps.max() <= 3
    assert gaps.mean() < 2.1


def test_weights_with_a_long_round_are_rounded_to_what_fits():
    ring = order(997, 499, 1, most=101)
    assert len(ring) <= 101
    share = ring.count(1) / len(ring)
    assert abs(share - 997 / 1497) < 1 / 101
    assert ring.count(3) == 1, "nobody is left out"


def test_as_many_members_as_slots_are_drawn_once_each():
    assert order(*range(1, 102), most=101) == list(range(1, 102))


def test_too_many_members_are_refused():
    with pytest.raises(ValueError, match="102 backends do not fit into 101 slots"):
        order(*(1,) * 102)


def test_the_order_of_the_members_does_not_matter():
    some = members(3, 2, 1)
    assert build(some[::-1], 101).tolist() == build(some, 101).tolist()


def test_a_ring_of_each_once_leaves_out_who_weighs_nothing():
    assert each_once(members(5, 0, 1)[::-1]).tolist() == [1, 3]
    assert each_once(()).tolist() == []


@pytest.mark.parametrize("ring", [build(members(1, 2), 101), each_once(members(1))])
def test_rings_cannot_be_changed(ring):
    with pytest.raises(ValueError, match="read-only"):
        ring[0] = 9
