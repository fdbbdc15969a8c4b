"""``lbctl support-bundle``: everything that a helper needs to see, in one file."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import click

from agent import __version__
from agent.config.redact import redacted
from agent.errors import SteelyardError
from lbctl.environment import Environment, pass_environment
from lbctl.options import agent_options

_LOG_LINES = 5000
_COMMAND_S = 20.0
_READABLE, _NEW = 0o600, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_ASKED = {
    "status.json": "/v1/status",
    "services.json": "/v1/services",
    "configuration.json": "/v1/config",
    "events.json": "/v1/events",
    "history.json": "/v1/history",
    "guard.json": "/v1/guard",
    "discovery.json": "/v1/discovery",
    "failover.json": "/v1/failover",
}
_UNITS = (
    "lb-agent", "lb-agent-api", "lb-agent-failover", "lb-agent-companion", "lb-agent-node",
)  # fmt: skip
_COMMANDS = {
    "host/log.txt": (
        "journalctl", "--no-pager", "-o", "short-iso", "-n", str(_LOG_LINES),
        *(word for unit in _UNITS for word in ("-u", unit)),
    ),
    "host/units.txt": ("systemctl", "--no-pager", "show", *_UNITS),
    "host/links.txt": ("ip", "-d", "-s", "link"),
    "host/addresses.txt": ("ip", "address"),
    "host/routes.txt": ("ip", "route", "show", "table", "all"),
    "host/routes6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "host/rules.txt": ("ip", "rule"),
    "host/neighbours.txt": ("ip", "neigh"),
    "host/nftables.txt": ("nft", "list", "ruleset"),
    "host/qdiscs.txt": ("tc", "-s", "qdisc"),
    "host/kernel.txt": ("dmesg", "--ctime", "--level", "emerg,alert,crit,err,warn"),
    "host/packages.txt": ("dpkg-query", "-W", "python3-bpfcc", "libbpfcc", "linux-image-*"),
}  # fmt: skip
_FILES = tuple(
    Path(name)
    for name in (
        "/etc/os-release", "/proc/meminfo", "/proc/cpuinfo", "/proc/interrupts", "/proc/softirqs",
    )
)  # fmt: skip


@click.command("support-bundle")
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it.  [default: steelyard-NAME-DATE.tar.gz, here]",
)
@agent_options
@pass_environment
def support_bundle(env: Environment, file: Path | None) -> None:
    """Write one file with everything that a helper needs to see.

    It has the agent's status, services, configuration, events and history, the findings of doctor,
    the log, and the output of `ip`, `tc` and `nft`. Passwords and flows are left out: the only
    addresses of clients in it are those in events, in the guard's blocks and among the host's
    neighbours. Parts that cannot be read are named in it. It works without an agent.

    \b
    Example:
      sudo lbctl support-bundle
    """
    env.need_this_host("support-bundle")
    parts = dict(_parts(env))
    name = _name(parts)
    path = file or Path(f"{name}.tar.gz")
    try:
        _write(path, name, parts)
    except OSError as error:
        raise SteelyardError(
            f"the bundle cannot be written: {error.strerror}",
            where=str(path),
            remedy="name another file: --file",
        ) from error
    env.note(
        f"{path}: {len(parts)} files, {path.stat().st_size:,} bytes; read it before you send it"
    )


def _parts(env: Environment) -> Iterator[tuple[str, str]]:
    from lbctl.commands.doctor import examined

    about = {
        "lbctl": __version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    yield "about.json", _json(about)
    for name, path in _ASKED.items():
        yield _part(name, partial(_answer, env, path))
    yield _part("doctor.json", lambda: _json(examined(env)))
    for name, command in _COMMANDS.items():
        yield _part(name, partial(_output, command))
    for file in _FILES:
        yield _part(f"host/{file.name}.txt", partial(file.read_text, errors="replace"))


def _part(name: str, read: Callable[[], str]) -> tuple[str, str]:
    """Return a part of the bundle; if it cannot be read, the reason."""
    try:
        return name, read()
    except (OSError, SteelyardError, subprocess.SubprocessError) as error:
        return f"{name}.missing", f"{error}\n"


def _answer(env: Environment, path: str) -> str:
    return _json(redacted(env.agent().get(path)))


def _output(command: tuple[str, ...]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, timeout=_COMMAND_S
    )
    failed = f"\n(exit {done.returncode}) {done.stderr}" if done.returncode else ""
    return f"# {' '.join(command)}\n{done.stdout}{failed}"


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _name(parts: Mapping[str, str]) -> str:
    """Return a name with the balancer and the time."""
    status = json.loads(parts.get("status.json", "{}"))
    who = status.get("agent", {}).get("name", platform.node() or "host")
    return f"steelyard-{who}-{time.strftime('%Y%m%d-%H%M%S')}"


def _write(path: Path, name: str, parts: Mapping[str, str]) -> None:
    """Write the bundle so that only its owner may read it."""
    with (
        os.fdopen(os.open(path, _NEW, _READABLE), "wb") as raw,
        tarfile.open(fileobj=raw, mode="w:gz") as archive,
    ):
        for part, text in parts.items():
            content = text.encode(errors="replace")
            entry = tarfile.TarInfo(f"{name}/{part}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), _READABLE
            archive.addfile(entry, io.BytesIO(content))
