"""Times the control plane: rings, surveys, start, and the command line."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.dataplane import abi, survey
from agent.rings import maglev
from bench.setting import DEFAULT_SLOTS, LARGE_SLOTS, Bench

_SLOTS = 65_537


@dataclass(frozen=True, slots=True)
class AgentResult:
    """One row: milliseconds."""

    name: str
    median_ms: float
    min_ms: float
    runs: int
    target_ms: float | None = None


@dataclass(frozen=True, slots=True)
class AgentCase:
    """``once`` does the work once and returns how many milliseconds it took."""

    name: str
    once: Callable[[Bench], float]
    target_ms: float | None = None
    slots: int = DEFAULT_SLOTS

    def measure(self, bench: Bench, runs: int) -> AgentResult:
        taken = [self.once(bench) for _ in range(runs)]
        return AgentResult(
            self.name, statistics.median(taken), min(taken), runs, target_ms=self.target_ms
        )


def cases() -> Iterator[AgentCase]:
    """Every case, in the order of the report."""
    yield AgentCase(f"ring of {_SLOTS:,} slots, 1,000 weighted backends", _ring(1000), 50)
    yield AgentCase(f"ring of {_SLOTS:,} slots, 100 backends", _ring(100))
    yield AgentCase("survey of a full table, 1M slots", _survey)
    yield AgentCase("survey of a full table, 4M slots", _survey, slots=LARGE_SLOTS)
    yield AgentCase("data plane from nothing to attached, 1M slots", _start, 1000)
    yield AgentCase("the same, compiled before", _start_again, 800)
    yield AgentCase("lbctl --help", _help, 300)


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _ring(backends: int) -> Callable[[Bench], float]:
    def once(_bench: Bench) -> float:
        draw = random.Random(backends)
        members = tuple(
            maglev.Member(bytes((10, 1, n >> 8, n & 255)), draw.randint(1, 100), n)
            for n in range(1, backends + 1)
        )
        return _ms(lambda: maglev.build(members, _SLOTS))

    return once


def _survey(bench: Bench) -> float:
    tables, main = bench.main.tables, bench.main
    bench.fill_flows()
    now = (main.now_jiffies() >> main.clock.shift) & abi.FLOW_STAMP_MASK
    return _ms(lambda: survey.survey(tables, now))


def _start(_bench: Bench) -> float:
    """Start with no compiled program kept; return milliseconds."""
    with tempfile.TemporaryDirectory() as empty:
        return _started(empty)


def _start_again(_bench: Bench) -> float:
    """Start with the compiled program kept, as after a boot; return milliseconds."""
    with tempfile.TemporaryDirectory() as kept:
        _started(kept)
        return _started(kept)


def _started(kept: str) -> float:
    """Run ``start`` in a process and a network namespace of its own; return its milliseconds."""
    command = [sys.executable, "-c", "from bench.agent_side import start; start()"]
    environment = os.environ | {"CACHE_DIRECTORY": kept}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(json.loads(done.stdout))


def start() -> None:
    """Compile, load, check and attach to a veth; print the milliseconds."""
    os.unshare(os.CLONE_NEWNET)  # before anything else opens a socket
    from dataclasses import replace

    from agent.dataplane import pins
    from agent.dataplane.program import Dataplane
    from bench.setting import config

    subprocess.run(
        ["ip", "link", "add", "bench0", "type", "veth", "peer", "name", "bench1"], check=True
    )
    wanted = replace(config(f"bench-start-{os.getpid()}"), interface="bench0")
    started = time.perf_counter()
    try:
        dataplane = Dataplane(wanted)
        dataplane.load(wanted.services)
        dataplane.attach()
        print(json.dumps((time.perf_counter() - started) * 1000))
    finally:
        pins.remove(pins.pins_of(wanted.name))


def _help(_bench: Bench) -> float:
    command = [sys.executable, "-c", "from lbctl.main import main; main()", "--help"]
    return _ms(lambda: subprocess.run(command, capture_output=True, check=True))
