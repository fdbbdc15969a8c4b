"""Owns the client that probes every millisecond: compiles watch.c, starts it, reads its records."""

from __future__ import annotations

import mmap
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from agent.errors import SteelyardError
from bench.failover.network import INTERFACE, Pair
from bench.failover.timeline import RECORD, Records
from lbctl.lab import netns

PERIOD_US = 1000
_SOURCE = Path(__file__).with_name("watch.c")
_START_TIMEOUT_S = 5.0


class WatchError(SteelyardError):
    """The client does not work."""


def compile_tool(folder: Path) -> Path:
    """Compile watch.c into a folder; return the program's path."""
    tool = folder / "watch"
    command = ["gcc", "-O2", "-Wall", "-Werror", "-o", str(tool), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise WatchError(f"watch.c does not compile: {done.stderr.strip()}", where=str(_SOURCE))
    return tool


class Watch:
    """Access to what the client has recorded so far."""

    def __init__(self, process: subprocess.Popen[bytes], memory: mmap.mmap) -> None:
        self._process = process
        self._memory = memory

    def count(self) -> int:
        """Return the number of records."""
        return int.from_bytes(self._memory[:8], "little")

    def since(self, index: int) -> Records:
        """Return the records from ``index`` on; raises WatchError if the client has ended."""
        if self._process.poll() is not None:
            raise WatchError("the client that probes the VIP has ended", where="watch.c")
        size = RECORD.itemsize  # the file's header is as long as a record
        found = self._memory[(1 + index) * size : (1 + self.count()) * size]
        return np.frombuffer(found, dtype=RECORD)


@contextmanager
def watching(tool: Path, pair: Pair) -> Iterator[Watch]:
    """Run a client that probes the pair's VIP until the block ends."""
    path = pair.folder / "records"
    command = [str(tool), str(path), str(PERIOD_US), pair.variant.vip, INTERFACE]
    command += [str(netns.path(pair.namespace("client")))]
    for node in pair.nodes:
        command += [str(netns.path(node.namespace)), node.mac]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield Watch(process, _mapped(path, process))
    finally:
        process.kill()
        process.wait()


def _mapped(path: Path, process: subprocess.Popen[bytes]) -> mmap.mmap:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        time.sleep(0.01)
    raise WatchError("the client that probes the VIP does not start", where="watch.c")
