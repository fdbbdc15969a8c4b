"""Owns the running checks, one task for each different check of a server, and the resulting status
of each backend.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from agent.errors import NetworkError
from agent.health.alarms import Alarms
from agent.health.outcome import duration
from agent.health.patience import Patience
from agent.health.probe import probe as probe_server
from agent.health.prober import KINDS, Prober, Server
from agent.health.rules import (
    SIZES_EVERY_S,
    ProbeResult,
    checking,
    due,
    excused,
    is_full_due,
    is_meaningful,
    lost,
    next_delay_s,
    observe,
    proven,
    reached,
    rechecked,
    suspended,
    unchecked,
    ways_to_ask,
)
from agent.health.turns import Turns
from agent.logs import get_logger
from agent.model import (
    Address,
    BackendRef,
    CheckKind,
    Health,
    HealthCheck,
    HealthStatus,
)
from agent.state.way import Answer, Way, narrow, silence, smaller_sizes

log = get_logger()

RESUME_WITHIN_S = 0.2  # all checks are made within this time after a link is up again
LINK_NEWS_S = 0.1  # by how much the kernel's event about a link may come after its effects
# Enough for 4096 dead servers at a check every few seconds, within the usual 1024 descriptors.
MAX_PROBES_AT_ONCE = 512

type OnChange = Callable[[BackendRef, HealthStatus, HealthStatus], None]
type Through = Callable[[Way, int], Awaitable[Answer | None]]
type Probe = Callable[[HealthCheck, Address, int, Patience], Awaitable[ProbeResult]]
type Ask = Callable[[], Awaitable[ProbeResult]]


@dataclass(frozen=True, slots=True)
class Target:
    """What to check. ``initial``: the status that a new target starts with. ``way``: the way of
    clients' packets to the backend, which is to be checked too.
    """

    check: HealthCheck
    address: Address
    port: int
    initial: HealthStatus | None = None
    way: Way | None = None


@dataclass(frozen=True, slots=True)
class _Full:
    """The last full packet by a way: when it was sent, why it counts as lost (empty: it was
    answered), and when the sizes that arrive were looked for. All by the event loop's clock.
    """

    sent_s: float
    lost: str = ""
    sized_s: float = -math.inf


_NEVER = _Full(-math.inf)

type Key = tuple[HealthCheck, Address, int, BackendRef | None]


def _key(ref: BackendRef, target: Target) -> Key:
    """Return the key of the check; targets with the same key share one check of the server.

    Completions and commands are not shared: a completion that failed is excused by the answers of
    its own backend to clients, and a command is given the address of one backend.
    """
    check = target.check
    alone = check.kind in (CheckKind.COMPLETION, CheckKind.EXEC)
    return check, target.address, check.port or target.port, ref if alone else None


async def _not_asked(_: Way, _size: int) -> None:
    return None


class HealthMonitor:
    """Checks its targets while ``run`` runs. A server in several services is checked once for all.

    ``on_change(ref, old, new)`` is called from the event loop when a result changes a backend's
    health; ``change`` does not call it, so read the statuses after that.
    ``on_silence(address)`` is called likewise for each check to which nothing came back.
    ``served(ref)`` returns how many requests of clients a backend has answered well, as far as that
    is seen; a backend that is busy with these is not ill.
    ``through(way, size)`` asks a server for a connection by the way of clients' packets, with a SYN
    of that size (0: a small one), and returns its answer, or None if it cannot be asked.
    ``blocked(address, since_s)`` returns why nothing could leave for the address at some time since
    then, by the monotonic clock, or "". Checks that fail at such a time say nothing about the
    server.
    """

    def __init__(
        self,
        on_change: OnChange,
        on_silence: Callable[[Address], None] = lambda _: None,
        blocked: Callable[[Address, float], str] = lambda *_: "",
        served: Callable[[BackendRef], int] = lambda _: 0,
        through: Through = _not_asked,
        *,
        probe: Probe | None = None,
    ) -> None:
        self._on_change = on_change
        self._on_silence = on_silence
        self._blocked = blocked
        self._served = served
        self._through = through
        self._probe = probe
        alarms = Alarms()
        self._patience = Patience(alarms)
        self._prober = Prober(self._patience)
        self._turns = Turns(alarms, MAX_PROBES_AT_ONCE)
        self._targets: dict[BackendRef, Target] = {}
        self._statuses: dict[BackendRef, HealthStatus] = {}
        self._members: dict[Key, list[BackendRef]] = {}  # the backends that share a check
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        # Services of which some backend has answered by its way, or has answered a full packet.
        self._answered: set[str] = set()
        self._widely: set[str] = set()
        self._full: dict[Way, _Full] = {}  # the last full packet that was sent
        self._group: asyncio.TaskGroup | None = None
        self._complained = False

    def change(self, targets: Mapping[BackendRef, Target], gone: Collection[BackendRef]) -> None:
        """Add or replace these targets, and remove those that are gone; the others stay.

        A target whose check changed keeps its health until the new check has a verdict. One whose
        address changed is another server, and starts anew.
        """
        now = time.time()
        for ref in gone:
            self._leave(ref)
            del self._targets[ref], self._statuses[ref]
        for ref, target in targets.items():
            old = self._targets.get(ref)
            if old is not None and _same(old, target):
                continue
            if old is not None:
                self._leave(ref)
            if old is not None and old.address == target.address:
                status = rechecked(old.check, target.check, self._statuses[ref], now)
            else:
                status = self._known(ref, target, now) or _first_status(target, now)
            self._targets[ref] = target
            self._statuses[ref] = status
            self._join(ref)

    def status(self, ref: BackendRef) -> HealthStatus:
        """Return the status of one target. KeyError if it is not a target."""
        return self._statuses[ref]

    def statuses(self) -> dict[BackendRef, HealthStatus]:
        """Return the status of every target."""
        return dict(self._statuses)

    def resume(self) -> None:
        """Check all targets soon, because a link is up again."""
        self._turns.hasten(lambda: random.random() * RESUME_WITHIN_S)  # noqa: S311

    async def run(self) -> None:
        """Check until cancelled."""
        try:
            with self._patience.watching(), self._prober.running():
                async with asyncio.TaskGroup() as self._group:
                    for key in self._members:
                        self._start(key)
                    await asyncio.Event().wait()  # for ever
        finally:
            self._group = None
            self._tasks.clear()

    def _known(self, ref: BackendRef, target: Target, now: float) -> HealthStatus | None:
        """Return what the same check has found for another backend; None: nothing yet."""
        others = [
            other
            for other in self._members.get(_key(ref, target), ())
            if self._targets[other].way == target.way
        ]
        if target.initial is not None or not others:
            return None
        status = self._statuses[others[0]]
        return replace(status, since=now) if status.health in (Health.UP, Health.DOWN) else None

    def _join(self, ref: BackendRef) -> None:
        key = _key(ref, self._targets[ref])
        members = self._members.setdefault(key, [])
        members.append(ref)
        if len(members) == 1:
            self._start(key)

    def _leave(self, ref: BackendRef) -> None:
        key = _key(ref, self._targets[ref])
        if (way := self._targets[ref].way) is not None:
            self._full.pop(way, None)
        self._members[key].remove(ref)
        if not self._members[key]:
            del self._members[key]
            if task := self._tasks.pop(key, None):
                task.cancel()

    def _start(self, key: Key) -> None:
        if self._group is not None and key[0].kind is not CheckKind.NONE:
            name = f"health: {self._members[key][0]}"
            self._tasks[key] = self._group.create_task(self._check(key), name=name)

    def _asking(self, check: HealthCheck, address: Address, port: int) -> Ask:
        """Return what makes a check of a server once."""
        if self._probe is None and check.kind in KINDS:
            return partial(self._prober.ask, Server(check, address, port))
        return partial(self._probe or probe_server, check, address, port, self._patience)

    async def _check(self, key: Key) -> None:
        loop = asyncio.get_running_loop()
        asked, address, port, _ = key
        members = self._members[key]
        asks: dict[CheckKind, Ask] = {}
        numbers = itertools.count()
        started = loop.time()
        completed = failed = -math.inf  # last completion answered, last check failed
        while True:
            statuses = [self._statuses[ref] for ref in members]
            luck = random.random()  # noqa: S311
            delay = min(next_delay_s(asked, one, luck) for one in statuses)
            await self._turns.take(started + delay)
            try:
                try:
                    started = loop.time()
                    check = due(asked, self._statuses[members[0]], started - completed)
                    served = self._served(members[0])
                    if check.kind not in asks:
                        asks[check.kind] = self._asking(check, address, port)
                    result = await asks[check.kind]()
                finally:
                    self._turns.give_back()
                self._complained = False
                if check.kind is CheckKind.COMPLETION:
                    result = excused(result, self._served(members[0]) - served)
                    completed = started if result.ok else -math.inf
                if not is_meaningful(result, started - failed):
                    continue
                failed = failed if result.ok else started
                if result.unsent and not self._blocked(address, started):
                    await asyncio.sleep(LINK_NEWS_S)
                if result.silent and not self._blocked(address, started):
                    self._on_silence(address)
                results = await self._by_way(members, result, asked.timeout_s, next(numbers))
                for ref in tuple(members):
                    if (
                        way := self._targets[ref].way
                    ) in results:  # otherwise the server was not asked by it
                        self._take(ref, self._judged(ref, results[way]), started)
            except NetworkError as error:
                self._complain(str(error))
                await asyncio.sleep(asked.interval_s)
            except Exception:  # the task's root: a defect here must not end all other checks
                log.exception("health check broke", backend=str(members[0]))
                await asyncio.sleep(asked.interval_s)

    async def _by_way(
        self, refs: Iterable[BackendRef], result: ProbeResult, limit_s: float, turn: int
    ) -> dict[Way | None, ProbeResult]:
        """Combine the answer at the server's own address with the answers by the ways to it.

        Return the result for each way (None: for targets without one), except for ways by which
        the server was not asked this time.
        """
        known = [(self._targets[ref].way, self._statuses[ref]) for ref in refs]
        if not result.ok:
            return dict.fromkeys((way for way, _ in known), result)
        found: dict[Way | None, ProbeResult] = {way: result for way, _ in known if way is None}
        if ways := ways_to_ask(known, turn):
            counts = {self._targets[ref].way for ref in refs if ref.service in self._widely}
            asked = [self._along(way, result, limit_s, way in counts) for way in ways]
            # Most servers have one way, and a task of its own for that would cost as much again.
            results = [await asked[0]] if len(ways) == 1 else await asyncio.gather(*asked)
            found |= zip(ways, results, strict=True)
        return found

    async def _along(
        self, way: Way, result: ProbeResult, limit_s: float, counts: bool
    ) -> ProbeResult:
        """Return the result by this way, of a server that answers well at its own address.

        ``counts``: whether a lost full packet counts against the backend.
        """
        try:
            async with self._patience.timeout(limit_s):
                answer = await self._through(way, 0)
        except TimeoutError:
            return lost(silence(way, duration(limit_s)))
        if answer is None:
            return result
        if answer.wrong:
            return lost(answer.wrong)
        return await self._widely_along(way, answer.full, reached(result), limit_s, counts)

    async def _widely_along(
        self, way: Way, size: int, result: ProbeResult, limit_s: float, counts: bool
    ) -> ProbeResult:
        """Return the result with what became of a packet of ``size`` bytes, now or lately."""
        last, now = self._full.get(way, _NEVER), asyncio.get_running_loop().time()
        if size and is_full_due(now - last.sent_s, bool(last.lost), counts):
            passes = await self._passes(way, size, limit_s)
            if passes is None:
                return result
            if passes:
                self._full[way] = _Full(now)
                return replace(result, wide=True)
            if now - last.sized_s >= SIZES_EVERY_S or not last.lost:
                last = _Full(now, await self._lost(way, size, limit_s), now)
            self._full[way] = last = replace(last, sent_s=now)
        return replace(result, ok=False, detail=last.lost, narrow=True) if last.lost else result

    async def _lost(self, way: Way, full: int, limit_s: float) -> str:
        """Say that full packets are lost, and find the largest size that arrives."""
        sizes = smaller_sizes(full)
        passed = await asyncio.gather(*(self._passes(way, size, limit_s) for size in sizes))
        widest = max((size for size, ok in zip(sizes, passed, strict=True) if ok), default=0)
        return narrow(way, full, widest)

    async def _passes(self, way: Way, size: int, limit_s: float) -> bool | None:
        """Return whether a packet of that size is answered; None if it cannot be sent."""
        try:
            async with self._patience.timeout(limit_s):
                return None if await self._through(way, size) is None else True
        except TimeoutError:
            return False

    def _judged(self, ref: BackendRef, result: ProbeResult) -> ProbeResult:
        """Return the result by the target's way as it counts for the target's service."""
        if result.reached:
            self._answered.add(ref.service)
        if result.wide:
            self._widely.add(ref.service)
        answered, widely = ref.service in self._answered, ref.service in self._widely
        return proven(result, self._statuses[ref], answered, widely)

    def _take(self, ref: BackendRef, result: ProbeResult, since_s: float) -> None:
        old, target = self._statuses[ref], self._targets[ref]
        if not result.ok and (why := self._blocked(target.address, since_s)):
            self._statuses[ref] = suspended(old, why)
            return
        new = observe(target.check, old, result, time.time())
        self._statuses[ref] = new
        if new.health is not old.health:
            self._on_change(ref, old, new)

    def _complain(self, problem: str) -> None:
        if not self._complained:
            self._complained = True
            log.error("health checks cannot be made; every health stays as it is", problem=problem)


def _same(old: Target, new: Target) -> bool:
    return replace(old, initial=None) == replace(new, initial=None)


def _first_status(target: Target, now: float) -> HealthStatus:
    if target.check.kind is CheckKind.NONE:
        return unchecked(now)
    if target.initial is None or target.initial.health is Health.UNCHECKED:
        return checking(now)
    return target.initial
