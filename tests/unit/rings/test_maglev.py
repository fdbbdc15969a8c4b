"""Rings: exact shares, the same ring for the same members, little movement when one goes."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from agent.rings import maglev
from agent.rings.maglev import Member, build, quotas, shares

SLOTS = 65_537
SMALL = 4099


def members(*weights: int) -> tuple[Member, ...]:
    return tuple(
        Member((0x0A000000 + n).to_bytes(4), weight, n) for n, weight in enumerate(weights, 1)
    )


def ideal(weights: tuple[int, ...], slots: int) -> np.ndarray:
    return np.array(weights) * slots / sum(weights)


WEIGHTS = {
    "one": (100,),
    "equal": (100,) * 10,
    "1-to-10": tuple(range(1, 11)),
    "extreme": (1, 1000),
    "many-extreme": (1000, *(1,) * 60),
    "primes": (2, 3, 5, 7, 11, 13, 17),
    "hundred": (100,) * 100,
    "thousand": tuple(random.Random(1).choices(range(50, 1001), k=1000)),
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_every_slot_is_filled_and_each_share_is_exact_to_a_slot(weights: tuple[int, ...]):
    ring = build(members(*weights), SLOTS)
    counts = np.bincount(ring, minlength=len(weights) + 1)
    assert counts[0] == 0
    assert counts.sum() == SLOTS
    assert (np.abs(counts[1:] - ideal(weights, SLOTS)) < 1).all()


def test_a_member_too_light_for_a_slot_has_one_all_the_same():
    weights = (1000,) * 100 + (1,)
    counts = np.bincount(build(members(*weights), 101), minlength=102)
    assert (counts[1:] == 1).all()
    counts = np.bincount(build(members(1, *(1000,) * 20), SMALL), minlength=22)
    assert counts[1] == 1


def test_the_order_of_the_members_does_not_matter():
    some = list(members(*range(10, 60)))
    first = build(tuple(some), SMALL)
    for seed in range(5):
        random.Random(seed).shuffle(some)
        assert np.array_equal(build(tuple(some), SMALL), first)


def test_ids_are_only_names():
    """Two balancers may number their backends differently: slots go to the same addresses."""
    some = members(10, 20, 30, 40)
    other = tuple(Member(m.identity, m.weight, 100 - m.id) for m in some)
    assert np.array_equal(100 - build(some, SMALL), build(other, SMALL))


def test_another_process_builds_the_same_ring():
    code = (
        "from agent.rings.maglev import *; import hashlib\n"
        "some = tuple(Member(bytes([10, 0, 0, n]), n * 7, n) for n in range(1, 40))\n"
        "print(hashlib.sha256(build(some, 4099).tobytes()).hexdigest())"
    )
    run = [sys.executable, "-c", code]
    found = {
        subprocess.run(
            run, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": s}
        ).stdout
        for s in ("1", "2")
    }
    assert len(found) == 1


def test_this_ring_never_changes():
    """Balancers of different releases share flows: a new algorithm would move them all."""
    some = tuple(Member(bytes([10, 0, 0, n]), n * 10, n) for n in range(1, 6))
    assert list(build(some, 31)) == GOLDEN


GOLDEN = [
    4, 5, 5, 2, 2, 3, 1, 5, 3, 5, 3, 3, 1, 2, 2, 5,
    4, 5, 4, 5, 4, 5, 4, 5, 3, 5, 4, 3, 4, 5, 4,
]  # fmt: skip


def moved(before: maglev.Ring, after: maglev.Ring) -> int:
    return int((before != after).sum())


def test_when_one_of_100_goes_hardly_more_than_its_slots_move():
    some = members(*(100,) * 100)
    before = build(some, SLOTS)
    ratios = []
    for gone in random.Random(3).sample(range(100), 20):
        after = build((*some[:gone], *some[gone + 1 :]), SLOTS)
        ratios.append(moved(before, after) / (before == some[gone].id).sum())
    assert np.mean(ratios) <= 1.5
    assert max(ratios) <= 1.5


def test_when_one_of_100_unequal_ones_goes_hardly_more_than_its_slots_move():
    weights = random.Random(4).choices(range(50, 500), k=100)
    some = members(*weights)
    before = build(some, SLOTS)
    ratios = []
    for gone in range(0, 100, 7):
        after = build((*some[:gone], *some[gone + 1 :]), SLOTS)
        ratios.append(moved(before, after) / (before == some[gone].id).sum())
    assert np.mean(ratios) <= 1.5
    assert max(ratios) <= 2.0


def test_a_backend_that_comes_back_finds_its_slots_again():
    some = members(*(100,) * 20)
    before = build(some, SMALL)
    build(some[1:], SMALL)
    assert np.array_equal(build(some, SMALL), before)


def test_a_changed_weight_moves_little():
    some = members(*(100,) * 20)
    before = build(some, SLOTS)
    after = build(members(110, *(100,) * 19), SLOTS)
    wanted = abs((after == 1).sum() - (before == 1).sum())
    assert moved(before, after) <= 6 * wanted


def test_weight_0_is_left_out():
    ring = build(members(100, 0, 100), SMALL)
    assert set(np.unique(ring)) == {1, 3}
    assert np.array_equal(ring, build((members(100, 0, 100)[0], members(100, 0, 100)[2]), SMALL))


@pytest.mark.parametrize("nobody", [(), members(0), members(0, 0)])
def test_without_members_all_slots_are_none(nobody: tuple[Member, ...]):
    assert not build(nobody, 101).any()


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_the_smallest_rings(slots: int):
    for count in range(1, slots + 1):
        ring = build(members(*range(1, count + 1)), slots)
        assert set(ring) == set(range(1, count + 1))


def test_more_members_than_slots_are_refused():
    with pytest.raises(ValueError, match="6 backends do not fit into 5 slots"):
        build(members(*(1,) * 6), 5)
    build(members(*(1,) * 5, 0), 5)  # weight 0 needs no slot


def test_a_ring_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        build(members(1, 2), 101)[0] = 7


def test_ipv6_and_ipv4_identities_mix():
    some = (*members(100), Member(bytes(15) + b"\1", 100, 9))
    assert set(build(some, SMALL)) == {1, 9}


def test_neighbours_in_the_ring_are_mixed():
    """Slots of one backend do not come in runs, or a range of hashes would hit one backend."""
    ring = build(members(*(100,) * 10), SLOTS)
    same = float((ring[1:] == ring[:-1]).mean())
    assert same < 0.25


@pytest.mark.parametrize(
    ("weights", "slots", "expected"),
    [
        ((1,), 7, [7]),
        ((1, 1), 7, [4, 3]),
        ((1, 2, 4), 7, [1, 2, 4]),
        ((1, 1000), 7, [1, 6]),
        ((1, 1, 1, 1000), 7, [1, 1, 1, 4]),
        ((1, 1, 1), 3, [1, 1, 1]),
        ((1000, 1, 1), 3, [1, 1, 1]),
    ],
)
def test_quotas_by_hand(weights: tuple[int, ...], slots: int, expected: list[int]):
    assert list(quotas(np.array(weights, dtype=float), slots)) == expected


def test_shares_are_parts_of_one():
    found = shares(build(members(1, 3), SMALL))
    assert found.keys() == {1, 2}
    assert sum(found.values()) == pytest.approx(1)
    assert found[2] == pytest.approx(0.75, abs=1 / SMALL)
    assert shares(build((), SMALL)) == {}
