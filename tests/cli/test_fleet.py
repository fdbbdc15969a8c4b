"""``lbctl fleet`` and ``lbctl rollout``: balancers that run the same services."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.cli.conftest import REMOVAL

AT = "2026-01-02T03:04:05.000Z"


def balancer(node: str, version: int = 11, **more: Any) -> dict[str, Any]:
    return {
        "node": node,
        "release": "0.1.0",
        "role": "master",
        "version": version,
        "since": AT,
        "reported": AT,
        "behind_by": 0,
        "refused_version": None,
        "refused_why": "",
        "problem": "",
        "frozen": None,
        "drift": False,
        "services_digest": "ab",
        "rings_digest": "0123456789abcdef",
        "services_down": [],
        "last_minute": {
            "opened": 120, "established": 118, "drops": 3, "answers": 400, "failed": 1,
        },
        **more,
    }  # fmt: skip


FLEET: dict[str, Any] = {
    "fleet": {
        "name": "prod",
        "node": "lb1",
        "version": 11,
        "since": AT,
        "wanted_version": 11,
        "stable_version": 11,
        "newest_version": 11,
        "trying": [],
        "frozen": None,
        "refused_version": None,
        "problem": "",
        "store_away_s": None,
    },
    "rollout": None,
    "last_rollout": None,
    "balancers": [balancer("lb1"), balancer("lb2")],
    "missing": [],
}
VERSION: dict[str, Any] = {
    "number": 11,
    "base": 10,
    "at": AT,
    "node": "lb2",
    "how": "edit",
    "who": "anna",
    "message": "slower",
    "changes": ["change backend chat/gpu-1: weight 100 → 50", "remove backend chat/gpu-2"],
    "changes_count": 7,
    "state": "stable",
    "services": [{"name": "chat", "vip": "10.0.0.10", "port": 80}],
}
OLDER = VERSION | {"number": 10, "message": "", "changes_count": 1, "state": "aborted"}


@pytest.fixture(autouse=True)
def fleet(agent: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("TZ", "UTC")
    agent.fleet, agent.fleet_versions = copy.deepcopy(FLEET), [VERSION, OLDER]
    shown: dict[str, Any] = agent.fleet
    return shown


def test_every_balancer_is_shown_with_its_version(run):
    result = run("fleet")
    assert result.code == 0
    lines = result.out.splitlines()
    assert [line.split() for line in lines[:2]] == [["fleet", "prod"], ["version", "11"]]
    assert lines[3].split() == ["BALANCER", "ROLE", "VERSION", "SINCE", "RELEASE", "RINGS", "STATE"]
    assert lines[4].split()[:3] == ["lb1", "master", "11"]
    assert lines[4].endswith("in step")
    assert run("fleet", "status", "-o", "json").json == FLEET


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"behind_by": 2}, "behind by 2"),
        ({"frozen": "moving etcd (anna)"}, "frozen: moving etcd (anna)"),
        ({"refused_version": 12, "refused_why": "no zone"}, "refuses version 12: no zone"),
        ({"problem": "the map is full"}, "the map is full"),
        ({"drift": True}, "than its version has: `lbctl fleet diff 11` there shows them"),
        (
            {"drift": True, "frozen": "by anna"},
            "has (frozen: by anna): `lbctl fleet diff 11` there shows them",
        ),
    ],
)
def test_what_is_not_as_it_should_be_is_said_and_is_the_exit_status(fleet, run, what, says):
    fleet["balancers"][1] |= what
    result = run("fleet")
    assert result.code == 1
    assert result.out.splitlines()[5].endswith(says)


def test_a_service_without_a_backend_is_shown_and_no_fault_of_the_fleet(fleet, run):
    fleet["balancers"][0]["services_down"] = ["chat"]
    result = run("fleet")
    assert result.code == 0
    assert "no usable backend: chat" in result.out


def test_a_balancer_that_does_not_report_is_shown_and_can_be_forgotten(agent, fleet, run):
    fleet["missing"] = [{"node": "lb3", "last_seen": AT}]
    result = run("fleet")
    assert result.code == 1
    row = result.out.splitlines()[6]
    assert row.split()[:3] == ["lb3", "-", "-"]
    assert "does not report: its agent is down, or cannot reach the store (seen" in row
    forgotten = run("fleet", "forget", "lb3")
    assert (forgotten.code, forgotten.out) == (0, "lb3 is forgotten\n")
    assert agent.moves == [("forget", {"node": "lb3"})]


def test_without_the_store_it_says_why(fleet, run):
    fleet["fleet"]["problem"] = "the fleet's store cannot be used: connection refused"
    fleet["balancers"] = []
    result = run("fleet")
    assert result.code == 1
    assert result.out.startswith("PROBLEM")
    assert "no balancer reports while the store is away" in result.out


def test_a_frozen_balancer_is_shown_as_frozen_while_the_store_is_away(fleet, run):
    fleet["fleet"] |= {"problem": "the store is away", "store_away_s": 3.0, "frozen": "by anna"}
    assert "at version 11: by anna" in run("fleet").out


def test_a_fleet_without_a_version_says_how_to_begin(fleet, run):
    fleet["fleet"]["stable_version"] = None
    assert "none yet: lbctl fleet import" in run("fleet").out
    fleet["fleet"]["store_away_s"] = 3.0
    assert "not known while the store is away" in run("fleet").out


def test_a_rollout_and_the_last_one_that_was_aborted_are_shown(fleet, run):
    fleet["rollout"] = {"version": 12, "nodes": ["lb2"], "since": AT, "bake_s": 300.0}
    assert "version 12 on lb2, for 5m00s: lbctl rollout status" in run("fleet").out
    fleet["rollout"] = None
    fleet["last_rollout"] = {
        "version": 12, "outcome": "aborted", "why": "lb2 refuses it", "who": "x", "at": AT,
    }  # fmt: skip
    assert "version 12 was aborted: lb2 refuses it" in run("fleet").out


def test_the_history_is_a_table_the_newest_last(run, agent):
    header, first, second = run("fleet", "history").out.splitlines()
    assert header.split() == ["VERSION", "TIME", "BY", "AT", "HOW", "STATE", "CHANGES"]
    assert first.split()[0] == "10"
    assert "aborted" in first
    assert "“slower” change backend chat/gpu-1: weight 100 → 50, and 6 more" in second
    assert len(run("fleet", "history", "-n", "1").out.splitlines()) == 2
    agent.fleet_versions = []
    assert run("fleet", "history").out == "no versions yet: lbctl fleet import\n"


def test_a_version_in_full(run):
    out = run("fleet", "show", "11").out
    assert "anna, on lb2" in out
    assert "and 5 more" in out
    result = run("fleet", "show", "9")
    assert (result.code, result.err.splitlines()[0]) == (1, "Error: there is no version 9")


def test_a_diff_and_a_comparison(run, agent):
    assert run("fleet", "diff", "10", "11").out.startswith("~ backend chat/gpu-1")
    assert agent.queries[-1] == ("/v1/fleet/diff", {"old": "10", "new": "11"})
    result = run("fleet", "compare", "lb1", "lb2")
    assert (result.code, result.out) == (0, "no difference\n")
    agent.differences = [{"service": "chat", "what": "other settings or backends"}]
    result = run("fleet", "compare", "lb1", "lb2")
    assert (result.code, result.out) == (1, "chat: other settings or backends\n")


def test_what_is_exported_can_be_applied(run, tmp_path, agent):
    out = run("fleet", "export", "11").out
    path = tmp_path / "services.yaml"
    path.write_text(out)
    assert run("apply", "-f", str(path), "--dry-run").code == 0
    assert run("fleet", "export").out == out  # 11 is the stable one
    agent.fleet["fleet"]["stable_version"] = None
    assert "the fleet has no version yet" in run("fleet", "export").err
    agent.fleet["fleet"]["problem"] = "the fleet's store cannot be used: connection refused"
    assert "connection refused" in run("fleet", "export").err


def test_a_rollback_asks_as_one_of_the_configuration_does(agent, run):
    result = run("fleet", "rollback", "10", "--service", "chat", "--dry-run")
    assert "dry run, nothing was changed" in result.err
    assert agent.edits == [{"version": 10, "service": "chat", "dry_run": True}]
    agent.changes = [REMOVAL]
    result = run("fleet", "rollback", "10")
    assert result.code == 1
    assert "not done without a confirmation" in result.err
    assert run("fleet", "rollback", "10", "--yes", "-m", "slow").code == 0
    assert agent.edits[-1] == {"version": 10, "service": None, "message": "slow", "confirmed": True}


@pytest.mark.parametrize(
    ("words", "verb", "says"),
    [
        (("fleet", "import"), "import", "version 11 is the fleet's\n"),
        (("fleet", "freeze"), "freeze", "frozen at version 11\n"),
    ],
)
def test_orders_are_passed_on_with_the_reason(agent, run, words, verb, says):
    result = run(*words, "-m", "because")
    assert (result.code, result.out) == (0, says)
    assert agent.moves == [(verb, {"message": "because"})]


def test_thawing(agent, run):
    assert run("fleet", "thaw").out == "runs version 11\n"
    assert agent.moves == [("thaw", {})]


def test_a_rollout_is_shown_with_the_figures_of_each_balancer(fleet, run):
    fleet["rollout"] = {"version": 12, "nodes": ["lb2"], "since": AT, "bake_s": 0.0}
    fleet["balancers"][1]["version"] = 12
    out = run("rollout").out
    assert "when an operator decides" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["lb2", "12", "120", "118", "400", "1", "3", "tries", "it"] in lines
    fleet["rollout"]["nodes"] = ["lb2", "lb3", "lb4"]
    late = {"behind_by": 1, "refused_version": 12, "refused_why": "no zone"}
    fleet["balancers"].append(balancer("lb3", **late))
    lb3, lb4 = run("rollout").out.splitlines()[-4:-2]
    assert lb3.endswith("refuses version 12: no zone")
    assert [lb4.split()[0], lb4.endswith("does not report")] == ["lb4", True]


def test_without_a_rollout_the_last_one_is_shown(fleet, run):
    assert run("rollout", "status").out == "no version is being tried\n"
    fleet["last_rollout"] = {
        "version": 12, "outcome": "promoted", "why": "all well", "who": "anna", "at": AT,
    }  # fmt: skip
    out = run("rollout", "status").out
    assert "version 12, promoted" in out
    assert "all well" in out


@pytest.mark.parametrize("verb", ["promote", "abort"])
def test_a_rollout_is_ended(fleet, agent, run, verb):
    fleet["last_rollout"] = {
        "version": 12, "outcome": f"{verb}ed", "why": "", "who": "anna", "at": AT,
    }  # fmt: skip
    out = run("rollout", verb, "-m", "so").out
    assert out == f"version 12 is {verb}ed; 11 is the stable one\n"
    assert agent.moves == [(verb, {"message": "so"})]


def test_apply_names_the_balancers_that_try_it_first(agent, run, tmp_path):
    path = tmp_path / "services.yaml"
    path.write_text("services: []\n")
    done = run("apply", "-f", str(path), "--canary", "lb2", "--bake", "5m", "-y")
    assert (done.code, "only lb2 runs it as yet: `lbctl rollout`" in done.err) == (0, True)
    assert agent.edits[0].get("canary") is None
    assert agent.edits[1]["canary"] == {"nodes": ["lb2"], "bake_s": 300.0}
    result = run("apply", "-f", str(path), "--bake", "5m")
    assert (result.code, "--bake needs --canary" in result.err) == (2, True)
    result = run("apply", "-f", str(path), "--canary", "lb2", "--bake", "0s")
    assert (result.code, "leaves no time to try it" in result.err) == (2, True)
