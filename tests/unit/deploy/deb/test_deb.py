"""The Debian package and the lock of what it contains, as far as that shows without building it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[4]
DEB = ROOT / "deploy" / "deb"
UNITS = sorted(path.stem for path in (ROOT / "deploy").glob("*.service"))
_ENTRY = re.compile(r"^([a-z0-9-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)
_UNIT_LIST = re.compile(r"(?:for unit in |^all_units=\(|units=\")(lb-agent[a-z. -]+)", re.MULTILINE)


def test_the_lock_has_what_the_project_needs() -> None:
    lock = (ROOT / "deploy" / "requirements.lock").read_text()
    versions = {name: version for name, version, _ in _ENTRY.findall(lock)}
    assert len(versions) == lock.count("==")  # each of them with its hashes
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_the_package_needs_what_setup_installs() -> None:
    script = "source deploy/setup.sh; printf '%s\\n' \"${packages[@]}\""
    shown = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (depends,) = re.findall(r"^Depends: (.*)$", (DEB / "control").read_text(), re.MULTILINE)
    # The package has an environment of its own, so nothing has to make one.
    wanted = set(shown.stdout.split()) - {"python3-venv"}
    assert {entry.partition(" (")[0] for entry in depends.split(", ")} == wanted


@pytest.mark.parametrize("script", ["deb/postinst", "deb/prerm", "deb/postrm", "setup.sh"])
def test_scripts_take_care_of_every_unit(script: str) -> None:
    lists = _UNIT_LIST.findall((ROOT / "deploy" / script).read_text())
    assert lists
    for listed in lists:
        assert sorted(name.removesuffix(".service") for name in listed.split()) == UNITS
