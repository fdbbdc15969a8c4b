"""Whatever the connections: rebalancing ends, and never takes from who has too little."""

from hypothesis import given
from hypothesis import strategies as st

from agent.model import Rebalance
from agent.state.rebalance import Budget, excess, portion
from agent.state.skew import Standing, skew

BACKENDS = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 500), st.integers(0, 500)), max_size=8
).map(
    lambda rows: [
        Standing(f"b{i}", weight, busy, busy + idle) for i, (weight, busy, idle) in enumerate(rows)
    ]
)
SKEWS = st.floats(1.0, 4.0)


@given(BACKENDS, SKEWS)
def test_nobody_is_brought_below_its_share(found: list[Standing], at: float):
    over = excess(Rebalance(rate_per_s=1, skew=at), found)
    weights = sum(one.weight for one in found)
    live = sum(one.live for one in found if one.weight)
    busy = sum(one.busy for one in found if one.weight)
    for one in found:
        if one.backend in over:
            share = one.weight / weights
            assert one.busy > at * busy * share
            assert one.live - over[one.backend] >= live * share - 1e-6
            assert one.busy - over[one.backend] >= busy * share - 1e-6
    assert len(over) < max(1, sum(one.weight > 0 for one in found)), "somebody has to take them"


@given(BACKENDS, SKEWS)
def test_who_gives_up_is_skewed(found: list[Standing], at: float):
    """What is reset is never unexplained: the service's skew shows it."""
    if excess(Rebalance(rate_per_s=1, skew=at), found):
        shown = skew(found)
        assert shown is not None
        assert shown.value > at


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 100), max_size=5),
    st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=30),
    st.floats(0.01, 100),
)
def test_no_second_resets_more_than_the_rate(
    over: dict[str, int], steps: list[tuple[float, bool]], rate: float
):
    budget, now, spent = Budget().refilled(rate, 0.0), 0.0, 0
    for wait, uses in steps:
        now += wait
        budget = budget.refilled(rate, now)
        given_up = portion(over, budget) if uses else {}
        assert all(0 < count <= over[name] for name, count in given_up.items())
        budget = budget.spent(sum(given_up.values()))
        spent += sum(given_up.values())
        assert spent <= rate * now + 1e-6
