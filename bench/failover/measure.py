"""Owns the measurement: builds pairs, harms and watches them, one repetition after the other."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SteelyardError
from bench.failover import timeline
from bench.failover.cases import Case, Victim, case
from bench.failover.daemons import Daemon, Program
from bench.failover.network import BACKUP, MASTER, Pair, Variant, wired
from bench.failover.timeline import LATE_NS, Moments, Outcome
from bench.failover.watch import Watch, watching

_START_TIMEOUT_S = 15.0
_BLACK_HOLE_S = 5.0  # a client does not wait any longer
_LOOK_S = 0.02
_ARM_S = 0.05  # until the process that makes the fault waits for the signal to do it
_CALM_NS = 100_000_000
# Until keepalived's second burst of gratuitous ARP is over, as for any long-standing master.
_REST_S = 5.5
_BUILDS = 3  # of a pair that does not come up, or does not recover
_SECOND = 10**9


class MeasureError(SteelyardError):
    """A pair does not behave as a pair should."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The daemons of a pair."""

    name: str
    programs: tuple[Program, Program]  # of the master, of the backup


@dataclass(frozen=True, slots=True)
class Task:
    """Cases of one pairing, one after the other in the same network.

    Each repetition of a case is the time of its fault, as a share of the time between adverts.
    """

    variant: Variant
    pairing: Pairing
    repetitions: tuple[tuple[str, tuple[float, ...]], ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one repetition."""

    variant: str
    pairing: str
    case: str
    outcome: Outcome
    given_up: bool  # the client did not find the master again in time


@dataclass(frozen=True, slots=True)
class Failure:
    """A measurement that failed."""

    variant: str
    pairing: str
    case: str
    why: str


type Found = Sample | Failure
type Progress = Callable[[str], None]


class Stopped(Exception):  # noqa: N818 (not an error)
    """The measurement has been told to stop."""


@dataclass(slots=True)
class Bed:
    """A pair in operation, with the client that watches it."""

    pair: Pair
    daemons: tuple[Daemon, Daemon]
    watch: Watch
    stop: threading.Event

    def sleep(self, seconds: float) -> None:
        """Wait; raises Stopped if the measurement has to stop."""
        if self.stop.wait(seconds):
            raise Stopped

    def await_calm(self, node: int, since_ns: int, timeout_s: float, start: int) -> bool:
        """Wait until only this node has the VIP and has answered all probes for a while.

        ``start``: the index of a record at which only the master had it, or no node yet.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            known_ns = time.monotonic_ns() - LATE_NS
            records = self.watch.since(start)
            recent = timeline.probes(records).between(known_ns - _CALM_NS, known_ns)
            alone = timeline.owners(records, {MASTER} if start else ()) == {node}
            if alone and known_ns - _CALM_NS >= since_ns and recent.all_by(node):
                return True
            self.sleep(_LOOK_S)
        return False

    def state(self, start: int) -> str:
        """Describe which nodes have the VIP and which answer, for people."""
        records = self.watch.since(start)
        names = [node.name for node in self.pair.nodes] + ["nobody"]
        has = [names[node] for node in timeline.owners(records, {MASTER} if start else ())]
        known_ns = time.monotonic_ns() - LATE_NS
        recent = timeline.probes(records).between(known_ns - _CALM_NS, known_ns)
        answers = Counter(names[node] for node in recent.answered_by.tolist())
        said = ", ".join(f"{name} {count}" for name, count in answers.items())
        return f"the VIP is on {' and '.join(has) or 'nobody'}; last answers: {said}"

    def await_phase(self, phase: float) -> None:
        """Wait for this phase between two adverts of the master."""
        interval_ns = self.pair.variant.interval_s * _SECOND
        records = self.watch.since(max(0, self.watch.count() - int(5 * interval_ns / 1e6) - 100))
        heard = records[(records["kind"] == timeline.Kind.HEARD) & (records["node"] == BACKUP)]
        now_ns = time.monotonic_ns()
        since_ns = now_ns - int(heard["at_ns"][-1]) if len(heard) else 0
        wait_ns = (phase * interval_ns - since_ns) % interval_ns
        self.sleep(wait_ns / _SECOND)

    def await_answers(self, node: int, since_ns: int, timeout_s: float, start: int) -> bool:
        """Wait until this node has answered a probe."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            records = self.watch.since(start)
            if timeline.first(records, timeline.Kind.ANSWERED, node, since_ns) is not None:
                return True
            self.sleep(_LOOK_S)
        return False


@contextmanager
def bed(
    variant: Variant, pairing: Pairing, tool: Path, number: int, stop: threading.Event
) -> Iterator[Bed]:
    """Build a pair and wait until it has settled: the node with the higher priority is master."""
    with wired(variant, tool.parent, number) as pair, watching(tool, pair) as watch:
        daemons = tuple(
            Daemon(program, pair, node)
            for program, node in zip(pairing.programs, pair.nodes, strict=True)
        )
        made = Bed(pair, (daemons[0], daemons[1]), watch, stop)
        # One after the other: that the backup works can be seen only while it is alone.
        for index in (BACKUP, MASTER):
            daemons[index].start()
            if not made.await_calm(index, 0, _START_TIMEOUT_S + 5 * variant.interval_s, 0):
                raise MeasureError(
                    f"{pair.nodes[index].name} does not become master: {made.state(0)}",
                    where=f"{pairing.name}, {variant.title}",
                    remedy=f"its log: {pair.log(index)}",
                )
        yield made


@contextmanager
def _hurry() -> Iterator[None]:
    """Give this thread, but not what it starts, real-time priority, so that faults come in time."""
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def repeat(made: Bed, one: Case, phase: float, draw: random.Random) -> tuple[Outcome, bool]:
    """Make a fault and undo it; return the outcome, and whether the client had to be helped.

    ``phase``: the time of the fault, as a share of the time between two adverts.
    """
    interval_s = made.pair.variant.interval_s
    victim = Victim(made.pair, made.daemons[MASTER])
    start = made.watch.count()
    harm = one.harm(victim)
    made.sleep(_ARM_S + interval_s)  # so that the last advert before the fault is in the records
    with _hurry():
        made.await_phase(phase)
        fault_ns = time.monotonic_ns()
        harm()
    if one.takes_over:
        made.await_answers(BACKUP, fault_ns, 1 + 5 * interval_s, start)
    undo = one.undo(victim)
    made.sleep(draw.uniform(*one.lasts_s) + draw.uniform(3, 4) * interval_s)
    back_ns = time.monotonic_ns()
    undo()
    patience_s = _BLACK_HOLE_S + 5 * interval_s
    settled = made.await_calm(MASTER, back_ns, patience_s, start)
    end_ns = time.monotonic_ns() - LATE_NS
    records = made.watch.since(start)
    if not settled:
        made.pair.forget()
        if not made.await_calm(MASTER, back_ns, patience_s, start):
            raise MeasureError(f"the pair does not recover: {made.state(start)}", where=one.name)
    moments = Moments(fault_ns, back_ns, end_ns)
    return timeline.outcome(records, moments, MASTER, BACKUP, one.from_first_loss), not settled


def measure(
    task: Task, tool: Path, number: int, stop: threading.Event, progress: Progress
) -> list[Found]:
    """Take all repetitions of a task; a failed one is tried once more in a new network."""
    found: list[Found] = []
    draw = random.Random(task.seed)
    left = [_Left(name, list(moments)) for name, moments in task.repetitions]
    where = (task.variant.name, task.pairing.name)
    for build in range(_BUILDS):
        try:
            with bed(task.variant, task.pairing, tool, number + build, stop) as made:
                while left:
                    _take(made, left[0], task, draw, found, progress)
                    left.pop(0)
        except SteelyardError as error:
            progress(f"{' '.join(where)}: {error}")
            found.append(Failure(*where, left[0].case, str(error)))
        if not left:
            break
    return found


@dataclass(slots=True)
class _Left:
    """The repetitions of a case that are still to be done."""

    case: str
    phases: list[float]


def _take(
    made: Bed,
    left: _Left,
    task: Task,
    draw: random.Random,
    found: list[Found],
    progress: Progress,
) -> None:
    """Take the repetitions of one case."""
    where = (task.variant.name, task.pairing.name, left.case)
    one = case(left.case)
    began = len(found)
    if one.rest:
        made.sleep(_REST_S)
    while left.phases:
        outcome, given_up = repeat(made, one, left.phases.pop(), draw)
        found.append(Sample(*where, outcome, given_up))
    took = [s.outcome.takeover_ms for s in found[began:] if isinstance(s, Sample)]
    shown = ", ".join("-" if ms is None else f"{ms:.0f}" for ms in took)
    progress(f"{', '.join(where)}: {shown} ms")


def run(tasks: Sequence[Task], tool: Path, at_once: int, progress: Progress) -> list[Found]:
    """Run all tasks, ``at_once`` in parallel; a signal stops all and removes their networks."""
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        futures = [
            pool.submit(measure, task, tool, _BUILDS * number, stop, progress)
            for number, task in enumerate(tasks)
        ]
        try:
            while (waiting := wait(futures, timeout=0.5, return_when=FIRST_EXCEPTION)).not_done:
                if any(future.exception() for future in waiting.done):
                    break
        finally:
            stop.set()
            for future in futures:
                future.cancel()
    for future in futures:
        error = None if future.cancelled() else future.exception()
        if error and not isinstance(error, Stopped):
            raise error
    return [one for future in futures for one in future.result()]
