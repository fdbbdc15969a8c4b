"""What the AI benchmark says: percentiles, verdicts, plots, and the bytes that its client sends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.ai import cases, client, fleet, plan, plot, report, results, trace
from bench.ai.cases import CASES
from bench.ai.contenders import COMPLETE, REFERENCE
from bench.ai.plan import Answer, Played
from bench.ai.results import Row
from bench.ai.run import Measured, RunError
from bench.ai.simulator import Scenario
from bench.ai.trace import Conversations, conversations
from lbctl.lab.engine.model import H100
from lbctl.lab.engine.openai import read_completion

LENGTHS = trace.generated(500)
TRACE = CASES[0]


def row(contender: str, case: str, *seconds: float) -> Row:
    return Row(contender, case, seconds * 10, seconds, 1000.0, {})


def test_targets_are_judged_beside_the_reference() -> None:
    rows = [row(REFERENCE, "trace", 1, 2, 3, 4), row(COMPLETE, "trace", 1, 1.4, 3.2, 3)]
    said = {verdict.percentile: verdict for verdict in report.judged(rows)}
    assert said["p95"].most == 0.75
    assert said["p95"].reached
    assert not said["p99"].reached  # 1.07 is more than 5 % worse
    assert said["p99.9"].found == pytest.approx(0.75)


def test_only_those_that_a_balancer_decided_about_count_and_not_the_start() -> None:
    case = next(case for case in CASES if case.bypass)
    scenario = cases.scenario(case, fleet.servers(2), LENGTHS, 100, seed=1)
    by_itself = results.chances(scenario).bypasses
    answers = tuple(
        Answer(9.0 if number < 10 or by_itself[number] else 0.1, 1.0, 0.0, "be1", "")
        for number in range(100)
    )
    found = Measured(Played(answers, 10.0, 2.0), 10.0, 0.5, 1.0, 0.0)
    measured, health = results.measured("it", case.name, scenario, found, 10.0)
    assert set(measured.waits_s) == {1.0}
    assert len(measured.waits_s) == by_itself[10:].count(False)
    assert health.client_cpu == pytest.approx(0.2)
    assert health.kept_up
    assert not replace(health, idle_share=0.05).kept_up


def test_errors_are_counted_by_kind() -> None:
    scenario = cases.scenario(TRACE, fleet.servers(2), LENGTHS, 20, seed=1)
    answers = (Answer(None, None, 0.0, "", "reset"),) * 3 + (Answer(1, 2, 0, "be1", ""),) * 17
    found = Measured(Played(answers, 1.0, 0.1), 1.0, 0.5, 0.1, 0.0)
    measured, _ = results.measured("it", "trace", scenario, found, 1.0)
    assert measured.errors == {"reset": 3}


def test_a_case_without_any_answer_has_no_row() -> None:
    scenario = cases.scenario(TRACE, fleet.servers(2), LENGTHS, 20, seed=1)
    found = Measured(
        Played((Answer(None, None, 0.0, "", "reset"),) * 20, 1.0, 0.1), 1.0, 0.5, 0.1, 0.0
    )
    with pytest.raises(RunError, match="no request was answered"):
        results.measured("it", "trace", scenario, found, 1.0)


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.throttled)
    scenario = cases.scenario(case, fleet.servers(2), LENGTHS, 30, seed=1)
    made = plan.make(scenario, ("a:1", "b:2", "c:3"), 10.0)
    plan.write(tmp_path / "plan", made)
    assert plan.read_plan(tmp_path / "plan") == made
    assert made.asks[-1].at_s == pytest.approx(scenario.requests[-1].at_s / 10)
    assert [throttle.slow for throttle in made.throttles] == [3.0, 1.0]


@pytest.mark.parametrize("tokens", [1, 250, 4142])
def test_the_engine_reads_from_a_request_as_many_tokens_as_were_meant(tokens: int) -> None:
    head, _, body = client.request_bytes("10.0.0.1:80", tokens, 7, True).partition(b"\r\n\r\n")
    asked = read_completion("/v1/completions", body)
    assert (asked.prompt_tokens, asked.max_tokens, asked.stream) == (tokens, 7, True)
    assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"


def test_a_turn_of_a_conversation_survives_the_file_and_reaches_the_engine(tmp_path: Path) -> None:
    what = Conversations(8, 1.0, turns=4, think_s=5, system_tokens=300, tenants=2)
    asked = conversations(LENGTHS, what, seed=1)
    made = plan.make(Scenario((H100,), asked), ("a:1", "b:2"), 10.0)
    plan.write(tmp_path / "plan", made)
    assert plan.read_plan(tmp_path / "plan") == made
    held: dict[str, int] = {}
    begun: dict[int, str] = {}
    hits = 0
    for request, ask in zip(asked, made.asks, strict=True):
        assert ask.turn is not None
        lengths = (ask.prompt_tokens, ask.answer_tokens)
        _, _, body = client.chat_bytes("a:1", ask.turn, *lengths, False).partition(b"\r\n\r\n")
        told = read_completion("/v1/chat/completions", body)
        assert (told.prompt_tokens, told.max_tokens) == lengths
        (_, system_tokens), (talk, tokens) = told.beginnings
        assert (system_tokens, tokens, told.conversation) == (300, ask.prompt_tokens, talk)
        # A turn behind the first finds what the simulator says that there is.
        assert (talk in held) == (len(request.prefixes) == 2)
        assert held.get(talk, 0) == dict(request.prefixes).get(request.kept_as, 0)
        # What begins a conversation is a message that does not grow, as in real ones.
        begins = json.loads(body)["messages"][1]["content"]
        assert begun.setdefault(ask.turn.conversation, begins) == begins
        hits += talk in held
        held[talk] = ask.prompt_tokens + ask.answer_tokens
    assert hits
    assert len({ask.turn.source for ask in made.asks if ask.turn}) == 8


def test_plots_are_svg_and_name_every_contender() -> None:
    shares = {"trace": {"one & two": 0.5, "three": 9.0}}
    waits = {"one & two": [0.1, 0.2, 3.0], "three": [1.0, 2.0, 50.0]}
    for drawn in (plot.bars("p99", shares, 2.0), plot.tails("trace", waits)):
        words = " ".join(ElementTree.fromstring(drawn).itertext())  # noqa: S314 (our own)
        assert "one & two" in words
        assert "three" in words


def test_the_json_of_a_report_can_be_read() -> None:
    rows = (row(REFERENCE, "trace", 1, 2, 3, 4), row(COMPLETE, "trace", 1, 1, 1, 1))
    found = report.Found(
        machine=report.Machine(*["?"] * 1, 2, *["?"] * 8),
        lengths="here",
        time_scale=10.0,
        requests=4000,
        real=rows,
        health=(),
        same=(),
        simulated=rows,
        simulated_requests=10,
        large={},
    )
    document = json.loads(report.as_json(found))
    assert document["real"][1]["share_of_reference"]["p95"] == 0.5
    assert all(
        target["reached"]
        for target in document["targets_simulated"]
        if target["percentile"] != "p99.9"
    )
