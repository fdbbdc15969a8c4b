"""What results do to a health, one case at a time; the laws are in tests/property."""

from __future__ import annotations

from dataclasses import replace

from agent.health.rules import (
    ProbeResult,
    adopted,
    checking,
    due,
    excused,
    is_meaningful,
    next_delay_s,
    observe,
    rechecked,
    unchecked,
)
from agent.model import CheckKind, Health, HealthCheck, HealthStatus

CHECK = HealthCheck(interval_s=2.0, rise=2, fall=3, jitter=0.0)
PASS = ProbeResult(ok=True, detail="HTTP 200 in 3 ms", latency_ms=3.0)
FAIL = ProbeResult(ok=False, detail="connection refused", latency_ms=0.2)


def after(status: HealthStatus, *results: ProbeResult) -> HealthStatus:
    for second, result in enumerate(results, start=1):
        status = observe(CHECK, status, result, status.since + second)
    return status


def test_first_pass_brings_a_new_backend_up() -> None:
    status = after(checking(100.0), PASS)
    assert (status.health, status.reason, status.since) == (Health.UP, "HTTP 200 in 3 ms", 101.0)
    assert status.latency_ms == 3.0


def test_first_failure_takes_a_new_backend_down() -> None:
    status = after(checking(100.0), FAIL)
    assert (status.health, status.reason) == (Health.DOWN, "connection refused")
    assert status.latency_ms is None


def test_up_survives_fewer_failures_than_fall_and_says_so() -> None:
    status = after(adopted(Health.UP, 100.0), FAIL, FAIL)
    assert status.health is Health.UP
    assert status.reason == "failure 2 of 3: connection refused"
    assert status.since == 100.0


def test_a_pass_between_failures_starts_the_count_anew() -> None:
    assert after(adopted(Health.UP, 0.0), FAIL, FAIL, PASS, FAIL, FAIL).health is Health.UP


def test_down_needs_rise_passes_in_a_row() -> None:
    down = adopted(Health.DOWN, 0.0)
    assert after(down, PASS).reason == "pass 1 of 2: HTTP 200 in 3 ms"
    assert after(down, PASS, FAIL, PASS).health is Health.DOWN
    assert after(down, PASS, PASS).health is Health.UP


def test_adopted_health_says_where_it_comes_from() -> None:
    assert adopted(Health.UP, 5.0).reason == "as before the restart"


def test_first_check_comes_within_half_a_second() -> None:
    assert next_delay_s(CHECK, checking(0.0), 0.5) == 0.25
    assert next_delay_s(CHECK, adopted(Health.UP, 0.0), 0.999) < 0.5


def test_checks_come_faster_while_results_speak_against_the_health() -> None:
    steady = after(checking(0.0), PASS)
    assert next_delay_s(CHECK, steady, 0.5) == 2.0
    assert next_delay_s(CHECK, after(steady, FAIL), 0.5) == 1.0
    assert next_delay_s(CHECK, after(steady, FAIL, FAIL, FAIL), 0.5) == 2.0


def test_an_edited_check_leaves_health_and_its_age_alone() -> None:
    up = after(checking(0.0), PASS)
    edited = rechecked(CHECK, replace(CHECK, path="/ready"), up, 50.0)
    assert (edited.health, edited.since, edited.passes) == (Health.UP, up.since, 0)


def test_a_check_that_is_added_takes_nothing_out_before_its_verdict() -> None:
    none = replace(CHECK, kind=CheckKind.NONE)
    added = rechecked(none, CHECK, unchecked(0.0), 9.0)
    assert (added.health, added.since) == (Health.UP, 9.0)
    assert after(added, FAIL).health is Health.UP


def test_a_check_that_is_removed_leaves_the_backend_unchecked() -> None:
    none = replace(CHECK, kind=CheckKind.NONE)
    status = rechecked(CHECK, none, adopted(Health.DOWN, 0.0), 9.0)
    assert (status.health, status.since) == (Health.UNCHECKED, 9.0)


# -- completions

COMPLETION = HealthCheck(CheckKind.COMPLETION, every_s=30.0)
BUSY = ProbeResult(ok=False, detail="no answer within 10 s", latency_ms=None, busy=True)


def test_between_completions_to_connect_is_enough_while_all_is_well() -> None:
    up = adopted(Health.UP, 0.0)
    assert due(COMPLETION, up, 29.9).kind is CheckKind.TCP
    assert due(COMPLETION, up, 30.0) == COMPLETION
    assert due(COMPLETION, replace(up, failures=1), 1.0) == COMPLETION
    assert due(COMPLETION, checking(0.0), 1.0) == COMPLETION
    assert due(COMPLETION, adopted(Health.DOWN, 0.0), 1.0) == COMPLETION
    assert due(CHECK, up, 1.0) == CHECK


def test_who_answers_clients_is_not_ill_because_he_is_busy() -> None:
    assert excused(BUSY, 0) == BUSY
    assert excused(BUSY, 3).ok
    assert excused(BUSY, 3).detail == "no answer within 10 s, but it answered 3 clients meanwhile"
    assert excused(BUSY, 1).detail.endswith("it answered a client meanwhile")
    assert excused(FAIL, 3) == FAIL
    assert excused(PASS, 3) == PASS


def test_what_is_no_round_trip_leaves_the_last_one_known() -> None:
    status = after(checking(100.0), PASS, replace(PASS, latency_ms=None))
    assert status.latency_ms == 3.0
    assert after(checking(100.0), replace(PASS, latency_ms=None)).latency_ms is None


def test_silence_tells_again_some_time_after_the_last_refusal() -> None:
    silence = replace(PASS, vague=True)
    assert [is_meaningful(silence, since_s) for since_s in (0.5, 9.9, 10.0)] == [False, False, True]
    assert is_meaningful(PASS, 0.5)
    assert is_meaningful(FAIL, 0.5)
