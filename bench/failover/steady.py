"""Owns the test for false failovers: pairs without a fault, while every core is busy."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.failover import timeline
from bench.failover.measure import Bed, Pairing, Progress, bed
from bench.failover.network import MASTER, Variant

LOOPS_PER_CORE = 3
_GRACE_S = 60


@dataclass(frozen=True, slots=True)
class Steady:
    """What happened to one pair."""

    variant: str
    pairing: str
    transitions: int  # how often a node took the VIP or lost it
    lost: int  # probes that no node answered in time
    probes: int
    hole_ms: float  # the longest outage
    cpu_ms_per_s: tuple[float, float]  # of the master's daemon, of the backup's


def run(
    pairs: Sequence[tuple[Variant, Pairing]], tool: Path, seconds: float, progress: Progress
) -> list[Steady]:
    """Run all pairs at once, for ``seconds``."""
    stop = threading.Event()
    with ExitStack() as stack:
        beds = []
        for number, (variant, pairing) in enumerate(pairs):
            beds.append(stack.enter_context(bed(variant, pairing, tool, number, stop)))
            progress(f"{variant.name}, {pairing.name}: runs")
        starts = [made.watch.count() for made in beds]
        cpu = [_cpu_s(made) for made in beds]
        began = time.monotonic()
        with _busy(seconds):
            progress(f"every core is busy, for {seconds:.0f} s")
            time.sleep(seconds)
            took_s = time.monotonic() - began
            return [
                _result(made, pair, start, before, took_s)
                for made, pair, start, before in zip(beds, pairs, starts, cpu, strict=True)
            ]


@contextmanager
def _busy(seconds: float) -> Iterator[None]:
    """Keep every processor busy with loops, which end by themselves if they are not stopped."""
    limit = str(int(seconds + _GRACE_S))
    command = ["timeout", limit, "sh", "-c", "while :; do :; done"]
    loops = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        for _ in range(LOOPS_PER_CORE * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.terminate()
        for loop in loops:
            loop.wait()


def _cpu_s(made: Bed) -> tuple[float, float]:
    first, second = made.daemons
    return first.cpu_s(), second.cpu_s()


def _result(
    made: Bed, pair: tuple[Variant, Pairing], start: int, before: tuple[float, float], took_s: float
) -> Steady:
    records = made.watch.since(start)
    known_ns = time.monotonic_ns() - timeline.LATE_NS
    asked = timeline.probes(records).between(0, known_ns)
    after = _cpu_s(made)
    return Steady(
        variant=pair[0].name,
        pairing=pair[1].name,
        transitions=len(timeline.ownership(records, frozenset({MASTER}))) - 1,
        lost=int((asked.answered_by == timeline.NOBODY).sum()),
        probes=len(asked.sent_ns),
        hole_ms=max((hole.ms for hole in asked.holes()), default=0.0),
        cpu_ms_per_s=(
            1000 * (after[0] - before[0]) / took_s,
            1000 * (after[1] - before[1]) / took_s,
        ),
    )
