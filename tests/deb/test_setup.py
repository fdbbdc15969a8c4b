"""``deploy/setup.sh`` on a clean system: installed, at work, and uninstalled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deb.machine import ROOT, Machine, difference, install
from tests.deb.wire import Wire

pytestmark = pytest.mark.deb

_SETUP = "/root/steelyard/deploy/setup.sh"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that pip needs, as setup itself says in its remedy."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(ROOT), "hatchling"], check=True)
    return folder


def set_up(machine: Machine, wheels: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        machine.put(ROOT / name, f"/root/steelyard/{name}")
    for wheel in wheels.iterdir():
        machine.put(wheel, f"/root/wheels/{wheel.name}")
    machine.run(
        *("env", "PIP_FIND_LINKS=/root/wheels"), *("bash", _SETUP, "--service", "--offline")
    )


def start(machine: Machine, folder: Path) -> Wire:
    wire = Wire(machine, folder)
    machine.run("systemctl", "enable", "--now", "lb-agent")
    wire.wait_until_served()
    return wire


def test_uninstalled_it_leaves_the_operators_files_and_purged_nothing(
    machine: Machine, wheels: Path, tmp_path: Path
) -> None:
    before = machine.files()
    set_up(machine, wheels)
    wire = start(machine, tmp_path)
    with wire.other_agent("/opt/steelyard/bin/python3"):
        assert "another agent runs it" in machine.fails("bash", _SETUP, "--uninstall")
        assert wire.connect().echoes("nothing was removed")
        assert machine.run("systemctl", "is-active", "lb-agent").strip() == "active"

    told = machine.run("bash", _SETUP, "--uninstall")
    assert wire.leftovers() == ""
    assert "left: /etc/steelyard /var/lib/steelyard" in told
    left = difference(before, machine.files())
    folders = ("etc/steelyard", "var/lib/steelyard")
    assert {path for path in left if not path.startswith(folders)} == set()
    assert {path for path in left if path.startswith("etc/")} == {
        "etc/steelyard",
        "etc/steelyard/agent.yaml",
    }

    told = machine.run("bash", _SETUP, "--uninstall", "--purge")
    assert "left: " not in told
    assert difference(before, machine.files()) == {}


def test_the_package_takes_over_from_setup_without_losing_a_connection(
    machine: Machine, wheels: Path, package: Path, tmp_path: Path
) -> None:
    before = machine.files()
    set_up(machine, wheels)
    installed = names(before, machine.files())
    wire = start(machine, tmp_path)
    open_one = wire.connect()
    assert open_one.echoes("with setup")
    install(machine, package)
    assert "apt-get purge" in machine.fails("bash", _SETUP, "--uninstall", "--purge")
    assert "systemctl restart lb-agent" in machine.run("bash", _SETUP, "--uninstall")
    assert open_one.echoes("between the two")
    machine.run("systemctl", "restart", "lb-agent")
    unit = machine.run("systemctl", "show", "-P", "FragmentPath", "lb-agent").strip()
    assert unit == "/usr/lib/systemd/system/lb-agent.service"
    assert machine.run("systemctl", "is-enabled", "lb-agent").strip() == "enabled"
    assert open_one.echoes("with the package")
    assert installed <= names(before, machine.files())
    machine.run("apt-get", "purge", "-q", "-y", "steelyard")
    assert wire.leftovers() == ""
    assert difference(before, machine.files()) == {}


def names(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Return the names of the files that were added, but for those of the Python environment."""
    added = {Path(path) for path in after.keys() - before.keys() if after[path][0] != "d"}
    return {path.name.removesuffix(".gz") for path in added if path.parts[0] != "opt"}
