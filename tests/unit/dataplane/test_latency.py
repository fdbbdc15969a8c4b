"""Histograms of times as quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane import abi, latency
from agent.dataplane.latency import FIRST_BYTE, HANDSHAKE, LatencyWindow
from agent.state.snapshot import Latency


def counts_of(times_us: list[float]) -> np.ndarray:
    """As bpf/ counts them: in the last bucket that begins no later."""
    counts = np.zeros(abi.LATENCY_BUCKETS, dtype=np.uint64)
    for time in times_us:
        counts[max(i for i, bound in enumerate(latency.BOUNDS_US) if time >= bound)] += 1
    return counts


def row(first_byte: list[float] = (), handshake: list[float] = ()) -> np.ndarray:
    table = np.zeros(1, dtype=abi.BACKEND_LATENCY)
    for field, times in ((FIRST_BYTE, first_byte), (HANDSHAKE, handshake)):
        table[field] = counts_of(times)
        table[f"{field}_us"] = sum(times)
    return table[0]


def test_buckets_are_half_octaves_from_64_us():
    bounds = latency.BOUNDS_US
    assert len(bounds) == abi.LATENCY_BUCKETS
    assert bounds[:6] == (0, 64, 96, 128, 192, 256)
    for k in range(21):
        assert bounds[1 + 2 * k] == 64 * 2**k
        assert bounds[2 + 2 * k] == 96 * 2**k
    assert bounds[43] == 64 * 2**21


def test_nothing_counted_has_no_quantile():
    assert latency.quantile_ms(counts_of([]), 0.5) is None


@given(
    st.lists(st.floats(64, 100e6), min_size=1, max_size=200),
    st.floats(0.01, 1.0),
)
def test_a_quantile_is_exact_to_within_a_bucket(times: list[float], share: float):
    exact = np.quantile(np.array(times), share, method="inverted_cdf") / 1000
    found = latency.quantile_ms(counts_of(times), share)
    assert exact / 1.5 <= found <= exact * 1.5


def test_quantiles_within_a_bucket_are_spread_on_a_log_scale():
    counts = counts_of([1100] * 100)  # 1024 to 1536 us
    assert latency.quantile_ms(counts, 0.5) == pytest.approx(1.024 * 1.5**0.5)
    assert latency.quantile_ms(counts, 1.0) == pytest.approx(1.536)


def test_of_the_first_bucket_and_the_last_what_is_known_is_told():
    assert latency.quantile_ms(counts_of([3] * 4), 0.5) == pytest.approx(0.032)
    assert latency.quantile_ms(counts_of([900e6]), 0.99) == 64 * 2**21 / 1000


@given(st.lists(st.floats(0, 200e6), min_size=1, max_size=200), st.floats(0.000_001, 120))
def test_how_many_were_longer_agrees_with_the_quantile(times: list[float], limit_s: float):
    counts = counts_of(times)
    over = latency.above(counts.astype(np.int64), limit_s)
    bucket = np.searchsorted(latency.BOUNDS_US, limit_s * 1e6, side="right") - 1
    in_bucket = int(counts[bucket])
    exact = sum(time > limit_s * 1e6 for time in times)
    assert exact - in_bucket <= over <= exact + in_bucket
    share = 1 - over / counts.sum()
    if 0 < share < 1 and in_bucket:
        assert latency.quantile_ms(counts, share) == pytest.approx(limit_s * 1e3, rel=1e-6)


@given(st.lists(st.floats(0, 300e6), max_size=100))
def test_octaves_count_all_below_their_end(times: list[float]):
    found = latency.octaves(counts_of(times))
    assert list(latency.OCTAVE_ENDS_S) == [64e-6 * 2**k for k in range(22)]
    for end, number in zip(latency.OCTAVE_ENDS_S, found, strict=True):
        assert number == sum(time < end * 1e6 for time in times)


def table_of(rows: dict[int, np.ndarray]) -> np.ndarray:
    table = np.zeros(8, dtype=abi.BACKEND_LATENCY)
    for ident, row in rows.items():
        table[ident] = row
    return table


def window_of(*readings: tuple[float, dict[int, np.ndarray]]) -> LatencyWindow:
    window = LatencyWindow()
    for at, rows in readings:
        window = window.add(at, table_of(rows), np.array([*rows]))
    return window


def summary(row: np.ndarray, window: LatencyWindow, ident: int, kind: str) -> Latency:
    return latency.summary(table_of({ident: row}), window, ident, kind)


def test_a_summary_tells_of_the_last_minute_and_of_all_time():
    window = window_of((0.0, {5: row([2000] * 100)}))
    found = summary(row([2000] * 100 + [500_000] * 4), window, 5, FIRST_BYTE)
    assert (found.count, found.recent_count) == (104, 4)
    assert found.sum_s == pytest.approx(0.2 + 2.0)
    assert 0.393 <= found.recent_p50_ms / 1000 <= 0.525
    assert found.recent_p99_ms >= found.recent_p50_ms
    assert found.octaves[-1] == 104


def test_the_two_kinds_of_times_do_not_mix():
    value = row([500_000], handshake=[100, 100, 100])
    assert summary(value, LatencyWindow(), 1, HANDSHAKE).count == 3
    assert summary(value, LatencyWindow(), 1, FIRST_BYTE).count == 1


def test_a_backend_that_was_not_there_counts_whole():
    window = window_of((0.0, {5: row([100])}))
    assert summary(row([100] * 3), window, 6, FIRST_BYTE).recent_count == 3


def test_counts_that_went_back_have_started_again():
    window = window_of((0.0, {5: row([100] * 50 + [9000] * 2)}))
    found = summary(row([100] * 80 + [9000]), window, 5, FIRST_BYTE)
    assert found.recent_count == 81


def test_a_window_keeps_a_minute_and_no_more():
    window = LatencyWindow()
    at = 0.0
    for second in range(500):
        at = 1000.0 + second
        if window.is_due(at):
            window = window.add(at, table_of({1: row([100] * second)}), np.array([1]))
        assert len(window.readings) <= 8
    span = at - window.readings[0].at
    assert latency.WINDOW_S <= span < latency.WINDOW_S + 2 * latency.STEP_S
    assert summary(row([100] * 499), window, 1, FIRST_BYTE).recent_count == span


def test_the_slowest_twentieth_of_all_backends_in_the_last_minute():
    table = np.array([row(), row([2000] * 200), row([2000] * 10 + [500_000] * 2)])
    window = window_of((0.0, {1: row([2000] * 181), 2: row([2000] * 10)}))
    assert latency.p95_s(table, window, np.array([1, 2])) == pytest.approx(0.45, rel=0.2)
    assert latency.p95_s(table, window, np.array([1])) == pytest.approx(0.002, rel=0.3)
    assert latency.p95_s(table, window, np.array([0])) is None
    assert latency.p95_s(table, window, np.array([], np.int64)) is None


def test_rows_are_copies():
    table = np.zeros(4, dtype=abi.BACKEND_LATENCY)
    window = LatencyWindow().add(0.0, table, np.array([2, 3]))
    table[FIRST_BYTE][2] = 1
    assert latency.recent(table, window, np.array([2, 3]), FIRST_BYTE).any(axis=1).tolist() == [
        True,
        False,
    ]


@given(st.lists(st.dictionaries(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=30))
def test_it_counts_as_if_all_rows_of_all_readings_were_kept(steps: list[dict[int, int]]):
    """In each step, backends are removed, come back with nothing counted, or answer."""
    table = np.zeros(4, dtype=abi.BACKEND_LATENCY)
    window, kept = LatencyWindow(), []
    for number, step in enumerate(steps):
        at = number * latency.STEP_S
        for ident, answers in step.items():
            table[FIRST_BYTE][ident, 0] += answers
            if not answers:
                table[ident] = np.zeros(1, dtype=abi.BACKEND_LATENCY)[0]
        window = window.add(at, table, np.array([*step], np.int64))
        kept.append((at, {ident: int(table[FIRST_BYTE][ident, 0]) for ident in step}))
        outside = [rows for when, rows in kept[:-1] if when <= at - latency.WINDOW_S]
        first = outside[-1] if outside else kept[0][1]
        now = table[FIRST_BYTE][:, 0].tolist()
        grown = [count - first.get(ident, 0) for ident, count in enumerate(now)]
        wanted = [more if more >= 0 else count for more, count in zip(grown, now, strict=True)]
        found = latency.recent(table, window, np.arange(4), FIRST_BYTE)
        assert found.sum(axis=1).tolist() == wanted


def test_rows_that_do_not_move_are_kept_twice_at_most():
    table = np.ones(100, dtype=abi.BACKEND_LATENCY)
    window = LatencyWindow()
    for number in range(20):
        table[FIRST_BYTE][7] += 1
        window = window.add(number * latency.STEP_S, table, np.arange(100))
    assert len(window.readings) > 5
    assert sum(len(each.rows) for each in window.readings) <= len(window.readings)


def rows(*counts: dict[int, int]) -> np.ndarray:
    """Of backends that have answered so often in these buckets."""
    table = np.zeros(len(counts), dtype=abi.BACKEND_LATENCY)
    for row, each in zip(table, counts, strict=True):
        for bucket, count in each.items():
            row["first_byte"][bucket] = count
    return table


def test_patience_is_eight_times_the_slowest_hundredth_within_a_minute_and_a_quarter_of_an_hour():
    of_20_s = next(n for n, bound in enumerate(latency.BOUNDS_US) if bound >= 20_000_000)
    found = latency.patience_ns(
        rows(
            {0: 1000},
            {0: 990, of_20_s: 10},
            {0: 989, of_20_s: 11},
            {abi.LATENCY_BUCKETS - 1: 1000},
            {0: 19},
            {},
        )
    )
    slow_s = 8 * latency.BOUNDS_US[of_20_s + 1] / 1e6
    assert 160 < slow_s < 400
    assert [round(each / 1e9, 3) for each in found] == [60, 60, round(slow_s, 3), 900, 900, 900]
