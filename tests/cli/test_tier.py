"""lbctl tier without a tier; tests/netns/tier has it with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lbctl.main import cli


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["tier", *map(str, words)])


def test_keys_are_made_and_removed_where_no_tier_runs(tmp_path: Path):
    path = tmp_path / "keys"
    made = run("keys", "add", "alice", "--concurrent", "3", "--file", path)
    assert made.output.startswith("sk-")
    assert made.output.strip() not in path.read_text()
    shown = run("keys", "list", "--file", path)
    assert shown.output.splitlines()[1].split() == ["alice", "-", "-", "3"]
    assert run("keys", "list", "--file", path, "-o", "json").exit_code == 0
    assert run("keys", "remove", "alice", "--file", path).output == "removed alice\n"
    assert "nobody may ask" in run("keys", "list", "--file", path).output


@pytest.mark.parametrize("name", ["a b", "", "-x", "../x", "a" * 65, "ä"])
def test_a_name_that_cannot_be_a_keys_name_writes_nothing(tmp_path: Path, name: str):
    path = tmp_path / "keys"
    done = run("keys", "add", "--file", path, "--", name)
    assert done.exit_code == 1
    assert "is not a name of a key" in str(done.exception) + done.output
    assert not path.exists()


@pytest.mark.parametrize("command", ["status", "certs", "limits", "reload"])
def test_without_a_tier_it_is_said_how_to_start_one(tmp_path: Path, command: str):
    done = run(command, "--tier-socket", tmp_path / "tier.sock")
    assert done.exit_code == 3, "nobody answers"
    said = str(done.exception) + done.output
    assert "no tier answers there" in said
    assert "systemctl start lb-agent-tier" in said


def test_keys_of_no_tier_can_be_named_by_their_file(tmp_path: Path):
    done = run("keys", "list", "--tier-socket", tmp_path / "tier.sock")
    assert "--file" in str(done.exception) + done.output
