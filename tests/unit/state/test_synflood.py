"""When SYNs count as a flood, and when it is over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.state.synflood import CALM_S, Syns, Watch, begin, follow, follow_all


def after(*seconds: Syns, flooded: bool = False) -> Watch:
    """A reading a second, each with so much more than the one before."""
    total = Syns()
    watch = begin(0.0, total, flooded=flooded)
    for n, more in enumerate(seconds, 1):
        total = Syns(
            total.opened + more.opened,
            total.followed + more.followed,
            total.challenged + more.challenged,
            total.shown + more.shown,
        )
        watch = follow(watch, float(n), total)
    return watch


FLOOD = Syns(opened=900, followed=20)
BUSY = Syns(opened=20_000, followed=19_800)
CHALLENGED = Syns(challenged=900, shown=10)
CALM = Syns(opened=50, followed=50)


def test_a_flood_is_one_at_the_second_reading():
    assert not after(BUSY, FLOOD).flooded
    assert after(BUSY, FLOOD, FLOOD).flooded
    assert after(FLOOD, FLOOD).rate == 880


def test_a_burst_of_clients_who_answer_a_round_trip_later_is_none():
    burst = Syns(opened=5000, followed=100)
    rest = Syns(opened=0, followed=4900)
    assert not after(*[burst, rest] * 10).flooded
    assert not after(*[BUSY] * 10).flooded


def test_it_goes_on_while_challenges_are_not_answered_and_ends_a_minute_after():
    on = [FLOOD, FLOOD, *[CHALLENGED] * 100]
    assert after(*on).flooded
    assert after(*on, *[CALM] * (int(CALM_S) - 1)).flooded
    assert not after(*on, *[CALM] * int(CALM_S)).flooded
    # Honest clients who answer their challenges are no flood.
    shown = Syns(challenged=5000, shown=4990, opened=5000, followed=5000)
    assert not after(*on, *[shown] * int(CALM_S)).flooded


def test_what_is_half_as_much_does_not_begin_one_but_keeps_it():
    half = Syns(opened=300, followed=0)
    assert not after(*[half] * 10).flooded
    assert after(FLOOD, FLOOD, *[half] * 200).flooded


def test_an_agent_that_starts_in_a_flood_goes_on_with_it():
    assert after(flooded=True).flooded
    assert after(CALM, flooded=True).flooded
    assert not after(*[CALM] * int(CALM_S), flooded=True).flooded


def test_services_come_and_go():
    first = follow_all({}, 0.0, {"a": Syns(), "b": Syns()}, frozenset({"b"}))
    assert (first["a"].flooded, first["b"].flooded) == (False, True)
    then = follow_all(first, 1.0, {"b": Syns(), "c": Syns(opened=10**9)}, frozenset())
    assert then.keys() == {"b", "c"}
    assert not then["c"].flooded, "it is its first reading"


@given(st.lists(st.tuples(*[st.integers(0, 10**6)] * 4), max_size=20))
def test_counters_that_begin_anew_are_no_flood_of_less_than_nothing(readings):
    watch = begin(0.0, Syns())
    for n, values in enumerate(readings, 1):
        watch = follow(watch, float(n), Syns(*values))
        assert watch.rate >= 0
    assert follow(watch, watch.at_s, Syns()) == watch
