"""Owns the running checks: one task per backend, and the status each of them has led to."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from agent.errors import NetworkError
from agent.health.patience import Patience
from agent.health.probe import probe as probe_server
from agent.health.rules import (
    ProbeResult,
    checking,
    due,
    excused,
    next_delay_s,
    observe,
    rechecked,
    suspended,
    tells,
    unchecked,
)
from agent.model import (
    Address,
    BackendRef,
    CheckKind,
    Health,
    HealthCheck,
    HealthStatus,
)

log = structlog.get_logger()

RESUME_WITHIN_S = 0.2  # after a link is up again
LINK_NEWS_S = 0.1  # that the kernel's word of a link may come after what it does
# Enough for 4096 dead servers at a check every few seconds, within the usual 1024 descriptors.
MAX_PROBES_AT_ONCE = 512

type OnChange = Callable[[BackendRef, HealthStatus, HealthStatus], None]
type Probe = Callable[[HealthCheck, Address, int, Patience], Awaitable[ProbeResult]]


@dataclass(frozen=True, slots=True)
class Target:
    """What to check. ``initial`` is where a target that is new here starts from."""

    check: HealthCheck
    address: Address
    port: int
    initial: HealthStatus | None = None


class HealthMonitor:
    """Checks its targets while ``run`` runs.

    ``on_change(ref, old, new)`` is called from the event loop when a result changes a backend's
    health; ``set_targets`` calls it for nobody, so read the statuses after it.
    ``on_silence(address)`` is called likewise for each check to which nothing came back.
    ``served(ref)`` counts the clients' requests that a backend has answered well, as far as anybody
    sees them: one that is busy with these is not ill.
    ``blocked(address, since_s)`` says why nothing could leave for there at some time since, by the
    monotonic clock, or is empty: what fails then says nothing of the server.
    """

    def __init__(
        self,
        on_change: OnChange,
        on_silence: Callable[[Address], None] = lambda _: None,
        blocked: Callable[[Address, float], str] = lambda *_: "",
        served: Callable[[BackendRef], int] = lambda _: 0,
        *,
        probe: Probe = probe_server,
    ) -> None:
        self._on_change = on_change
        self._on_silence = on_silence
        self._blocked = blocked
        self._served = served
        self._resumed = asyncio.Event()  # another one each time
        self._probe = probe
        self._patience = Patience()
        self._targets: dict[BackendRef, Target] = {}
        self._statuses: dict[BackendRef, HealthStatus] = {}
        self._tasks: dict[BackendRef, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._slots = asyncio.Semaphore(MAX_PROBES_AT_ONCE)
        self._complained = False

    def set_targets(self, targets: Mapping[BackendRef, Target]) -> None:
        """Check exactly these from now on.

        A target whose check changed keeps its health until the new check has its verdict; one
        whose address changed is another server, and starts anew.
        """
        now = time.time()
        for ref in self._targets.keys() - targets.keys():
            self._stop(ref)
            del self._targets[ref], self._statuses[ref]
        for ref, target in targets.items():
            old = self._targets.get(ref)
            if old is not None and _same(old, target):
                continue
            self._stop(ref)
            if old is not None and old.address == target.address:
                status = rechecked(old.check, target.check, self._statuses[ref], now)
            else:
                status = _first_status(target, now)
            self._targets[ref] = target
            self._statuses[ref] = status
            self._start(ref)

    def status(self, ref: BackendRef) -> HealthStatus:
        """The status of one target; KeyError if it is none."""
        return self._statuses[ref]

    def statuses(self) -> dict[BackendRef, HealthStatus]:
        """The status of every target."""
        return dict(self._statuses)

    def resume(self) -> None:
        """A link is up again: check everybody soon."""
        self._resumed.set()
        self._resumed = asyncio.Event()

    async def run(self) -> None:
        """Check until cancelled."""
        try:
            with self._patience.watching():
                async with asyncio.TaskGroup() as self._group:
                    for ref in self._targets:
                        self._start(ref)
                    await asyncio.Event().wait()  # for ever
        finally:
            self._group = None
            self._tasks.clear()

    def _start(self, ref: BackendRef) -> None:
        target = self._targets[ref]
        if self._group is not None and target.check.kind is not CheckKind.NONE:
            task = self._group.create_task(self._check(ref, target), name=f"health: {ref}")
            self._tasks[ref] = task

    def _stop(self, ref: BackendRef) -> None:
        if task := self._tasks.pop(ref, None):
            task.cancel()

    async def _check(self, ref: BackendRef, target: Target) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        completed = failed = -math.inf  # when a completion was answered last, and when any failed
        while True:
            delay = next_delay_s(target.check, self._statuses[ref], random.random())  # noqa: S311
            await self._pause(max(0.0, started + delay - loop.time()))
            try:
                async with self._slots:
                    started = loop.time()
                    check = due(target.check, self._statuses[ref], started - completed)
                    served = self._served(ref)
                    result = await self._probe(check, target.address, target.port, self._patience)
                self._complained = False
                if check.kind is CheckKind.COMPLETION:
                    result = excused(result, self._served(ref) - served)
                    completed = started if result.ok else -math.inf
                if not tells(result, started - failed):
                    continue
                failed = failed if result.ok else started
                if result.unsent and not self._blocked(target.address, started):
                    await asyncio.sleep(LINK_NEWS_S)
                self._take(ref, target, result, started)
            except NetworkError as error:
                self._complain(str(error))
                await asyncio.sleep(target.check.interval_s)
            except Exception:  # this task's root: a defect must not end all the others
                log.exception("health check broke", backend=str(ref))
                await asyncio.sleep(target.check.interval_s)

    async def _pause(self, delay_s: float) -> None:
        """Until the next check is due, or a link is up again."""
        try:
            async with asyncio.timeout(delay_s):
                await self._resumed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(random.random() * RESUME_WITHIN_S)  # noqa: S311

    def _take(self, ref: BackendRef, target: Target, result: ProbeResult, since_s: float) -> None:
        old = self._statuses[ref]
        if not result.ok and (why := self._blocked(target.address, since_s)):
            self._statuses[ref] = suspended(old, why)
            return
        new = observe(target.check, old, result, time.time())
        self._statuses[ref] = new
        if result.silent:
            self._on_silence(target.address)
        if new.health is not old.health:
            self._on_change(ref, old, new)

    def _complain(self, problem: str) -> None:
        if not self._complained:
            self._complained = True
            log.error("health checks cannot be made; every health stays as it is", problem=problem)


def _same(old: Target, new: Target) -> bool:
    return (old.check, old.address, old.port) == (new.check, new.address, new.port)


def _first_status(target: Target, now: float) -> HealthStatus:
    if target.check.kind is CheckKind.NONE:
        return unchecked(now)
    if target.initial is None or target.initial.health is Health.UNCHECKED:
        return checking(now)
    return target.initial
