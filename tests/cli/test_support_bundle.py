"""``lbctl support-bundle``: what is in it, what is not, and who may read it."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path

import pytest

from agent.config.redact import HIDDEN, redacted
from lbctl.commands import support_bundle


@pytest.fixture(autouse=True)
def _quiet_host(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {
        "host/said.txt": ("sh", "-c", "echo all is well"),
        "host/failed.txt": ("sh", "-c", "echo half; echo why >&2; exit 3"),
        "host/lacking.txt": ("no-such-program",),
    }
    monkeypatch.setattr(support_bundle, "_COMMANDS", commands)
    monkeypatch.setattr(support_bundle, "_FILES", (Path("/proc/meminfo"), Path("/no/such/file")))


def read(path: Path) -> dict[str, str]:
    """What is in it, without the folder."""
    with tarfile.open(path) as archive:
        folders = {member.name.partition("/")[0] for member in archive}
        assert len(folders) == 1
        found = {}
        for member in archive:
            assert member.mode == 0o600
            inside = archive.extractfile(member)
            assert inside is not None
            found[member.name.partition("/")[2]] = inside.read().decode()
        return found


def test_it_has_what_the_agent_and_the_host_say(agent, run, tmp_path: Path):
    agent.config["failover"] = {"instances": [{"name": "a", "password": "hunter2"}]}
    agent.config["hash_seed"] = 4711
    path = tmp_path / "bundle.tar.gz"
    result = run("support-bundle", "--file", str(path))
    assert (result.code, result.out) == (0, "")
    assert "read it before you send it" in result.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read(path)
    assert json.loads(found["status.json"])["agent"]["name"] == "edge-1"
    assert json.loads(found["services.json"])["services"][0]["name"] == "chat"
    assert {"events.json", "history.json", "guard.json", "failover.json", "doctor.json"} <= set(
        found
    )
    assert "all is well" in found["host/said.txt"]
    assert "(exit 3) why" in found["host/failed.txt"]
    assert "MemTotal" in found["host/meminfo.txt"]
    assert "no-such-program" in found["host/lacking.txt.missing"]
    assert "host/file.txt.missing" in found
    everything = "".join(found.values())
    assert "hunter2" not in everything
    assert "4711" not in found["configuration.json"]
    assert HIDDEN in found["configuration.json"]
    assert not any(path == "/v1/flows" for path, _ in agent.queries)


def test_it_works_without_an_agent_and_says_what_is_missing(run, tmp_path: Path):
    path = tmp_path / "bundle.tar.gz"
    assert run("support-bundle", "-f", str(path)).code == 0
    found = read(path)
    assert "agent.sock" in found["status.json.missing"]
    assert json.loads(found["about.json"])["cpus"] > 0


def test_nothing_is_overwritten_and_its_name_is_the_balancers(agent, run, tmp_path, monkeypatch):
    path = tmp_path / "there"
    path.write_text("mine")
    result = run("support-bundle", "-f", str(path))
    assert (result.code, path.read_text()) == (1, "mine")
    assert "--file" in result.err
    monkeypatch.chdir(tmp_path)
    assert run("support-bundle").code == 0
    (made,) = tmp_path.glob("*.tar.gz")
    assert made.name.startswith("steelyard-edge-1-20")


def test_secrets_are_found_wherever_they_are():
    told = {"a": [{"password": "x", "key_file": "/etc/key"}], "hash_seed": None, "b": "password"}
    assert redacted(told) == {
        "a": [{"password": HIDDEN, "key_file": "/etc/key"}],
        "hash_seed": None,
        "b": "password",
    }
