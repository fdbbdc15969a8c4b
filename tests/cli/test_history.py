"""``lbctl history``: versions of the configuration, and back to one of them."""

from __future__ import annotations

import pytest

from tests.cli.conftest import REMOVAL, refusal

FIRST = {
    "number": 1,
    "at": "2026-01-02T03:04:05.000Z",
    "how": "start",
    "who": "lb-agent",
    "message": "",
    "changes": [],
    "changes_count": 0,
}
SECOND = {
    "number": 2,
    "at": "2026-01-02T03:05:05.000Z",
    "how": "edit",
    "who": "alice as root",
    "message": "too slow",
    "changes": ["change backend chat/gpu-1: weight 100 → 50", "remove backend chat/gpu-2"],
    "changes_count": 7,
}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def test_the_history_is_a_table(agent, run):
    agent.versions = [FIRST, SECOND]
    header, first, second = run("history").out.splitlines()
    assert header.split() == ["VERSION", "TIME", "BY", "HOW", "CHANGES"]
    assert first.split()[-4:] == ["as", "the", "file", "says"]
    assert "alice as root" in second
    assert "“too slow” change backend chat/gpu-1: weight 100 → 50, and 6 more" in second
    assert len(run("history", "-n", "1").out.splitlines()) == 2
    assert run("history", "-o", "json").json == {"versions": [FIRST, SECOND]}


def test_there_may_be_none_yet(agent, run):
    assert run("history").out == "no versions yet\n"


def test_a_version_in_full(agent, run):
    agent.versions = [FIRST, SECOND]
    out = run("history", "show", "2").out
    assert "alice as root" in out
    assert "remove backend chat/gpu-2" in out
    assert "and 5 more" in out
    result = run("history", "show", "9")
    assert (result.code, result.err.splitlines()[0]) == (1, "Error: there is no version 9")


def test_a_diff_of_two_versions_or_with_what_runs(agent, run):
    assert run("history", "diff", "1", "2").out.startswith("~ backend chat/gpu-1")
    run("history", "diff", "1")
    assert agent.queries == [
        ("/v1/history/diff", {"old": "1", "new": "2"}),
        ("/v1/history/diff", {"old": "1"}),
    ]
    agent.changes = []
    assert run("history", "diff", "1").out == "no difference\n"


def test_a_rollback_can_be_looked_at_first(agent, run):
    result = run("history", "rollback", "1", "--service", "chat", "--dry-run")
    assert "dry run, nothing was changed" in result.err
    assert agent.edits == [{"version": 1, "service": "chat", "dry_run": True}]


def test_a_rollback_that_removes_nothing_is_made_without_a_terminal(agent, run):
    result = run("history", "rollback", "1", "-m", "too slow")
    assert (result.code, result.err) == (0, "done: 1 backend changed\n")
    assert agent.edits[1] == {"version": 1, "service": None, "message": "too slow"}


def test_one_that_removes_is_asked_for(agent, run):
    agent.changes = [REMOVAL]
    result = run("history", "rollback", "1")
    assert (result.code, "--yes does it without asking" in result.err) == (1, True)
    assert len(agent.edits) == 1
    asked: list[str] = []
    result = run("history", "rollback", "1", interactive=True, confirm=asked.append)
    assert (result.code, asked) == (1, ["Roll back: 1 backend removed?"])
    result = run("history", "rollback", "1", interactive=True, confirm=lambda _: True)
    assert result.code == 0
    assert run("history", "rollback", "1", "--yes").code == 0


def test_one_that_cuts_open_flows_is_asked_for_once_more(agent, run):
    agent.refuse_unconfirmed = refusal("it would cut 9 open flows", remedy="confirm")
    result = run("history", "rollback", "1")
    assert (result.code, "9 open flows" in result.err) == (1, True)
    assert run("history", "rollback", "1", "--yes").code == 0
    assert agent.edits[-1]["confirmed"] is True


def test_there_may_be_nothing_to_roll_back(agent, run):
    agent.changes = []
    assert run("history", "rollback", "1").out == "no change\n"
    assert len(agent.edits) == 1


@pytest.mark.parametrize("words", [["shw"], ["show", "0"], ["diff"], ["rollback", "x"]])
def test_mistyped_words_are_refused(agent, run, words):
    assert run("history", *words).code == 2
    assert agent.edits == []
