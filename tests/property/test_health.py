"""Laws of the health state machine, for every check and every sequence of results."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.health.rules import (
    MOST_WAYS,
    ProbeResult,
    adopted,
    checking,
    next_delay_s,
    observe,
    ways_to_ask,
)
from agent.model import Forward, Health, HealthCheck, HealthStatus
from agent.state.way import Way

CHECKS = st.builds(
    HealthCheck,
    interval_s=st.floats(0.1, 3600),
    rise=st.integers(1, 10),
    fall=st.integers(1, 10),
    jitter=st.floats(0, 1),
)
RESULTS = st.lists(
    st.builds(
        ProbeResult,
        ok=st.booleans(),
        detail=st.text(min_size=1, max_size=20),
        latency_ms=st.floats(0, 10_000),
    ),
    max_size=60,
)
STARTS = st.sampled_from([checking(0.0), adopted(Health.UP, 0.0), adopted(Health.DOWN, 0.0)])


def history(
    check: HealthCheck, start: HealthStatus, results: list[ProbeResult]
) -> list[HealthStatus]:
    statuses = [start]
    for now, result in enumerate(results, start=1):
        statuses.append(observe(check, statuses[-1], result, float(now)))
    return statuses


@given(CHECKS, STARTS, RESULTS)
def test_health_flips_exactly_after_rise_or_fall_results_in_a_row(
    check: HealthCheck, start: HealthStatus, results: list[ProbeResult]
) -> None:
    statuses = history(check, start, results)
    for index, (old, new) in enumerate(pairwise(statuses), start=1):
        if old.health is Health.CHECKING:
            assert new.health is (Health.UP if results[0].ok else Health.DOWN)
            continue
        needed = check.fall if old.health is Health.UP else check.rise
        against = old.health is Health.DOWN
        last = results[max(0, index - needed) : index]
        due = len(last) == needed and all(result.ok is against for result in last)
        assert (new.health is not old.health) == due


@given(CHECKS, STARTS, RESULTS)
def test_since_moves_only_with_health_and_the_reason_is_never_empty(
    check: HealthCheck, start: HealthStatus, results: list[ProbeResult]
) -> None:
    statuses = history(check, start, results)
    for now, (old, new) in enumerate(pairwise(statuses), start=1):
        assert new.since == (old.since if new.health is old.health else float(now))
        assert new.reason
        assert results[now - 1].detail in new.reason


@given(CHECKS, STARTS, RESULTS)
def test_passes_and_failures_count_the_run_at_the_end(
    check: HealthCheck, start: HealthStatus, results: list[ProbeResult]
) -> None:
    last = history(check, start, results)[-1]
    assert last.passes == 0 or last.failures == 0
    run = 0
    for result in reversed(results):
        if result.ok is not results[-1].ok:
            break
        run += 1
    assert max(last.passes, last.failures) == run


@given(CHECKS, STARTS, RESULTS, st.floats(0, 1, exclude_max=True))
def test_the_next_check_is_never_at_once_again_and_never_later_than_interval_and_jitter(
    check: HealthCheck, start: HealthStatus, results: list[ProbeResult], rnd: float
) -> None:
    last = history(check, start, results)[-1]
    delay = next_delay_s(check, last, rnd)
    assert delay <= check.interval_s * (1 + check.jitter) + 0.01
    if results:
        assert delay >= 0.01
        assert delay >= check.interval_s / 2 * (1 - check.jitter) - 1e-9


@given(st.lists(st.booleans(), max_size=60))
def test_each_way_to_a_server_has_its_turn_and_what_is_in_doubt_is_asked_every_time(
    settled: list[bool],
) -> None:
    server, vip = ip_address("10.0.0.21"), ip_address("10.9.0.1")
    ways = [Way(Forward.DSR, vip + number, 80, server) for number in range(len(settled))]
    doubted = {way for way, is_settled in zip(ways, settled, strict=True) if not is_settled}
    known = [(way, adopted(Health.DOWN if way in doubted else Health.UP, 0.0)) for way in ways]
    asked = [ways_to_ask([(None, checking(0.0)), *known], turn) for turn in range(len(ways) + 1)]
    for each in asked:
        assert len(set(each)) == len(each)
        assert doubted <= set(each)
        assert len(each) == min(len(ways), max(MOST_WAYS, len(doubted)))
    if len(doubted) < MOST_WAYS:
        assert set(ways) == {way for each in asked for way in each}
