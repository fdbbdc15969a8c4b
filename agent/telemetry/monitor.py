"""Owns the running scrapes: asks each target at its own pace, and passes on its reports.

All times are on the event loop's monotonic clock, so a wall clock that jumps changes nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from heapq import heappop, heappush

from agent.health.outcome import duration
from agent.logs import get_logger
from agent.model import BackendRef
from agent.telemetry.asks import Target, Topic, ask_of, is_asked
from agent.telemetry.fetch import Link
from agent.telemetry.report import Failure, Report

log = get_logger()

LONGEST_BACKOFF_S = 5.0
_JITTER = 0.05  # of the interval, so that several balancers do not ask in step
_TOGETHER_S = 0.005  # targets due within this time are asked together, for fewer wake-ups
_DEADLINES_EVERY_S = 0.02
_PAUSE_FACTOR = 20.0  # a pause of this many times the time that reading a page took
# The time until a page arrives is mostly the engine's own work. Asking for it should take 2 % of
# the engine's time at most.
_COST_FACTOR = 50.0
_SLOWEST_S = 1.0  # the longest pace that results from this cost
_TAKES = 16  # pages; the quickest of them had to wait for no other work of the engine

type Key = tuple[BackendRef, Topic]
type OnAsk = Callable[[Key], None]
type OnReport = Callable[[Key, Report | Failure, float, float, float], None]


class TelemetryMonitor:
    """Asks its targets while ``run`` runs; a target is asked once for all keys that share it.

    ``on_ask(key)`` is called right before a request is written, and ``on_report(key, report,
    asked_at, got_at, pace_s)`` with the outcome, for each key; both from the event loop.
    ``pace_s``: the time from one request to the next, longer than the interval if a page costs its
    server much.
    """

    def __init__(self, on_ask: OnAsk, on_report: OnReport) -> None:
        self._on_ask = on_ask
        self._on_report = on_report
        self._watches: dict[Target, _Watch] = {}
        self._waiting: list[tuple[float, int, _Watch]] = []  # a heap by due time
        self._asked: set[_Watch] = set()
        self._serial = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._group: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set_targets(self, targets: Mapping[Key, Target]) -> None:
        """Ask exactly these targets from now on. A target that is unchanged is not disturbed."""
        wanted: dict[Target, list[Key]] = {}
        for key, target in targets.items():
            if is_asked(target.question):
                wanted.setdefault(target, []).append(key)
        for target in self._watches.keys() - wanted.keys():
            self._drop(self._watches.pop(target))
        for target, keys in wanted.items():
            watch = self._watches.get(target)
            if watch is None:
                self._watches[target] = watch = _Watch(target, self)
                self._begin(watch)
            watch.keys = tuple(keys)
        self._set_timer()

    async def run(self) -> None:
        """Ask until cancelled, and then drop all targets."""
        async with asyncio.TaskGroup() as self._group:
            self._loop = asyncio.get_running_loop()
            for watch in self._watches.values():
                self._begin(watch)
            self._set_timer()
            try:
                await asyncio.Event().wait()  # for ever
            finally:
                self._stop()

    def asking(self, watch: _Watch) -> None:
        """Note that a watch's request is being written."""
        for key in watch.asking_for:
            self._on_ask(key)

    def reported(
        self, watch: _Watch, report: Report | Failure, now: float, spent_s: float = 0.0
    ) -> None:
        """Take a watch's report, which arrived at ``now`` and took ``spent_s`` to read."""
        self._asked.discard(watch)
        delay = watch.pace_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        if isinstance(report, Failure):
            watch.failures += 1
            backoff = watch.interval_s * 2.0 ** min(watch.failures - 1, 30)
            delay = max(delay, min(backoff, LONGEST_BACKOFF_S))
        else:
            watch.failures = 0
        self._wait(watch, max(now + spent_s * _PAUSE_FACTOR, watch.due + delay))
        for key in watch.asking_for:
            if key not in watch.keys:
                continue  # this key has another target by now
            try:
                self._on_report(key, report, watch.asked_at, now, watch.pace_s)
            except Exception:  # a defect there must not end the scrapes
                log.exception("a report was not taken", backend=str(key[0]))

    def spawn(self, coroutine: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start a task that ends with ``run``."""
        assert self._group is not None  # noqa: S101
        return self._group.create_task(coroutine, name=name)

    def _begin(self, watch: _Watch) -> None:
        if self._loop is not None:
            phase = random.random() * watch.interval_s  # noqa: S311
            self._wait(watch, self._loop.time() + phase)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for watch in self._watches.values():
            self._drop(watch)
        self._watches.clear()
        self._waiting.clear()
        self._loop = self._group = self._timer = None

    def _drop(self, watch: _Watch) -> None:
        watch.dropped = True
        watch.link.close()
        self._asked.discard(watch)

    def _wait(self, watch: _Watch, due: float) -> None:
        watch.due = due
        self._serial += 1
        heappush(self._waiting, (due, self._serial, watch))

    def _set_timer(self) -> None:
        loop = self._loop
        if loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._waiting[0][0] if self._waiting else None
        if self._asked:
            check = loop.time() + _DEADLINES_EVERY_S
            due = check if due is None else min(due, check)
        if due is not None:
            self._timer = loop.call_at(due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        waiting = self._waiting
        while waiting and waiting[0][0] <= now + _TOGETHER_S:
            watch = heappop(waiting)[2]
            if not watch.dropped:
                self._asked.add(watch)
                watch.ask(now)
        for watch in [watch for watch in self._asked if watch.deadline <= now]:
            watch.give_up(now)
        self._set_timer()


class _Watch:
    """One target, and the state of its present request."""

    def __init__(self, target: Target, monitor: TelemetryMonitor) -> None:
        self.keys: tuple[Key, ...] = ()  # the keys that share the target
        self.asking_for: tuple[Key, ...] = ()  # the keys at the last request
        self.target = target
        self.interval_s = target.question.interval_s
        self.due = self.asked_at = self.deadline = 0.0
        self.failures = 0
        self.dropped = False
        self._monitor = monitor
        self._timeout_s = target.timeout_s
        ask = ask_of(target)
        self._read = ask.read
        self._takes: deque[float] = deque(maxlen=_TAKES)
        self.link = Link(target, ask.request, self._spawn, self._asking, self._answered)

    @property
    def pace_s(self) -> float:
        """The time from one request to the next."""
        if len(self._takes) < _TAKES:
            return self.interval_s
        return max(self.interval_s, min(min(self._takes) * _COST_FACTOR, _SLOWEST_S))

    def ask(self, now: float) -> None:
        self.asked_at = now
        self.deadline = now + self._timeout_s
        self.asking_for = self.keys
        self.link.ask()

    def give_up(self, now: float) -> None:
        self.link.close()
        failure = Failure(f"no answer within {duration(self._timeout_s)}")
        self._monitor.reported(self, failure, now)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        ref, topic = self.keys[0]
        return self._monitor.spawn(coroutine, f"telemetry: {ref} {topic.value}")

    def _asking(self) -> None:
        self.asked_at = asyncio.get_running_loop().time()
        self._monitor.asking(self)

    def _answered(self, answer: bytes | Failure) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not isinstance(answer, Failure):
            try:
                self._takes.append(max(now - self.asked_at - self.link.rtt_s, 0.0))
                report = self._read(answer)
            except Exception:  # a defect of one reader must not end all scrapes
                log.exception("a page could not be read", backend=str(self.keys[0][0]))
                report = Failure("the page could not be read: see the log")
        else:
            report = answer
        self._monitor.reported(self, report, now, loop.time() - now)
