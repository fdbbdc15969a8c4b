"""Counters become rates and shares, whatever the counters do."""

from hypothesis import given
from hypothesis import strategies as st

from agent.model import BackendRef
from agent.state.rates import (
    WINDOW_SAMPLES,
    Counters,
    OpenedWindow,
    increase,
    rates,
    total,
)
from agent.state.snapshot import Rates

A = BackendRef("chat", "a")
B = BackendRef("chat", "b")
OTHER = BackendRef("embed", "a")


def test_rates_are_increases_per_second_and_bits_not_bytes():
    before = Counters(packets=100, bytes=1000, new_flows=10, drops=1)
    after = Counters(packets=300, bytes=3000, new_flows=20, drops=2)
    assert rates(before, after, 2.0) == Rates(
        new_flows_per_s=5.0, packets_per_s=100.0, bits_per_s=8000.0, drops_per_s=0.5
    )


def test_first_reading_has_no_rate():
    assert rates(None, Counters(packets=10**9), 1.0) == Rates()


def test_no_time_between_readings_is_no_rate():
    assert rates(Counters(), Counters(packets=5), 0.0) == Rates()
    assert rates(Counters(), Counters(packets=5), -1.0) == Rates()


def test_counter_that_started_again_counts_from_zero():
    assert increase(1000, 7) == 7
    assert rates(Counters(packets=1000), Counters(packets=10), 1.0).packets_per_s == 10.0


def test_total_sums_every_rate():
    assert total([Rates(1, 2, 3, 4), Rates(10, 20, 30, 40)]) == Rates(11, 22, 33, 44)
    assert total([]) == Rates()


def test_empty_window_has_no_shares():
    assert OpenedWindow().shares() == {}


def test_flows_from_before_the_first_reading_are_in_no_share():
    window = OpenedWindow().add(0, {A: 1_000_000, B: 0}).add(1, {A: 1_000_010, B: 30})
    assert window.increases() == {A: 10, B: 30}
    assert window.shares() == {A: 0.25, B: 0.75}


def test_shares_are_of_the_service():
    window = OpenedWindow().add(0, {A: 0, B: 0, OTHER: 0}).add(1, {A: 1, B: 1, OTHER: 98})
    assert window.shares() == {A: 0.5, B: 0.5, OTHER: 1.0}


def test_no_new_flows_is_share_zero():
    assert OpenedWindow().add(0, {A: 5}).add(1, {A: 5}).shares() == {A: 0.0}


def test_what_is_older_than_the_window_is_forgotten():
    window = OpenedWindow(span_s=60).add(0, {A: 0, B: 0}).add(10, {A: 1000, B: 0})
    for second in range(11, 80):
        window = window.add(second, {A: 1000, B: second})
    assert window.shares() == {A: 0.0, B: 1.0}


def test_counter_restart_inside_the_window_loses_nothing():
    window = OpenedWindow().add(0, {A: 100}).add(10, {A: 150}).add(20, {A: 5})
    assert window.increases() == {A: 55}


def test_removed_backend_leaves_the_shares_to_the_others():
    window = OpenedWindow().add(0, {A: 0, B: 0}).add(5, {A: 10, B: 10}).add(10, {B: 20})
    assert window.shares() == {B: 1.0}


def test_backend_removed_and_added_again_starts_from_nothing():
    window = OpenedWindow().add(0, {A: 0, B: 0}).add(5, {A: 10, B: 10}).add(10, {B: 10})
    window = window.add(15, {A: 0, B: 10}).add(20, {A: 3, B: 10})
    assert window.increases()[A] == 3


def test_adding_leaves_the_old_window_as_it_was():
    first = OpenedWindow().add(0, {A: 0})
    first.add(1, {A: 9})
    assert first.increases() == {A: 0}


def test_window_stays_small_however_often_it_is_fed():
    window = OpenedWindow(span_s=60)
    for tick in range(2000):
        window = window.add(tick / 10, {A: tick})
    assert len(window.samples) <= WINDOW_SAMPLES + 3
    # The newest is exact; the start is at most one sample older than the span.
    assert 600 <= window.increases()[A] <= 640


@given(
    st.lists(
        st.tuples(
            st.floats(0, 30), st.dictionaries(st.sampled_from([A, B, OTHER]), st.integers(0, 2**63))
        ),
        max_size=30,
    )
)
def test_shares_are_between_0_and_1_and_sum_to_1_or_0(steps):
    window, at = OpenedWindow(), 0.0
    for pause, opened in steps:
        at += pause
        window = window.add(at, opened)
        shares = window.shares()
        assert set(shares) == set(opened)
        for service in ("chat", "embed"):
            parts = [share for ref, share in shares.items() if ref.service == service]
            assert all(0 <= part <= 1 for part in parts)
            assert abs(sum(parts) - 1) < 1e-9 or sum(parts) == 0
