"""The Debian package on a clean system: installed, at work, upgraded, removed and purged."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deb.machine import Machine, build, difference, field, install
from tests.deb.wire import Wire

pytestmark = pytest.mark.deb

_UNITS = (
    "lb-agent", "lb-agent-api", "lb-agent-failover", "lb-agent-companion", "lb-agent-node",
    "lb-agent-tier", "lb-agent-tier-proxy",
)  # fmt: skip
_AARCH64 = (183).to_bytes(2, "little")  # e_machine in the header of an ELF file


def agent_process(machine: Machine) -> str:
    return machine.run("systemctl", "show", "-P", "MainPID", "lb-agent").strip()


def test_installed_it_is_complete_and_starts_nothing(machine: Machine, package: Path) -> None:
    install(machine, package)
    version = field(package, "Version")
    assert machine.run("lbctl", "--version").strip() == f"lbctl {version}"
    example = "/etc/steelyard/agent.yaml.example"
    assert f"{example}: good" in machine.run("lb-agent", "check", "--config", example)
    for page in ("lbctl", "lbctl-backend", "lb-agent", "steelyard-agent.yaml"):
        assert machine.run("man", "-w", page).startswith("/usr/share/man/")
    completion = "/usr/share/bash-completion/completions/lbctl"
    assert "lbctl" in machine.run("bash", "-c", f". {completion}; complete -p lbctl")
    for unit in _UNITS:
        assert machine.fails("systemctl", "is-enabled", unit).strip() == "disabled"
        assert machine.fails("systemctl", "is-active", unit).strip() == "inactive"
    # No other program sees our modules.
    refused = machine.fails("/usr/bin/python3", "-c", "import agent")
    assert "No module named 'agent'" in refused
    assert machine.run("dpkg", "--verify", "steelyard") == ""


def test_neither_pythonpath_nor_the_working_folder_replaces_our_modules(
    machine: Machine, package: Path
) -> None:
    install(machine, package)
    (machine.root / "root" / "agent.py").write_text("raise SystemExit('an impostor')\n")
    told = machine.run("sh", "-c", "cd /root; PYTHONPATH=/root lbctl --version")
    assert told.startswith("lbctl ")


def test_an_upgrade_keeps_connections_and_a_purge_leaves_nothing(
    machine: Machine, package: Path, later: Path, tmp_path: Path
) -> None:
    before = machine.files()
    install(machine, package)
    assert "usr/bin/lbctl" in difference(before, machine.files())
    wire = Wire(machine, tmp_path)
    machine.run("lb-agent", "check")
    machine.run("systemctl", "enable", "--now", "lb-agent")
    wire.wait_until_served()
    open_one, former = wire.connect(), agent_process(machine)
    assert open_one.echoes("before the upgrade")

    install(machine, later)
    assert machine.run("dpkg-query", "-W", "-f", "${Version}", "steelyard").endswith("-2")
    assert agent_process(machine) not in (former, "0")
    assert machine.run("systemctl", "is-active", "lb-agent").strip() == "active"
    assert machine.fails("systemctl", "is-active", "lb-agent-failover").strip() == "inactive"
    assert open_one.echoes("after the upgrade")
    assert wire.connect().echoes("a new one")
    assert "steelyard" in wire.leftovers()

    machine.run("apt-get", "remove", "-q", "-y", "steelyard")
    assert wire.leftovers() == ""
    assert not wire.connect().echoes("nobody balances")
    assert (machine.root / "etc/steelyard/agent.yaml").exists()
    assert (machine.root / "var/lib/steelyard").exists()

    machine.run("apt-get", "purge", "-q", "-y", "steelyard")
    assert difference(before, machine.files()) == {}


def test_a_removal_is_refused_while_an_agent_runs_that_systemd_does_not_know(
    machine: Machine, package: Path, tmp_path: Path
) -> None:
    install(machine, package)
    wire = Wire(machine, tmp_path)
    machine.run("systemctl", "enable", "--now", "lb-agent")
    wire.wait_until_served()
    with wire.other_agent("/usr/lib/steelyard/bin/python3"):
        assert "another agent runs it" in machine.fails("apt-get", "purge", "-q", "-y", "steelyard")
        assert machine.run("systemctl", "is-active", "lb-agent").strip() == "active"
        assert wire.connect().echoes("it still serves")
    machine.run("apt-get", "purge", "-q", "-y", "steelyard")
    assert wire.leftovers() == ""


def test_the_other_architecture_gets_its_own_wheels(tmp_path: Path) -> None:
    package = build(tmp_path, "arm64")
    subprocess.run(["dpkg-deb", "-x", package, tmp_path / "files"], check=True)
    libraries = list((tmp_path / "files").rglob("*.so"))
    assert any("numpy" in str(library) for library in libraries)
    for library in libraries:
        with library.open("rb") as file:
            assert file.read(20)[18:] == _AARCH64, library
