"""What the rows of the smoke test conclude from the records of their load."""

from __future__ import annotations

import math
from typing import Any

from lbctl.lab.judge import Outcome
from tests.unit.vagrant.records import V4, V6, answered, failed, held, window
from vagrant.smoke import judge

OPEN = [held(1, "opened", 1.0), held(2, "opened", 1.0, "be2")]


def figure(outcome: Outcome, name: str) -> float:
    (found,) = (figure.value for figure in outcome.figures if figure.name == name)
    return found


def test_a_gap_lasts_from_the_first_request_not_answered_at_once_to_the_next_that_is() -> None:
    requests = [
        answered(1.0),
        answered(2.0, latency_ms=3000.0),
        failed(2.5),
        answered(2.2, latency_ms=1000.0),
        answered(3.25),
        failed(7.0),
        answered(7.1),
    ]
    gap = judge.longest_gap(requests)
    assert gap is not None
    assert (gap.start_s, gap.end_s) == (2.0, 3.25)


def test_no_gap_where_slow_machines_answer_at_the_first_try() -> None:
    assert judge.longest_gap([answered(1.0, latency_ms=899.0), answered(2.0)]) is None


def test_a_gap_that_has_not_ended_is_the_longest() -> None:
    gap = judge.longest_gap([failed(1.0), answered(90.0), failed(91.0)])
    assert gap is not None
    assert gap.end_s == math.inf


def test_all_ports_of_an_address_tell_of_its_gap() -> None:
    other_port = "10.77.1.100:83"
    requests = [failed(1.0), answered(1.5, target=other_port), failed(1.2, target=V6)]
    gaps = judge.gaps_by_address(requests)
    assert list(gaps) == ["10.77.1.100", "fd77:0:0:1::100"]
    first = gaps["10.77.1.100"]
    assert first is not None
    assert first.end_s == 1.5


def test_a_backend_that_gets_no_request_is_a_problem() -> None:
    found = window([answered(11.0, "be1"), answered(12.0, "be2")])
    assert judge.traffic(found, ["be1", "be2"]).problems == []
    assert judge.traffic(found, ["be1", "be2", "be3"]).problems == ["be3 got no request"]


def test_a_request_through_a_quiet_service_must_not_fail() -> None:
    outcome = judge.traffic(window([answered(11.0), failed(12.0, "timeout")]), ["be1"])
    assert outcome.problems == ["1 requests failed (timeout)"]


def test_requests_to_a_dead_backend_may_fail_until_it_is_out_of_use() -> None:
    events = [*OPEN, held(1, "broke", 11.0)]
    requests = [failed(11.0), failed(13.5), answered(21.0)]
    outcome = judge.backend_lost(window(requests, events), "be1", 14.0, 40.0)
    assert outcome.problems == []
    assert figure(outcome, "requests failed until then") == 2
    assert figure(outcome, "last request that failed, after") == 3.5
    assert figure(outcome, "answers again after") == 30.0


def test_a_request_that_fails_when_the_dead_backend_is_out_of_use_is_a_problem() -> None:
    outcome = judge.backend_lost(window([failed(14.5, "timeout")]), "be1", 14.0, 40.0)
    assert outcome.problems == ["1 requests failed when it was out of use (1 timeout)"]


def test_connections_of_other_backends_must_survive_a_death() -> None:
    events = [*OPEN, held(2, "broke", 11.0, "be2")]
    (problem,) = judge.backend_lost(window([answered(11.0)], events), "be1", 14.0, 40.0).problems
    assert problem == "1 connections of other backends broke"


def test_a_backend_that_is_not_used_again_is_a_problem() -> None:
    (problem,) = judge.backend_lost(window([answered(11.0)]), "be1", 14.0, None).problems
    assert "gets no requests" in problem


def test_a_drained_backend_keeps_what_it_has_and_gets_nothing_new() -> None:
    requests = [answered(11.0, "be1"), answered(13.0, "be2")]
    assert judge.drain(window(requests), "be1", 12.0).problems == []
    late = judge.drain(window([*requests, answered(14.0, "be1")]), "be1", 12.0)
    assert late.problems == ["1 requests came to be1 after it was drained"]
    broken = judge.drain(window(requests, [*OPEN, held(1, "broke", 13.0)]), "be1", 12.0)
    assert broken.problems == ["1 open connections broke or moved"]


def test_a_drain_proves_nothing_without_an_open_connection() -> None:
    (problem,) = judge.drain(window([answered(11.0)], OPEN), "be3", 12.0).problems
    assert "no open connection" in problem


def test_a_failed_request_or_a_broken_connection_is_a_disturbance() -> None:
    assert judge.undisturbed(window([answered(11.0)]), "upgrade").problems == []
    assert judge.undisturbed(window([failed(11.0)]), "upgrade").problems
    for event in ("broke", "moved"):
        events = [*OPEN, held(2, event, 50.0)]
        assert judge.undisturbed(window([answered(11.0)], events), "upgrade").problems


def test_silence_proves_nothing() -> None:
    assert judge.undisturbed(window([]), "upgrade").problems
    assert judge.undisturbed(window([answered(11.0)], []), "upgrade").problems


def test_requests_may_fail_while_nobody_has_the_vips() -> None:
    requests = [
        *(answered(10.5, target=target) for target in (V4, V6)),
        *(failed(12.0, "timeout", target=target) for target in (V4, V6)),
        answered(12.4, target=V4),
        answered(12.5, target=V6),
    ]
    outcome = judge.master_killed(window(requests), "lb2")
    assert outcome.problems == []
    assert round(figure(outcome, "outage of 10.77.1.100")) == 400
    assert figure(outcome, "requests failed in the outage") == 2


def test_a_failure_after_the_outage_and_a_lost_connection_are_problems() -> None:
    requests = [failed(12.0), answered(13.0), failed(20.0), answered(20.1)]
    (problem,) = judge.master_killed(window(requests), "lb2").problems
    assert problem.startswith("1 requests failed after the outage")
    events = [*OPEN, held(1, "broke", 12.0)]
    (problem,) = judge.master_killed(window([answered(13.0)], events), "lb2").problems
    assert "1 open connections broke" in problem


def test_a_vip_that_stays_away_is_a_problem() -> None:
    requests = [answered(11.0), failed(12.0), answered(13.0, target=V6)]
    problems = judge.master_killed(window(requests), "lb2").problems
    assert problems[0] == "10.77.1.100 does not answer any more"


def test_a_warning_of_the_doctor_is_shown_and_a_problem_fails() -> None:
    def finding(verdict: str) -> dict[str, Any]:
        return {"check": "x", "verdict": verdict, "message": f"it is {verdict}", "fix": ""}

    found = {"lb1": [finding("ok"), finding("warning")], "lb2": [finding("ok")]}
    outcome = judge.doctor(found)
    assert outcome.problems == []
    assert "lb1: warning: it is warning" in outcome.lines
    assert judge.doctor({**found, "lb2": [finding("problem")]}).problems == ["lb2: it is problem"]
    assert judge.doctor({"lb1": []}).problems == ["lb1: the doctor said nothing"]
