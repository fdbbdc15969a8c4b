"""The choice of cases of which every pair of values occurs."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.pairs import covering


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
