"""``lbctl failover``: what a person sees of it, and what it asks of the agent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.api.failoverviews import failover, summary
from agent.failover.status import Problem
from agent.state.snapshot import FailoverView
from tests.unit.failover.samples import MASTER, NOW, STATUS, VIEW


@pytest.fixture(autouse=True)
def paired(agent):
    agent.failover = failover(VIEW, NOW)
    agent.status["failover"] = summary(VIEW, NOW)


def test_status_says_who_is_master_and_why(run) -> None:
    result = run("failover", "status")
    assert result.code == 0
    four, six = result.out.splitlines()[1:3]
    assert four.split()[:5] == ["web/ipv4", "backup", "1m30s", "100→1", "10.0.0.2"]
    assert "10.0.0.2 has priority 150; handed over; handed-over by the operator" in four
    assert six.split()[:6] == ["web/ipv6", "master", "10s", "100", "this", "node"]


def test_status_names_mismatches_the_process_and_the_flows(run) -> None:
    out = run("failover", "status").out
    assert "MISMATCH web/ipv4: 10.0.0.2 has other VIPs (580 times, last 2s ago)" in out
    assert "failover process: pid 77, up 1h00m, scheduled in real time, memory not locked" in out
    assert "flow sync with 10.0.0.2 (edge-2): connected, lag 210ms; 1.0k flows sent" in out
    assert "100 were not accepted" in out


def test_what_this_node_cannot_do_is_no_mismatch(run, agent) -> None:
    unheard = Problem("announcements", "VIPs cannot be announced on eth0", NOW, NOW, 1)
    routers = (replace(MASTER, problems=(unheard,)),)
    view = replace(VIEW, process=replace(STATUS, routers=routers))
    agent.failover = failover(view, NOW)
    out = run("failover", "status").out
    assert "PROBLEM web/ipv6: VIPs cannot be announced on eth0\n" in out
    assert "MISMATCH" not in out


def test_status_as_json_is_the_agents_answer(run, agent) -> None:
    assert json.loads(run("failover", "status", "-o", "json").out) == agent.failover


def test_status_of_a_lone_balancer(run, agent) -> None:
    agent.failover = failover(FailoverView(), NOW)
    assert "no instance of failover is configured" in run("failover", "status").out


def test_a_silent_process_is_a_problem(run, agent) -> None:
    agent.failover = failover(replace(VIEW, process=None, problem="no such socket"), NOW)
    assert "failover process: no such socket" in run("failover", "status").out


def test_the_main_page_has_a_line_for_each_instance(run) -> None:
    out = run("status").out
    assert "web/ipv4: backup for 1m30s: 10.0.0.2 has priority 150 (handed-over)" in out
    assert "10.0.0.2 has other VIPs" in out
    assert "flow sync with 10.0.0.2: connected, lag 210ms" in out


def test_the_main_page_of_a_lone_balancer_says_nothing_of_it(run, agent) -> None:
    agent.status["failover"] = summary(FailoverView(), NOW)
    assert "failover" not in run("status").out


@pytest.mark.parametrize(
    ("words", "instance", "force", "dry_run"),
    [
        (("handover",), None, False, False),
        (("handover", "web", "--force"), "web", True, False),
        (("promote", "web"), "web", False, False),
        (("release", "--dry-run"), None, False, True),
    ],
)
def test_verbs_ask_the_agent(run, agent, words, instance, force, dry_run) -> None:
    result = run("failover", *words)
    asked = {"instance": instance, "force": force, "dry_run": dry_run}
    assert (result.code, agent.moves) == (0, [(words[0], asked)])
    assert result.out == "handed over\n"


def test_why_the_vips_move_is_told(run, agent) -> None:
    assert run("failover", "handover", "-m", "new kernel").code == 0
    assert agent.moves[0][1]["message"] == "new kernel"


def test_a_refusal_is_an_error_with_its_remedy(run, agent) -> None:
    agent.refuse_moves = "nobody took the VIPs"
    result = run("failover", "handover")
    assert result.code == 1
    assert "nobody took the VIPs" in result.err


def test_a_mistyped_verb_is_guessed(run) -> None:
    result = run("failover", "handver")
    assert result.code == 2
    assert "did you mean handover?" in result.err
