"""Owns the VRRP daemon on a node, ours or keepalived, and decides how each is configured."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

import yaml

from bench.failover.network import INTERFACE, Act, Node, Pair
from lbctl.lab import processes

VRID = 51
_END_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Program:
    """A VRRP daemon; ``command`` writes its files into a folder and returns its command line."""

    name: str
    command: Callable[[Pair, Node, Path], list[str]]


def _vips(pair: Pair) -> list[str]:
    if pair.variant.family == 4:
        return [pair.variant.vip]
    # RFC 9568, section 5.2.9: a link-local address comes first. Ours would generate this one.
    return [str(IPv6Address(f"fe80::200:5eff:fe00:2{VRID:02x}")), pair.variant.vip]


def keepalived_text(pair: Pair, node: Node) -> str:
    """Return keepalived.conf: its defaults, but for what a pair needs."""
    lines = [
        "global_defs {",
        f"    router_id {node.name}",
        "}",
        "vrrp_instance bench {",
        "    state BACKUP",
        f"    interface {INTERFACE}",
        f"    virtual_router_id {VRID}",
        f"    priority {node.priority}",
        f"    advert_int {pair.variant.interval_s:g}",
        f"    version {pair.variant.version}",
        "    virtual_ipaddress {",
        *(f"        {vip}" for vip in _vips(pair)),
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _keepalived(pair: Pair, node: Node, folder: Path) -> list[str]:
    path = folder / "keepalived.conf"
    path.write_text(keepalived_text(pair, node))
    # All four PID files: in /run they may be locked by another keepalived of this host.
    files = [
        word
        for option in ("pid", "vrrp_pid", "checkers_pid", "bfd_pid")
        for word in (f"--{option}", str(folder / f"{option}.pid"))
    ]
    return [
        "keepalived", "--use-file", str(path), "--vrrp", "--dont-fork", "--log-console",
        "--log-detail", "--no-syslog", *files,
    ]  # fmt: skip


def steelyard_document(pair: Pair, node: Node, folder: Path) -> dict[str, object]:
    """Return the agent's configuration: our defaults, but for what a pair needs."""
    instance: dict[str, object] = {
        "name": "bench",
        "vrid": VRID,
        "priority": node.priority,
        "version": pair.variant.version,
        "advert_interval": f"{round(1000 * pair.variant.interval_s)}ms",
        "vips": [pair.variant.vip],
        # There is no agent, and its absence would lower the priority: a backup would wait longer
        # than keepalived's of the same configured priority.
        "track": {"dataplane": False, "agent": 0},
    }
    return {
        "name": node.name,
        "interface": INTERFACE,
        "socket": str(folder / "agent.sock"),
        "state_dir": str(folder),
        "services": [],
        "failover": {"instances": [instance]},
    }


def _steelyard(pair: Pair, node: Node, folder: Path) -> list[str]:
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(steelyard_document(pair, node, folder), sort_keys=False))
    return [*processes.program("lb-agent", "agent.main"), "failover", "--config", str(path)]


STEELYARD = Program("steelyard", _steelyard)
KEEPALIVED = Program("keepalived", _keepalived)


class Daemon:
    """A daemon on a node, which can be started, harmed and started again."""

    def __init__(self, program: Program, pair: Pair, node: Node) -> None:
        self._pair, self._node = pair, node
        folder = pair.folder / node.name
        folder.mkdir()
        self._command = program.command(pair, node, folder)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output goes to a log beside its folder."""
        self._process = processes.start(
            self._pair.folder, self._node.name, self._node.namespace, self._command
        )

    def killing(self) -> Act:
        """Prepare SIGKILL to all at once: keepalived's child exits cleanly without its parent."""
        return self.signalling(signal.SIGSTOP, signal.SIGKILL)

    def signalling(self, *numbers: signal.Signals) -> Act:
        """Prepare signals to the process and all its descendants, parents before their children."""
        pids = self._pids()

        def act() -> None:
            for number in numbers:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)

        return act

    def ask_to_stop(self) -> None:
        """SIGTERM, as a service manager sends it."""
        if self._process is not None:
            self._process.terminate()

    def restart(self) -> None:
        """Start it again as soon as the previous process is gone."""
        self._await_end()
        self.start()

    def _await_end(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.killing()()
            self._process.wait()

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes since their start."""
        ticks = 0
        for pid in self._pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _pids(self) -> Sequence[int]:
        if self._process is None:
            return ()
        found = [self._process.pid]
        for pid in found:  # grows while it is read
            with suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                found += map(int, children.split())
        return found
