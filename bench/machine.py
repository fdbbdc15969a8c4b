"""Describes the machine on which a result was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of the machine that figures depend on."""

    cpu: str
    cpus: int
    caches: str
    hypervisor: str
    kernel: str
    jit: str
    mitigations: str
    python: str
    commit: str
    date: str


def describe() -> Machine:
    """Return the properties of this machine."""
    return Machine(
        cpu=_cpu_model(),
        cpus=os.cpu_count() or 0,
        caches=_caches(),
        hypervisor="yes" if "hypervisor" in _cpuinfo().get("flags", "") else "no",
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        jit={"0": "off", "1": "on", "2": "on, debug"}.get(
            _read("/proc/sys/net/core/bpf_jit_enable"), "?"
        ),
        mitigations=_read("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
        python=platform.python_version(),
        commit=_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "?"


def _cpuinfo() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_model() -> str:
    info = _cpuinfo()
    numbers = f"family {info.get('cpu family', '?')}, model {info.get('model', '?')}"
    return f"{info.get('model name', platform.processor() or '?')} ({numbers})"


def _caches() -> str:
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    found = []
    for index in sorted(folder.glob("index*")):
        level, kind = _read(f"{index}/level"), _read(f"{index}/type")
        if kind != "Instruction":
            found.append(f"L{level} {_read(f'{index}/size')}")
    return ", ".join(found) or "?"


def _commit() -> str:
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "?"
