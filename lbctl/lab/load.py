"""Makes HTTP load: requests on new connections at a bounded rate, and connections held open.

Writes one JSON line for each request and for each event of a held connection (``figures``), and
a summary at the end. Run it in a client of the lab:

    lbctl lab exec client -- python3 -m lbctl.lab.load --target 10.99.0.100:80 --duration 5
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lbctl.lab.client import (
    FAILURES,
    Connection,
    Head,
    Target,
    describe,
    leaving_on_signals,
    number,
    parser,
    run,
    within,
    write,
)
from lbctl.lab.figures import Held, Record, Request

REOPEN_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """The load to make."""

    targets: tuple[Target, ...]
    rate_per_s: float = 100.0
    workers: int = 16
    keep_alive: int = 0  # held connections that send repeated requests
    streams: int = 0  # held connections that each read one long answer
    every_s: float = 0.2  # between the requests of a keep-alive connection
    stream_s: float = 3.0
    timeout_s: float = 5.0


class Generator:
    """Runs a plan; hands every record to ``emit``."""

    def __init__(self, plan: Plan, emit: Callable[[Record], None]) -> None:
        self._plan = plan
        self._emit = emit
        self._numbers = itertools.count(1)
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Begin no new request; requests in progress get their answer, or fail by timeout."""
        self._leaving.set()

    async def run(self) -> None:
        """Make the load until ``leave``."""
        plan = self._plan
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._worker(index), name=f"worker-{index}")
                for index in range(plan.workers if plan.rate_per_s > 0 else 0)
            ]
            held = []
            for index in range(plan.keep_alive + plan.streams):
                target = plan.targets[index % len(plan.targets)]
                hold = self._keep_alive if index < plan.keep_alive else self._stream
                task = group.create_task(self._hold(target, hold, index), name=f"held-{index}")
                held.append(task)
            await self._leaving.wait()
            if workers:
                await asyncio.wait(workers)
            for task in held:
                task.cancel()

    async def _worker(self, index: int) -> None:
        # A worker that falls behind skips requests: the rate is an upper bound.
        period_s = self._plan.workers / self._plan.rate_per_s
        due = time.monotonic() + period_s * index / self._plan.workers
        for turn in itertools.count(index):
            await within(due - time.monotonic(), self._leaving.wait())
            if self._leaving.is_set():
                return
            await self._request(self._plan.targets[turn % len(self._plan.targets)])
            due = max(due + period_s, time.monotonic())

    async def _request(self, target: Target) -> None:
        started_s = time.monotonic()
        try:
            async with Connection(target, self._plan.timeout_s) as connection:
                head = await connection.get("/")
                ended_s = time.monotonic()
        except FAILURES as failure:
            self._emit(_request(target, started_s, time.monotonic(), None, describe(failure)))
        else:
            self._emit(_request(target, started_s, ended_s, head, None))

    async def _hold(
        self, target: Target, hold: Callable[[_Holding, Connection], Awaitable[None]], index: int
    ) -> None:
        # Spread the beginnings, so that streams do not all end together.
        await asyncio.sleep(random.random() * self._plan.stream_s)  # noqa: S311
        kind = "keep-alive" if index < self._plan.keep_alive else "stream"
        while True:
            holding = _Holding(next(self._numbers), kind, str(target), self._emit)
            try:
                async with Connection(target, self._plan.timeout_s) as connection:
                    await hold(holding, connection)
                holding.event("finished")
            except FAILURES as failure:
                holding.event("broke" if holding.backend else "refused", describe(failure))
                await asyncio.sleep(REOPEN_PAUSE_S)

    async def _keep_alive(self, holding: _Holding, connection: Connection) -> None:
        while True:
            holding.answered((await connection.get("/")).backend)
            await asyncio.sleep(self._plan.every_s)

    async def _stream(self, holding: _Holding, connection: Connection) -> None:
        seconds = self._plan.stream_s
        head = await connection.ask(f"/slow?seconds={seconds}&chunks={max(1, int(seconds * 10))}")
        holding.answered(head.backend)
        while chunk := await connection.read_chunk():
            holding.answered(chunk.decode().strip())


def _request(
    target: Target, started_s: float, ended_s: float, head: Head | None, error: str | None
) -> Request:
    return Request(
        at_s=ended_s,
        started_s=started_s,
        target=str(target),
        backend=head.backend if head else None,
        status=head.status if head else None,
        error=error,
        latency_ms=round(1000 * (ended_s - started_s), 3),
    )


class _Holding:
    """Records the events of one held connection."""

    def __init__(self, number: int, kind: str, target: str, emit: Callable[[Record], None]) -> None:
        self.backend: str | None = None
        self._number = number
        self._kind = kind
        self._target = target
        self._emit = emit

    def answered(self, backend: str | None) -> None:
        """Record that a backend answered on the connection."""
        if backend != self.backend:
            before, self.backend = self.backend, backend
            self.event("moved" if before else "opened", f"was on {before}" if before else None)

    def event(self, event: str, error: str | None = None) -> None:
        """Record what happened."""
        self._emit(
            Held(
                at_s=time.monotonic(),
                connection=self._number,
                kind=self._kind,
                event=event,
                target=self._target,
                backend=self.backend,
                error=error,
            )
        )


class Tally:
    """Writes records as lines and counts them for the summary."""

    def __init__(self) -> None:
        self._backends: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._requests = 0

    def emit(self, record: Record) -> None:
        """Write one record."""
        if isinstance(record, Held):
            self._held[record.event] += 1
        elif isinstance(record, Request):
            self._requests += 1
            if record.backend is not None:
                self._backends[record.backend] += 1
            if record.failed:
                self._errors[record.error or f"status {record.status}"] += 1
        write(record)

    def summary(self) -> str:
        """Return the last line of the output."""
        return json.dumps(
            {
                "record": "summary",
                "requests": self._requests,
                "failed": sum(self._errors.values()),
                "errors": dict(self._errors),
                "backends": dict(sorted(self._backends.items())),
                "held": dict(self._held),
            }
        )


async def generate(plan: Plan, tally: Tally, duration_s: float | None) -> None:
    """Make the load until the time is over, or until SIGTERM or SIGINT."""
    leaving = leaving_on_signals()
    generator = Generator(plan, tally.emit)
    running = asyncio.create_task(generator.run(), name="load")
    ending = asyncio.create_task(leaving.wait(), name="leaving")
    await asyncio.wait({running, ending}, timeout=duration_s, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    generator.leave()
    await running
    print(tally.summary(), flush=True)


def main() -> None:
    """Run the command line."""
    command_line = parser("lbctl.lab.load", __doc__, timeout_s=5.0)
    add = command_line.add_argument
    count, amount = number(int, or_zero=True), number(float, or_zero=True)
    add("--rate", type=amount, default=100.0, help="new connections per second, all together")
    add("--workers", type=number(int), default=16, help="how many requests may be open at once")
    add("--keep-alive", type=count, default=0, help="connections held open, with repeated requests")
    add("--streams", type=count, default=0, help="connections held open, reading a long answer")
    add("--stream-seconds", type=amount, default=3.0, help="length of the long answers")
    options = command_line.parse_args()
    plan = Plan(
        targets=tuple(options.target),
        rate_per_s=options.rate,
        workers=options.workers,
        keep_alive=options.keep_alive,
        streams=options.streams,
        stream_s=options.stream_seconds,
        timeout_s=options.timeout,
    )
    run(generate(plan, Tally(), options.duration))


if __name__ == "__main__":
    main()
