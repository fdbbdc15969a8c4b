"""What the demo concludes from the records of its traffic."""

from __future__ import annotations

import os
import signal

import pytest

from lbctl.lab import figures, judge
from lbctl.lab.figures import Held, Prompt, Request
from lbctl.lab.interrupt import Guard, Interrupted
from lbctl.lab.judge import Throttled, Window

V4, V6 = "10.99.0.100:80", "[fd99::100]:80"


def answered(backend: str, started_s: float, target: str = V4, latency_ms: float = 1.0) -> Request:
    ended_s = started_s + latency_ms / 1000
    return Request(ended_s, started_s, target, backend, 200, None, latency_ms)


def refused(started_s: float) -> Request:
    return Request(started_s + 0.001, started_s, V4, None, None, "refused", 1.0)


def held(connection: int, event: str, backend: str, at_s: float, kind: str = "stream") -> Held:
    return Held(at_s, connection, kind, event, V4, backend, None)


def prompt(backend: str, first_token_ms: float | None, error: str | None = None) -> Prompt:
    return Prompt(2.0, 1.0, V4, backend, error, 800, 40, first_token_ms, first_token_ms)


def window(requests: list[Request], events: list[Held] | None = None) -> Window:
    return Window(10.0, 20.0, requests, events or [])


def test_records_survive_their_line() -> None:
    for record in (answered("be1", 1.0), held(3, "broke", "be2", 2.0), prompt("be1", 9.0)):
        assert figures.from_line(figures.to_line(record)) == record


@pytest.mark.parametrize("line", ["", "null", "[]", "{}", '{"record": "summary"}', "Traceback"])
def test_other_lines_are_no_records(line: str) -> None:
    assert figures.from_line(line) is None


def test_latency_is_that_of_answered_requests() -> None:
    requests = [answered("be1", 0.0, latency_ms=n) for n in range(1, 101)] + [refused(0.0)]
    assert figures.latency_ms(requests, 0.5) == 51
    assert figures.slowest_ms(requests) == 100
    assert figures.latency_ms([refused(0.0)], 0.5) == 0


def test_a_connection_is_open_from_its_first_answer_to_its_end() -> None:
    events = [
        held(1, "opened", "be1", 1.0),
        held(2, "opened", "be2", 2.0),
        held(1, "finished", "be1", 3.0),
    ]
    assert figures.open_at(events, 0.5) == {}
    assert figures.open_at(events, 2.5) == {1: "be1", 2: "be2"}
    assert figures.open_at(events, 3.5) == {2: "be2"}


def test_shares_as_promised_are_good_and_others_are_a_problem() -> None:
    good = [answered("be1", 11.0, V4)] * 670 + [answered("be2", 11.0, V6)] * 330
    assert not judge.spread(window(good), {"be1": 100, "be2": 50}).problems
    assert judge.spread(window(good), {"be1": 100, "be2": 100}).problems


def test_traffic_of_one_family_only_is_a_problem() -> None:
    only_v4 = [answered("be1", 11.0, V4)] * 10
    assert "IPv6" in judge.spread(window(only_v4), {"be1": 100}).problems[0]


def to_slow_one(percent: int, slow_ms: float = 50.0) -> list[Prompt]:
    """A hundred prompts, so many of them to the throttled engine."""
    slow = [prompt("be1", slow_ms)] * percent
    return slow + [prompt("be2", 20.0)] * (100 - percent)


def throttled(
    adapted: list[Prompt], by_weight: list[Prompt], right_after: list[Prompt] | None = None
) -> list[str]:
    after = to_slow_one(30) if right_after is None else right_after
    return judge.throttle(Throttled(to_slow_one(40), after, adapted, by_weight), "be1").problems


def test_a_throttled_engine_has_to_get_less_and_prompts_to_wait_less_than_by_weight() -> None:
    by_weight = to_slow_one(40, slow_ms=900.0)
    assert throttled(to_slow_one(20), by_weight) == []
    assert "as many" in throttled(to_slow_one(38), by_weight)[0]
    assert "by weight" in throttled(to_slow_one(20, slow_ms=900.0), by_weight)[0]


def test_a_throttled_engine_may_not_fail_prompts_and_without_prompts_nothing_is_proven() -> None:
    by_weight = to_slow_one(40, slow_ms=900.0)
    failing = [*to_slow_one(20), prompt("be1", None, error="reset")]
    assert "1 prompts failed (reset)" in throttled(failing, by_weight)[0]
    assert "right after: no prompt" in throttled(to_slow_one(20), by_weight, [])[0]


def test_kill_counts_until_the_last_failure_and_forgives_the_dead_backend() -> None:
    requests = [refused(10.1), refused(10.4), answered("be2", 12.0)]
    events = [held(1, "broke", "be1", 10.01)]
    outcome = judge.kill(window(requests, events), "be1", calm=True, back_ms=300.0)
    values = {figure.name: figure.value for figure in outcome.figures}
    assert values["backend killed: last new connection to it after"] == pytest.approx(400)
    assert values["backend killed: requests failed until then"] == 2
    assert not outcome.problems


def test_kill_does_not_forgive_what_breaks_elsewhere() -> None:
    events = [held(1, "broke", "be2", 10.01)]
    assert judge.kill(window([], events), "be1", calm=True, back_ms=1.0).problems
    assert judge.kill(window([]), "be1", calm=False, back_ms=1.0).problems
    assert judge.kill(window([]), "be1", calm=True, back_ms=None).problems


def drained(requests: list[Request], *events: Held) -> list[str]:
    before = [
        held(1, "opened", "be2", 9.0),
        held(2, "opened", "be2", 9.0, "keep-alive"),
        held(1, "finished", "be2", 12.0),
    ]
    return judge.drain(window(requests, [*before, *events]), "be2", 10.5).problems


def test_drain_lets_open_connections_end_and_brings_no_new_ones() -> None:
    assert drained([answered("be1", 11.0), answered("be2", 10.4)]) == []
    assert drained([answered("be2", 11.0)])
    assert drained([], held(3, "opened", "be2", 11.0))
    assert drained([], held(2, "broke", "be2", 11.0, "keep-alive"))
    assert drained([refused(11.0)])


def test_drain_without_open_connections_proves_nothing() -> None:
    assert judge.drain(window([]), "be2", 10.5).problems


def test_added_backend_has_to_get_a_request() -> None:
    assert not judge.add(window([answered("be4", 10.5)]), "be4").problems
    assert judge.add(window([answered("be1", 10.5)]), "be4").problems


@pytest.mark.parametrize("event", ["broke", "moved"])
def test_restart_and_reload_may_break_and_move_nothing(event: str) -> None:
    opened = held(1, "opened", "be1", 9.0)
    quiet = window([answered("be1", 11.0)], [opened])
    assert not judge.restart(quiet, ready_s=13.0, away_s=2.0).problems
    assert not judge.reload(quiet, 10).problems
    noisy = window([answered("be1", 11.0)], [opened, held(1, event, "be1", 12.0)])
    assert judge.restart(noisy, ready_s=13.0, away_s=2.0).problems
    assert judge.reload(noisy, 10).problems
    failing = window([refused(11.0)], [opened])
    assert judge.restart(failing, ready_s=13.0, away_s=2.0).problems


def test_restart_without_traffic_proves_nothing() -> None:
    assert judge.restart(window([]), ready_s=13.0, away_s=2.0).problems


def died(requests: list[Request], *events: Held, outage_ms: float | None = 400.0) -> list[str]:
    opened = held(1, "opened", "be1", 9.0)
    roles = {"lb1": None, "lb2": "master"}
    return judge.die(window(requests, [opened, *events]), outage_ms, roles, "lb2").problems


def test_requests_may_fail_in_an_outage_and_neither_after_it_nor_what_is_open() -> None:
    good = [refused(10.1), refused(10.39), answered("be1", 10.4), answered("be1", 12.0, V6)]
    assert died(good) == []
    assert died([*good, refused(10.41)]) == ["1 requests failed after the outage"]
    assert "broke" in died(good, held(1, "broke", "be1", 12.0))[0]
    assert "moved" in died(good, held(1, "moved", "be2", 12.0))[0]
    assert "no balancer took" in died([refused(10.1)], outage_ms=None)[0]


def test_a_master_that_is_back_takes_its_place_and_nobody_notices() -> None:
    opened = held(1, "opened", "be1", 9.0)
    back = {"lb1": "master", "lb2": "backup"}

    def problems(requests: list[Request], roles: dict[str, str | None] = back) -> list[str]:  # type: ignore[assignment]
        return judge.come_back(window(requests, [opened]), 14.0, roles, "lb1").problems

    assert problems([answered("be1", 11.0)]) == []
    assert "1 requests failed" in problems([answered("be1", 11.0), refused(12.0)])[0]
    assert problems([]) == ["there was no traffic meanwhile"]
    for others in ({"lb1": "master", "lb2": "master"}, {"lb1": None, "lb2": "master"}):
        said = problems([answered("be1", 11.0)], others)  # type: ignore[arg-type]
        assert "lb1 should be the master" in said[0]


def test_an_outage_lasts_until_every_target_answers_at_once() -> None:
    waiting = answered("be1", 10.05, latency_ms=1002.0)
    early = answered("be1", 9.9)
    assert figures.outage_ms([early, waiting, answered("be1", 10.3)], 10.0) == pytest.approx(300)
    both = [waiting, answered("be1", 10.3), answered("be1", 10.5, V6), answered("be1", 11.0, V6)]
    assert figures.outage_ms(both, 10.0) == pytest.approx(500)
    assert figures.outage_ms([waiting, answered("be1", 10.3), refused(10.4)], 10.0) is not None
    assert figures.outage_ms([waiting], 10.0) is None
    assert figures.outage_ms([], 10.0) is None
    assert figures.waited([early, waiting, refused(10.1)]) == [waiting]


def send(number: signal.Signals) -> None:
    """What a terminal, or an init system, does."""
    os.kill(os.getpid(), number)


def test_first_signal_interrupts_and_a_second_one_does_not_cut_the_clean_up() -> None:
    with Guard() as guard:
        with pytest.raises(Interrupted) as caught, guard.interruptible():
            send(signal.SIGTERM)
        send(signal.SIGINT)
        cleaned = True
    assert cleaned
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_a_signal_before_the_work_is_heeded_as_it_begins() -> None:
    with Guard() as guard:
        send(signal.SIGINT)
        with pytest.raises(Interrupted), guard.interruptible():
            pytest.fail("the work began")


def clean_up(steps: list[str]) -> None:
    with Guard():
        send(signal.SIGINT)
        steps.append("cleaned")


def test_a_signal_during_a_clean_up_is_delivered_after_it() -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        clean_up(steps)
    assert steps == ["cleaned"]


def test_a_clean_up_within_interruptible_work_passes_its_signal_on() -> None:
    steps: list[str] = []
    with Guard() as outer, pytest.raises(Interrupted), outer.interruptible():
        clean_up(steps)
    assert steps == ["cleaned"]
