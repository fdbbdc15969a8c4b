"""Owns the load: compiles load.c, and has the lab's client open connections with it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.wiring import PeersError, Wired

_SOURCE = Path(__file__).with_name("load.c")
LIMIT_S = 40.0


@dataclass(frozen=True, slots=True)
class Load:
    """A number of connections, some of them at once; ``size``: bytes of bulk per connection."""

    kind: str  # short, up or down, as load.c calls them
    connections: int
    at_once: int
    size: int = 0
    rate: int = 0  # new connections per second; 0: as fast as others end

    @property
    def payload(self) -> int:
        """Return the bytes of bulk of all connections."""
        return self.connections * self.size

    def words(self, tool: Path, targets: Sequence[str]) -> list[str]:
        """Return the command line."""
        numbers = (self.size, self.connections, self.at_once, self.rate, int(LIMIT_S))
        return [str(tool), "ask", self.kind, *map(str, numbers), *targets]


def compile_tool(folder: Path) -> Path:
    """Compile load.c into a folder; return the program's path. Raises PeersError."""
    tool = folder / "load"
    command = ["gcc", "-O2", "-Wall", "-Werror", "-o", str(tool), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise PeersError(f"load.c does not compile: {done.stderr.strip()}", where=str(_SOURCE))
    return tool


def serve(wired: Wired) -> None:
    """Start the servers that answer the load."""
    for backend in wired.backends:
        command = [str(wired.tool), "serve", str(wired.lab.server_port)]
        wired.start(backend, backend.name, command)


def send(wired: Wired, load: Load, targets: Sequence[str]) -> float:
    """Send the load; return the seconds that it took.

    Raises PeersError if a connection failed, as it would make the cost too low.
    """
    said = wired.run(
        wired.client.namespace, *load.words(wired.tool, targets), timeout_s=LIMIT_S + 10
    )
    result = json.loads(said)
    if result["failed"]:
        raise PeersError(
            f"{result['failed']} of {load.connections} connections ({load.kind}) failed",
            where=f"namespace {wired.client.namespace}",
        )
    return float(result["seconds"])
