"""Owns the load: compiles load.c, and has the lab's client open connections with it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.peers.wiring import PeersError, Wired
from lbctl.lab import netns

_SOURCE = Path(__file__).with_name("load.c")
LIMIT_S = 40
STRANGERS = "198.18.0.0/15"  # what load.c floods from; RFC 2544, section 6, keeps it for benchmarks
FLOOD_BEFORE_S = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """A number of connections, some of them at once; ``size``: bytes of bulk per connection.

    ``rate``: new connections per second; 0: as fast as others end. ``flood``: packets per second of
    strangers beside them, which are no part of any connection. ``limit_s``: then they have failed.
    """

    kind: str  # short, up or down, as load.c calls them
    connections: int
    at_once: int
    size: int = 0
    rate: int = 0
    flood: int = 0
    limit_s: int = LIMIT_S

    @property
    def payload(self) -> int:
        """Return the bytes of bulk of all connections."""
        return self.connections * self.size

    def words(self, tool: Path, targets: Sequence[str]) -> list[str]:
        """Return the command line."""
        numbers = (self.size, self.connections, self.at_once, self.rate, self.limit_s)
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


@dataclass(frozen=True, slots=True)
class Sent:
    """How long a load took, and how many of its connections failed."""

    seconds: float
    failed: int


def send(wired: Wired, load: Load, targets: Sequence[str]) -> Sent:
    """Send the load.

    Raises PeersError if a connection failed without a flood: it would make the cost too low.
    """
    said = wired.run(
        wired.client.namespace, *load.words(wired.tool, targets), timeout_s=load.limit_s + 10
    )
    result = json.loads(said)
    if result["failed"] and not load.flood:
        raise PeersError(
            f"{result['failed']} of {load.connections} connections ({load.kind}) failed",
            where=f"namespace {wired.client.namespace}",
        )
    return Sent(float(result["seconds"]), int(result["failed"]))


def lead_back(wired: Wired) -> None:
    """Let answers to strangers go to the client, as if all of them were behind it."""
    for node in (wired.balancer, *wired.backends):
        addresses = [address for link in node.links for address in link.addresses]
        if any(wired.client.ipv4 in address.network for address in addresses):
            netns.ip([f"route add {STRANGERS} via {wired.client.ipv4}"], node.namespace)


@contextmanager
def flooded(wired: Wired, load: Load, targets: Sequence[str]) -> Iterator[None]:
    """Let strangers send while the block runs, if the load has any."""
    if not load.flood:
        yield
        return
    limit_s = load.limit_s + 10
    command = [str(wired.tool), "flood", str(load.flood), str(limit_s), targets[0]]
    pid = wired.start(wired.client, "flood", command)
    try:
        time.sleep(FLOOD_BEFORE_S)
        yield
    finally:
        psutil.Process(pid).terminate()
