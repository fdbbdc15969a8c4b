"""``lbctl reload``: shows what changed, and asks before it cuts open flows."""

from __future__ import annotations

from tests.cli.conftest import refusal
from tests.cli.test_apply import REMOVAL

CUT = refusal("the change removes the service and cuts 9 open flows", "service web", "--yes")


def test_what_changed_is_shown(agent, run):
    agent.changes = [REMOVAL]
    result = run("reload")
    assert (result.code, agent.edits) == (0, [{}])
    assert "- service web" in result.out
    assert "done: 1 service removed" in result.err


def test_settings_that_changed_are_shown(agent, run):
    fields = [{"field": "companion.port", "old": 9120, "new": 9999}]
    change = {"action": "change", "kind": "settings", "service": "", "backend": None,
              "fields": fields, "effect": "taken over while it runs"}  # fmt: skip
    agent.changes = [change]
    result = run("reload")
    assert "~ settings: companion.port 9120 → 9999" in result.out
    assert "done: settings changed" in result.err


def test_a_dry_run_changes_nothing(agent, run):
    agent.changes = [REMOVAL]
    result = run("reload", "--dry-run")
    assert (result.code, agent.edits) == (0, [{"dry_run": True}])
    assert "nothing was changed" in result.err


def test_flows_are_cut_only_after_a_yes(agent, run):
    agent.refuse_unconfirmed = CUT
    refused = run("reload")
    assert refused.code == 1
    assert "cuts 9 open flows" in refused.err
    assert "--yes" in refused.err
    asked: list[str] = []
    assert run("reload", interactive=True, confirm=lambda _: False).code == 1
    assert not any("confirmed" in edit for edit in agent.edits)
    done = run("reload", interactive=True, confirm=lambda what: not asked.append(what))
    assert (done.code, asked) == (0, ["Cut them?"])
    assert "service web: the change removes" in done.err
    assert agent.edits[-1] == {"confirmed": True}
    assert run("reload", "--yes").code == 0
    assert agent.edits[-1] == {"confirmed": True}
