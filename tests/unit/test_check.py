"""``lb-agent check``: quick, on any host, without anything of the agent's own weight."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import hostfacts
from agent.config.load import parse
from agent.config.memory import MemoryLimit
from agent.errors import ConfigError
from agent.network.vips import OUR_PROTO

CHECK = """
import sys
from agent.main import cli
cli(sys.argv[1:], standalone_mode=False)
print(sorted({"aiohttp", "bcc", "numpy", "pyroute2"} & sys.modules.keys()))
"""


def check(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHECK, "check", "--config", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_file_for_another_host_is_checked_without_the_agents_weight(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("interface: not-here0\nsocket_roles: {viewer: nobody-has-it}\n")
    done = check(path)
    assert any("socket_roles.viewer nobody-has-it: this host has no such" in line
               for line in done.stdout.splitlines())  # fmt: skip
    path.write_text("interface: not-here0\nsocket_group: nobody-has-it\n")
    done = check(path)
    assert (done.returncode, done.stderr) == (0, "")
    first, *warned, imported = done.stdout.splitlines()
    assert first == f"{path}: good; services: 0, backends: 0, warnings: 2"
    assert warned[0].startswith("warning: interface not-here0: this host has no such interface")
    assert any("this host has no such group" in line for line in warned)
    assert imported == "[]"


def test_what_the_agent_would_refuse_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("interface: not-here0\nscript_user: no-such-user\n")
    path.chmod(0o666)
    done = check(path)
    assert done.returncode == 0
    assert "other users can change the file (mode 0666): the agent refuses it" in done.stdout
    assert "script_user no-such-user: this host has no such user" in done.stdout


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("interface: not-here0\nservices: [{}]\n")
    done = check(path)
    assert done.returncode == 1
    assert f"{path}:2" in done.stderr


def test_tables_that_no_host_holds_are_refused_where_the_interface_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        hostfacts, "memory", lambda: MemoryLimit(1_000_000_000, "all memory of this host")
    )
    text = "tables: {flows: 268435456}\n"
    with pytest.raises(ConfigError, match=r"all memory of this host is 1 GB: tables\.flows 36\.5"):
        hostfacts.warnings(parse(f"interface: lo\n{text}", "f"), Path("f"))
    assert len(hostfacts.warnings(parse(f"interface: not-here0\n{text}", "f"), Path("f"))) == 1


def test_this_host_has_addresses_networks_and_memory() -> None:
    found = hostfacts.look()
    assert "lo" in found.interfaces
    room = hostfacts.memory()
    assert room is not None
    assert room.size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert hostfacts.cpus() >= 1


def test_the_narrowest_cgroup_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "system.slice" / "lb-agent.service"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("400000000\n")
    (tmp_path / "own").write_text("0::/system.slice/lb-agent.service\n")
    monkeypatch.setattr(hostfacts, "_CGROUPS", tmp_path)
    monkeypatch.setattr(hostfacts, "_OWN_CGROUP", tmp_path / "own")
    room = hostfacts.memory()
    assert room is not None
    assert (room.size, room.what) == (400_000_000, f"the limit of the cgroup {inner.parent}")


def test_the_agents_own_addresses_are_known() -> None:
    assert hostfacts.AGENT_PROTO == OUR_PROTO


@pytest.mark.parametrize(
    ("command", "status"),
    [(["--help"], 0), (["check", "-c", "/nowhere"], 1), (["check", "--no-such"], 2)],
)
def test_the_program_ends_with_its_status_when_all_is_said(command: list[str], status: int) -> None:
    """It leaves without taking down the interpreter: what was written to a pipe has come."""
    done = subprocess.run(
        [sys.executable, "-m", "agent.main", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert (done.stdout if status == 0 else done.stderr).endswith("\n")
