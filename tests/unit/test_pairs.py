"""The choice of cases of which every pair of values occurs."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.pairs import covering, turns


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_every_pair_of_values_occurs_in_few_cases(counts: list[int], draw) -> None:
    product = [
        list(zip("abcde", values, strict=False))
        for values in itertools.product(*(range(count) for count in counts))
    ]
    draw.shuffle(product)
    chosen = covering(product)
    there = {pair for place in chosen for pair in itertools.combinations(product[place], 2)}
    assert there == {pair for case in product for pair in itertools.combinations(case, 2)}
    first, second = sorted(counts)[-2:]
    assert first * second <= len(chosen) <= 3 * first * second


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=40), st.integers(2, 3))
def test_each_case_has_its_turn_and_no_place_has_many_more_than_another(
    cases: set[str], count: int
) -> None:
    chosen = turns(cases, count)
    assert chosen.keys() == cases
    assert all(len(places) == 1 for places in chosen.values())
    sizes = [sum(place in places for places in chosen.values()) for place in range(count)]
    assert max(sizes) - min(sizes) <= 1
    assert turns(sorted(cases, reverse=True), count) == chosen, "each worker decides alike"


def test_a_lone_case_is_at_all_places() -> None:
    assert turns({""}, 2) == {"": {0, 1}}


def test_values_that_alternate_are_not_each_at_a_place_of_their_own() -> None:
    cases = [f"{family}-{kind}" for kind in range(20) for family in ("v4", "v6")]
    chosen = turns(cases, 2)
    for family in ("v4", "v6"):
        places = [chosen[case] for case in cases if case.startswith(family)]
        assert {0} in places
        assert {1} in places
