"""apply and diff: the plan, the questions, files that are broken or partial."""

from __future__ import annotations

import io

import pytest

ADDITION = {
    "action": "add",
    "kind": "backend",
    "service": "chat",
    "backend": "gpu-4",
    "fields": [
        {"field": "address", "old": None, "new": "10.0.0.24"},
        {"field": "weight", "old": None, "new": 50},
    ],
    "effect": "gets 25.0 % of the new flows",
}
REMOVAL = {
    "action": "remove",
    "kind": "service",
    "service": "web",
    "backend": None,
    "fields": [],
    "effect": "its packets go to the host",
}
SERVICES = """\
services:
  - name: chat
    vip: 10.0.0.10
    port: 80
    backends:
      - {name: gpu-1, address: 10.0.0.21}
"""
WHOLE = f"name: edge-1\ninterface: eth0\n{SERVICES}"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "services.yaml"
    path.write_text(SERVICES)
    return path


def test_plan_is_shown_and_carried_out(agent, run, file):
    agent.changes = [ADDITION]
    result = run("apply", "-f", str(file))
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == "+ backend chat/gpu-4: address 10.0.0.24, weight 50"
    assert "done: 1 backend added" in result.err
    (services,) = [edit["values"]["services"] for edit in agent.applied]
    assert services[0]["name"] == "chat"
    assert services[0]["backends"][0]["address"] == "10.0.0.21"


def test_dry_run_applies_nothing(agent, run, file):
    result = run("apply", "-f", str(file), "--dry-run")
    assert result.code == 0
    assert agent.applied == []
    assert "nothing was changed" in result.err


def test_nothing_to_do_is_said(agent, run, file):
    agent.changes = []
    result = run("apply", "-f", str(file))
    assert (result.code, result.out) == (0, "no change\n")
    assert agent.applied == []


def test_terminal_is_asked_after_the_plan(agent, run, file):
    agent.changes = [ADDITION, REMOVAL]
    asked: list[str] = []
    result = run(
        "apply",
        "-f",
        str(file),
        interactive=True,
        confirm=lambda question: not asked.append(question),
    )
    assert result.code == 0
    assert asked == ["Apply: 1 backend added, 1 service removed?"]
    assert len(agent.applied) == 1
    result = run("apply", "-f", str(file), interactive=True, confirm=lambda _: False)
    assert result.code == 1
    assert len(agent.applied) == 1


def test_removals_without_a_terminal_need_yes(agent, run, file):
    agent.changes = [REMOVAL]
    refused = run("apply", "-f", str(file))
    assert refused.code == 1
    assert "- service web" in refused.out
    assert "--yes" in refused.err
    assert agent.applied == []
    assert run("apply", "-f", str(file), "--yes").code == 0
    assert len(agent.applied) == 1


def test_standard_input_is_a_file(agent, run):
    result = run("apply", "-f", "-", stdin=io.StringIO(SERVICES), interactive=True)
    assert result.code == 0, result.err
    assert len(agent.applied) == 1


def test_json_document_of_services_is_accepted(agent, run):
    text = '{"services": [{"name": "chat", "vip": "10.0.0.10", "port": 80}]}'
    result = run("apply", "-f", "-", stdin=io.StringIO(text))
    assert result.code == 0, result.err
    assert agent.applied[0]["values"]["services"][0]["name"] == "chat"


def test_everything_that_a_file_says_of_services_reaches_the_agent(agent, run, file):
    text = """\
defaults: {scheduler: source, source_prefix: 24}
services:
  - name: edge
    vip: 192.0.2.0/24
    port: 8000-8100
    forward: fullnat
    no_backend: reset
    backends:
      - {name: a, address: 10.0.1.1, port: 8000, backup: true}
"""
    file.write_text(text)
    result = run("apply", "-f", str(file))
    assert result.code == 0, result.err
    (edge,) = agent.applied[0]["values"]["services"]
    assert edge["backends"][0] == {
        "name": "a",
        "address": "10.0.1.1",
        "port": 8000,
        "backup": True,
    }
    assert {key: edge[key] for key in ("vip", "port", "source_prefix", "no_backend")} == {
        "vip": "192.0.2.0/24",
        "port": "8000-8100",
        "source_prefix": 24,
        "no_backend": "reset",
    }


def test_export_of_services_can_be_applied(agent, run):
    exported = run("export", "--services-only").out
    result = run("apply", "-f", "-", stdin=io.StringIO(exported))
    assert result.code == 0, result.err
    names = [b["name"] for b in agent.applied[0]["values"]["services"][0]["backends"]]
    assert names == ["gpu-1", "gpu-2", "gpu-3"]


def test_broken_files_are_refused_with_file_and_line(agent, run, file):
    file.write_text(SERVICES + "      - {name: gpu-2, address: 10.0.0.22, weight: 2000}\n")
    result = run("apply", "-f", str(file))
    assert result.code == 1
    assert f"{file}:7" in result.err
    assert "remedy:" in result.err
    file.write_text("services: [")
    assert f"{file}:" in run("apply", "-f", str(file)).err
    assert agent.edits == []


def test_unreadable_files_are_refused(agent, run, tmp_path):
    result = run("apply", "-f", str(tmp_path / "none.yaml"))
    assert result.code == 1
    assert "No such file" in result.err
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in run("apply", "-f", str(tmp_path / "binary")).err
    assert run("apply").code == 2


def test_settings_of_the_agent_are_left_alone_and_named(agent, run, file):
    file.write_text(WHOLE.replace("eth0", "eth1"))
    result = run("apply", "-f", str(file))
    assert result.code == 0, result.err
    assert "left alone" in result.err
    assert "interface" in result.err


def test_same_settings_are_not_mentioned(agent, run, file):
    file.write_text(WHOLE)
    assert "left alone" not in run("apply", "-f", str(file)).err


def test_diff_shows_run_time_changes(agent, run):
    agent.since_file = [ADDITION]
    result = run("diff")
    assert result.code == 0
    assert "+ backend chat/gpu-4" in result.out
    assert ADDITION["effect"] not in result.out  # it has happened, and is no warning any more
    assert "changed at run time" in result.err


def test_diff_with_a_file_shows_what_apply_would_do(agent, run, file):
    result = run("diff", "-f", str(file), "-o", "json")
    assert result.json == {"changes": agent.changes}
    assert agent.changes[0]["effect"] in run("diff", "-f", str(file)).out
    assert agent.applied == []


def test_diff_exit_code_is_for_scripts(agent, run, file):
    assert run("diff", "--exit-code").code == 0
    assert run("diff").out == "no difference\n"
    assert run("diff", "-f", str(file), "--exit-code").code == 1


def test_services_from_a_text_that_was_cut_off_are_not_applied(agent, run, file):
    file.write_text(SERVICES.rstrip()[:-2])  # 10.0.0.2 is an address, too
    refused = run("apply", "-f", str(file), "--yes")
    assert (refused.code, agent.applied) == (1, [])
    assert "services.yaml:6: the last line does not end" in refused.err
