"""Gathers the facts about the agent: its answers, its process, its file, its release.

Reads only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import agent as agent_package
from agent.config.load import load_file
from agent.config.render import document
from agent.errors import AgentUnreachableError, ConfigError, SteelyardError
from agent.hostfacts import warnings
from lbctl.doctor import gather_certificates
from lbctl.doctor.facts import AgentFacts, ConfigFile, Installed, InstalledUnit, Process
from lbctl.environment import Agent, Environment

PACKAGE = Path(agent_package.__file__).resolve().parent
# Where units are, the first of them in force (systemd.unit(5)): by setup.sh, by the package.
UNITS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"))
_TIMEOUT_S = 3.0
_CAPABILITIES = {
    12: "CAP_NET_ADMIN",
    13: "CAP_NET_RAW",
    14: "CAP_IPC_LOCK",
    21: "CAP_SYS_ADMIN",
    38: "CAP_PERFMON",
    39: "CAP_BPF",
}


def gather(env: Environment) -> AgentFacts:
    """Return the agent's answers, and what the kernel knows of its process."""
    agent = env.agent(_TIMEOUT_S)
    try:
        status = agent.get("/v1/status")
        config = agent.get("/v1/config")["config"]
    except SteelyardError as error:
        return AgentFacts(
            str(env.socket),
            problem=error.message,
            remedy=error.remedy,
            denied=not isinstance(error, AgentUnreachableError)
            or isinstance(error.__cause__, PermissionError),
        )
    return AgentFacts(
        str(env.socket),
        status,
        config,
        process=process_at(Path("/proc", str(status["agent"]["pid"]))),
        guard=_guard(agent),
        certificates=gather_certificates.gather(config, agent),
    )


def _guard(agent: Agent) -> Mapping[str, Any] | None:
    try:
        return agent.get("/v1/guard")
    except SteelyardError:  # an older release
        return None


def process_at(folder: Path) -> Process:
    """Return what a folder of /proc says about the agent."""
    limits, status = read(folder / "limits") or "", read(folder / "status")
    files = re.search(r"^Max open files\s+(\d+)", limits, re.MULTILINE)
    memory = re.search(r"^Max locked memory\s+(\d+|unlimited)", limits, re.MULTILINE)
    python = Path((read(folder / "cmdline") or "").partition("\0")[0])
    return Process(
        open_files=int(files[1]) if files else None,
        locked_memory=float(memory[1].replace("unlimited", "inf")) if memory else None,
        capabilities=None if status is None else effective_capabilities(status),
        same_python=python.parent.parent == Path(sys.prefix),
    )


def installed(package: Path = PACKAGE) -> Installed:
    """Return the installed release, and when it was installed."""
    written = max(path.stat().st_mtime for path in package.rglob("*.py"))
    return Installed(agent_package.__version__, written)


def units(folders: Sequence[Path] = UNITS, package: Path = PACKAGE) -> tuple[InstalledUnit, ...]:
    """Return the installed units."""
    packed = package / "_units"
    shipped = packed if packed.exists() else package.parent / "deploy"  # the wheel, or a checkout
    found = []
    for unit in sorted(shipped.glob("lb-agent*.service")):
        paths = [path for folder in folders if (path := folder / unit.name).exists()]
        if paths:
            hides = str(paths[1]) if len(paths) > 1 else ""
            found.append(InstalledUnit(str(paths[0]), read(paths[0]) == read(unit), hides))
    return tuple(found)


def with_file(agent: AgentFacts, path: Path) -> AgentFacts:
    """Add the content of the configuration file of an agent that does not answer."""
    try:
        config = load_file(path)
        found = ConfigFile(str(path), advice=warnings(config, path))
    except ConfigError as error:
        return replace(agent, file=ConfigFile(str(path), problems=error.problems))
    shown = document(config)
    certificates = gather_certificates.gather(shown, None)
    return replace(agent, config=shown, file=found, certificates=certificates)


def effective_capabilities(status: str) -> frozenset[str]:
    """Return the relevant capabilities in /proc/PID/status."""
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", status, re.MULTILINE)
    bits = int(match[1], 16) if match else 0
    return frozenset(name for bit, name in _CAPABILITIES.items() if bits & 1 << bit)


def read(path: Path) -> str | None:
    """Return the text of a file; None if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return None
