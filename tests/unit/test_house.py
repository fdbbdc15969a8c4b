"""The house around the code: what the wheel holds, which way imports go, what no file may say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    *(".ci/run", "deploy/setup.sh", "deploy/backend-setup.sh"),
    *(
        *("tests/deb/boot", "deploy/container/build"),
        *(f"deploy/deb/{name}" for name in ("build", "postinst", "prerm", "postrm")),
    ),
    *("vagrant/build-box", "vagrant/kvm", "vagrant/libvirt"),
    *(f"vagrant/provision/{role}.sh" for role in ("balancer", "backend", "client")),
)
BPF_LICENCE = "GPL-2.0-only OR BSD-2-Clause"

FORBIDDEN = {
    "a conflict marker": re.compile(r"^(<{7}|>{7}|\|{7}) ", re.MULTILINE),
    "a note to self": re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b"),
    "a path of one developer's machine": re.compile(r"(?<![\w.~-])/(home|Users|work)/\w"),
    "a package registry's host": re.compile(
        r"\b(py[p]i\.org|py[t]honhosted\.org|deb\.de[b]ian\.org|archive\.ub[u]ntu\.com)\b"
    ),
}


def run(*command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def files() -> list[str]:
    """Everything that is committed, or will be."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    assert listed.returncode == 0, listed.stderr
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_every_bpf_source(wheel: zipfile.ZipFile) -> None:
    sources = {name.removeprefix("bpf/") for name in files() if re.match(r"bpf/.*\.[ch]$", name)}
    assert "include/abi.h" in sources
    assert "kernel/include/linux/kconfig.h" in sources
    shipped = {name.removeprefix("agent/_bpf/") for name in wheel.namelist()}
    assert sources <= shipped


def test_the_wheel_holds_every_unit(wheel: zipfile.ZipFile) -> None:
    units = {name for name in files() if re.match(r"deploy/.*\.service$", name)}
    assert "deploy/lb-agent.service" in units
    assert {name.replace("deploy", "agent/_units") for name in units} <= set(wheel.namelist())


def test_the_wheel_holds_both_packages_and_nothing_of_the_workshop(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "agent",
        "lbctl",
        "steelyard",
    }
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_the_wheel_names_its_commands_and_licences(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    text = wheel.read(entry_points).decode()
    assert "lbctl = lbctl.main:main" in text
    assert "lb-agent = agent.main:main" in text
    said = metadata(wheel)
    assert said["License-Expression"] == f"Apache-2.0 AND ({BPF_LICENCE})"
    assert set(said.get_all("License-File", [])) == {
        "LICENSE",
        "bpf/LICENSE.BSD-2-Clause",
        "bpf/LICENSE.GPL-2.0",
    }


def test_no_dependency_is_the_impostor_of_bcc(wheel: zipfile.ZipFile) -> None:
    wanted = metadata(wheel).get_all("Requires-Dist", [])
    assert wanted
    assert not [line for line in wanted if re.match(r"bcc\b", line)]


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    reasons = (ROOT / "docs" / "dependencies.md").read_text().lower()
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = [re.split(r"[<>=~\[ ]", line)[0].lower() for line in lines]
    assert [name for name in names if name not in reasons] == []


def test_imports_go_one_way() -> None:
    linted = run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert linted.returncode == 0, linted.stdout


def test_only_one_module_imports_bcc() -> None:
    importers = {
        name
        for name in files()
        if name.endswith(".py") and not name.startswith("tests/")
        if re.search(r"^\s*(import bcc|from bcc)\b", (ROOT / name).read_text(), re.MULTILINE)
    }
    assert importers == {"agent/dataplane/compiler.py"}


def test_every_bpf_file_begins_with_its_licence() -> None:
    unmarked = [
        name
        for name in files()
        if re.match(r"bpf/.*\.[ch]$", name)
        if BPF_LICENCE not in (ROOT / name).read_text().partition("\n")[0]
    ]
    assert unmarked == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_says(what: str) -> None:
    found = []
    for name in files():
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue  # a picture, a capture
        found += [f"{name}: {match[0]}" for match in FORBIDDEN[what].finditer(text)]
    assert found == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse_and_can_be_executed(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    shell = path.read_text().partition("\n")[0].split("/")[-1].split()[-1]
    assert run(shell, "-n", script).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("start dsr 192.0.2.10", "unknown action start"),
        ("up pigeon 192.0.2.10", "unknown mode pigeon"),
        ("up nat 192.0.2.10", "nat needs no preparation"),
        ("up dsr vip.example.com", "'vip.example.com' is not an address"),
        ("up dsr 192.0.2.10/32", "192.0.2.10/32 is a network"),
        ("up ipip 192.0.2.10 --advmss 1440", "unknown option --advmss"),
        ("up ipip --advmss little 192.0.2.10", "--advmss little is not a number"),
        ("up gue --advmss 1432 --gue-port 192.0.2.10", "--gue-port needs a value"),
        ("up ipip --from 192.0.2.10", "--from needs a value"),
        ("up ipip --from balancer 192.0.2.10", "--from balancer is neither an address nor"),
        ("up dsr --from 10.0.0.1 192.0.2.10", "--from is only for ipip and gue"),
    ],
)
def test_backend_setup_reads_all_of_its_arguments_before_it_acts(words: str, message: str) -> None:
    refused = run("deploy/backend-setup.sh", *words.split())
    assert (refused.returncode, refused.stdout) == (1, "")
    assert message in refused.stderr
    assert "remedy:" in refused.stderr


def test_backend_setup_explains_itself() -> None:
    told = run("deploy/backend-setup.sh", "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("Usage:")


def test_setup_refuses_what_it_does_not_know_and_says_what_it_does() -> None:
    refused = run("deploy/setup.sh", "--nonsense")
    assert refused.returncode == 1
    assert "--nonsense" in refused.stderr
    assert "remedy:" in refused.stderr


def install_configuration(folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", "source deploy/setup.sh; install_configuration"],
        cwd=ROOT,
        env=os.environ | {"STEELYARD_CONFIGURATION_FOLDER": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_setup_installs_an_example_that_nothing_reads(tmp_path: Path) -> None:
    """Started unedited, it would take addresses that others may have."""
    for _ in range(2):
        install_configuration(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["agent.yaml.example"]
    for unit in ("lb-agent", "lb-agent-failover"):
        text = (ROOT / "deploy" / f"{unit}.service").read_text()
        assert "\nConditionPathExists=/etc/steelyard/agent.yaml\n" in text


def test_setup_hides_a_configuration_from_other_users(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("interface: eth0\n")
    path.chmod(0o644)
    install_configuration(tmp_path)
    assert (path.stat().st_mode & 0o777, path.read_text()) == (0o640, "interface: eth0\n")


@pytest.mark.parametrize("words", ["--purge", "--uninstall --dev"])
def test_setup_refuses_to_uninstall_what_it_cannot(words: str) -> None:
    refused = run("deploy/setup.sh", *words.split())
    assert refused.returncode == 1
    assert "--uninstall" in refused.stderr
    assert "remedy:" in refused.stderr


def test_setup_defines_each_function_once() -> None:
    """The second one would take the place of the first, without a word."""
    script = (ROOT / "deploy" / "setup.sh").read_text()
    names = re.findall(r"^(\w+)\(\)", script, re.MULTILINE)
    assert len(names) > 20
    assert len(names) == len({*names})


@pytest.mark.parametrize("lock", ["requirements", "build"])
def test_what_we_need_is_locked_by_hashes_in_a_version_that_we_support(lock: str) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {
        "requirements": declared["project"]["dependencies"],
        "build": declared["build-system"]["requires"],
    }[lock]
    text = (ROOT / "deploy" / f"{lock}.lock").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(" --hash=sha256:" in line for line in lines)
    locked = dict(line.split()[0].split("==") for line in lines)
    for each in map(Requirement, wanted):
        assert locked[each.name.lower()] in each.specifier, each


def test_setup_help_names_every_option() -> None:
    script = (ROOT / "deploy" / "setup.sh").read_text()
    parsed = set(re.findall(r"^\t\t(?:-h \| )?(--[a-z-]+)\)", script, re.MULTILINE))
    shown = run("deploy/setup.sh", "--help").stdout
    assert parsed
    assert [option for option in parsed if option not in shown] == []


def test_make_alone_lists_the_targets() -> None:
    listed = run("make").stdout
    targets = {line.split()[0] for line in listed.splitlines()}
    assert {"setup", "demo", "test", "lint", "types", "bench", "docs", "format"} <= targets


def test_the_unit_restarts_the_agent_and_never_takes_the_program_off() -> None:
    unit = (ROOT / "deploy" / "lb-agent.service").read_text()
    settings = dict(
        line.split("=", 1) for line in unit.splitlines() if "=" in line and line[0].isalpha()
    )
    assert settings["Restart"] == "always"
    assert settings["Type"] == "notify-reload"
    assert settings["ExecStart"].startswith("/usr/local/bin/lb-agent run ")
    assert "/sys/fs/bpf" in settings["ReadWritePaths"]
    assert not {"ExecStop", "ExecStopPost"} & set(settings)
