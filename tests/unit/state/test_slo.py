"""When a service is said to miss what it promises, and when to keep it again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.model import Objective
from agent.state.slo import LEAST_LATE, SPAN_S, Watch

P95, P99 = Objective(95, 2.0), Objective(99, 2.0)


def played(*steps: tuple[int, float], objective: Objective = P95) -> Watch:
    """Every ten seconds so many answers, so many of them late."""
    watch = Watch.begin(objective, 0.0)
    for number, (answers, late) in enumerate(steps, start=1):
        watch = watch.add(10.0 * number, answers, late)
    return watch


def test_it_is_missed_when_more_are_late_than_may_be():
    assert not played((100, 5.0)).is_missed
    assert played((100, 5.1)).is_missed


def test_a_few_late_ones_say_nothing():
    """Two slow answers of thirty are more than 1 %, and chance."""
    assert not played((30, 2.0), objective=P99).is_missed
    assert not played((10, LEAST_LATE - 0.1)).is_missed
    assert played((10, float(LEAST_LATE))).is_missed


def test_it_is_kept_again_only_when_it_is_clearly_better():
    missed = [(100, 6.0)]
    at_the_bound = [(100, 4.9)] * 12
    assert played(*missed, *at_the_bound).is_missed
    assert not played(*missed, *[(100, 3.9)] * 12).is_missed


def test_it_ends_when_nobody_asks_any_more():
    watch = played((100, 50.0), *[(0, 0.0)] * 7)
    assert not watch.is_missed
    assert watch.late_share is None


def test_totals_go_on_and_the_share_is_of_the_last_minute():
    watch = played((100, 50.0), *[(10, 1.0)] * 12)
    assert (watch.answers_total, watch.late_total) == (220, 62.0)
    assert (watch.answers, watch.late_share) == (60, 0.1)


steps = st.lists(
    st.integers(0, 1000).flatmap(lambda n: st.tuples(st.just(n), st.floats(0, n))), max_size=30
)


@given(steps)
def test_totals_never_fall_and_never_more_are_late_than_came(played_steps):
    watch, before = Watch.begin(P95, 0.0), (0, 0.0)
    for number, step in enumerate(played_steps, start=1):
        watch = watch.add(10.0 * number, *step)
        now = (watch.answers_total, watch.late_total)
        assert now >= before
        assert now[1] >= before[1]
        assert watch.late <= watch.answers * (1 + 1e-9)
        assert len(watch.readings) <= SPAN_S / 10 + 2
        before = now
