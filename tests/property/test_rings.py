"""Rings under any weights: filled, exact, and a function of the set of members alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.rings import smooth
from agent.rings.maglev import Member, build, quotas
from tests.examples import examples

PRIMES = (1, 2, 3, 5, 7, 31, 101, 509, 1021)
slots = st.sampled_from(PRIMES)
weights = st.lists(st.integers(1, 1000), min_size=1, max_size=40)


def members(values: list[int], first: int = 1) -> tuple[Member, ...]:
    return tuple(Member((n * 7919).to_bytes(4), w, n) for n, w in enumerate(values, first))


@given(weights, slots)
def test_quotas_fill_the_ring_and_leave_nobody_out(values: list[int], size: int):
    values = values[:size]
    found = quotas(np.array(values, dtype=float), size)
    assert found.sum() == size
    assert found.min() >= 1


@given(weights, slots)
def test_quotas_are_exact_to_a_slot_where_nobody_is_lifted(values: list[int], size: int):
    values = values[:size]
    ideal = np.array(values) * size / sum(values)
    found = quotas(np.array(values, dtype=float), size)
    if ideal.min() >= 1:
        assert (np.abs(found - ideal) < 1).all()
    else:
        assert (found <= np.maximum(np.ceil(ideal), 1)).all(), "the lifted cost the others"


@given(weights, slots)
def test_heavier_members_never_have_less(values: list[int], size: int):
    values = values[:size]
    found = quotas(np.array(values, dtype=float), size)
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order]) >= np.where(np.diff(np.sort(values)) > 0, 0, -1)).all()


@settings(deadline=None)
@given(weights, slots)
def test_the_ring_has_each_member_as_often_as_its_quota(values: list[int], size: int):
    values = values[:size]
    ring = build(members(values), size)
    counts = np.bincount(ring, minlength=len(values) + 1)
    assert counts[0] == 0
    ordered = sorted(members(values))
    expected = quotas(np.array([m.weight for m in ordered], dtype=float), size)
    assert [counts[m.id] for m in ordered] == list(expected)


@settings(deadline=None)
@given(weights, st.randoms())
def test_order_and_company_of_weight_0_change_nothing(values: list[int], draw):
    some = list(members(values))
    ring = build(tuple(some), 101)
    some += [Member(bytes([255, n]), 0, 900 + n) for n in range(3)]
    draw.shuffle(some)
    assert np.array_equal(build(tuple(some), 101), ring)


@settings(deadline=None, max_examples=examples(40))
@given(st.lists(st.integers(50, 150), min_size=5, max_size=40), st.data())
def test_what_one_leaves_goes_to_the_others_and_little_else_moves(values: list[int], data):
    some = members(values)
    gone = data.draw(st.sampled_from(some))
    before = build(some, 4099)
    after = build(tuple(m for m in some if m != gone), 4099)
    own = int((before == gone.id).sum())
    assert gone.id not in after
    assert int((before != after).sum()) <= 2 * own + len(values)


@settings(deadline=None)
@given(weights, st.sampled_from((40, 101, 509)))
def test_a_round_has_each_member_by_its_weight_and_nobody_is_left_out(values: list[int], most: int):
    ring = smooth.build(members(values), most)
    assert len(ring) <= most
    counts = np.bincount(ring, minlength=len(values) + 1)[1:]
    assert counts.min() >= 1
    reduced = np.array(values) // np.gcd.reduce(values)
    if reduced.sum() <= most:
        assert counts.tolist() == reduced.tolist()
    else:
        order = np.argsort(values, kind="stable")
        assert (np.diff(counts[order]) >= np.where(np.diff(np.sort(values)) > 0, 0, -1)).all()


@settings(deadline=None)
@given(weights)
def test_nobody_is_ahead_of_its_share_by_a_whole_turn(values: list[int]):
    ring = smooth.build(members(values), 40_000)
    turns = np.arange(1, len(ring) + 1)
    for member in members(values):
        drawn = np.cumsum(ring == member.id)
        share = drawn[-1] / len(ring)
        assert (drawn < turns * share + 1 + 1e-9).all()


@settings(deadline=None)
@given(weights, st.randoms())
def test_the_order_of_a_round_follows_from_the_members_alone(values: list[int], draw):
    some = [*members(values), Member(b"\xff", 0, 999)]
    ring = smooth.build(tuple(some), 1021)
    draw.shuffle(some)
    assert np.array_equal(smooth.build(tuple(some), 1021), ring)
    once = smooth.each_once(tuple(some))
    assert sorted(once.tolist()) == sorted(m.id for m in some if m.weight)
