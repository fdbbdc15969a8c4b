"""Owns following events: which client follows what, and what the data plane is asked to report.

While nobody follows, the data plane reports nothing, and nothing is read.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Protocol

from agent.dataplane import libbpf, ringbuf
from agent.dataplane.compile import Compiled
from agent.dataplane.events import Lexicon, decode, kinds_mask, read
from agent.dataplane.tables import Table
from agent.errors import DataplaneError
from agent.logs import get_logger
from agent.state.events import Event, Lost, TraceQuery

log = get_logger()

MAX_FOLLOWERS = 16
QUEUE_EVENTS = 8192  # for each follower; some 5 MB
BATCH_EVENTS = 512  # taken from a ring at a time; some 5 ms
CPU_SHARE = 0.25  # the most of a CPU that reading may take; beyond that, the ring overflows


def rings_of(program: Compiled) -> dict[int, int]:
    """Return the ring buffer of a program: its descriptor by the id of its map."""
    fd = program.tables["events"]
    return {libbpf.map_info(fd).id: fd}


class _Ring(Protocol):
    """The part of ``ringbuf.Ring`` that the tracer uses."""

    fd: int

    def take(self, limit: int) -> list[bytes]: ...

    def close(self) -> None: ...


class Follower:
    """A client that follows events, until its ``with`` block ends or something closes it."""

    def __init__(self, query: TraceQuery, tracer: Tracer) -> None:
        self.query = query
        self.ended = False
        self._tracer = tracer
        self._since_ns = time.monotonic_ns()
        self._ring_lost_before = tracer.ring_lost
        self._queue: deque[Event] = deque()
        self._lost = 0
        self._sampled = 0
        self._wake = asyncio.Event()

    @property
    def lost(self) -> Lost:
        """How many events it has missed so far."""
        return Lost(self._tracer.ring_lost - self._ring_lost_before, self._lost)

    async def next(self, timeout_s: float, limit: int) -> tuple[Event, ...]:
        """Return the oldest events that it has not had yet, at most ``limit``.

        Waits for one; returns none if it waited for ``timeout_s`` in vain or has ended.
        """
        if not self._queue and not self.ended:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return ()
        return tuple(self._queue.popleft() for _ in range(min(limit, len(self._queue))))

    def offer(self, events: Iterable[tuple[int, Event]], sample: int) -> None:
        """Queue the events that it wants; they come with monotonic times, sampled one in
        ``sample``.
        """
        for time_ns, event in events:
            if time_ns < self._since_ns or not self._wants(event, sample):
                continue
            if len(self._queue) >= QUEUE_EVENTS:
                self._lost += 1
            else:
                self._queue.append(event)
        if self._queue:
            self._wake.set()

    def _wants(self, event: Event, sample: int) -> bool:
        query = self.query
        if event.kind not in query.kinds:
            return False
        if query.service is not None and event.service != query.service:
            return False
        if event.kind.is_sampled:
            self._sampled += 1
            if self._sampled % max(1, query.sample // sample):
                return False
        return query.matches is None or query.matches(event)

    def close(self) -> None:
        """Stop following."""
        self.ended = True
        self._wake.set()
        self._tracer.left(self)

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


class Tracer:
    """Hands the events of the running programs to all followers.

    ``control`` is the ``trace`` table. ``rings`` returns the ring buffers of the programs that run
    now, descriptors by map id. ``words`` returns the names of what is configured now.
    """

    def __init__(
        self,
        control: Table,
        rings: Callable[[], Mapping[int, int]],
        words: Callable[[], Lexicon],
        open_ring: Callable[[int], _Ring] = ringbuf.Ring,
    ) -> None:
        self._control = control
        self._running_rings = rings
        self._words = words
        self._open_ring = open_ring
        self._followers: list[Follower] = []
        self._rings: dict[int, _Ring] = {}  # by the id of the map
        self._leaving: set[int] = set()  # those whose program was replaced
        self._sample = 1
        self._ask(0, 0, 1)  # an agent that was killed may have left it on

    @property
    def ring_lost(self) -> int:
        """How many events found no room in a ring, since the tables were made."""
        return int(self._control["lost"][0])

    def follow(self, query: TraceQuery) -> Follower:
        """Begin to follow; for use in a ``with`` block.

        DataplaneError: too many follow already, or the ring cannot be read.
        """
        if len(self._followers) >= MAX_FOLLOWERS:
            raise DataplaneError(
                f"{MAX_FOLLOWERS} clients follow already",
                where="trace",
                remedy="end one of the running `lbctl trace` commands",
            )
        follower = Follower(query, self)
        self._followers.append(follower)
        try:
            self._catch_up()
        except OSError as error:
            follower.close()
            raise DataplaneError(
                f"the ring of events cannot be read: {error}",
                where="trace",
                remedy="look at the agent's log; a restart of the agent costs no flow",
            ) from error
        return follower

    def left(self, follower: Follower) -> None:
        """Remove a follower that has ended."""
        if follower in self._followers:
            self._followers.remove(follower)
            self._control_from_followers()
            if not self._followers:
                self._open({})

    def refresh(self) -> None:
        """Follow what runs and is configured now; programs and ids may have changed."""
        try:
            self._catch_up()
        except OSError as error:  # the balancing does not depend on it; the next call tries again
            log.error("events cannot be followed", problem=str(error))

    # -- what the data plane is asked for

    def _catch_up(self) -> None:
        if self._followers:
            self._open(self._running_rings())
            self._control_from_followers()

    def _control_from_followers(self) -> None:
        queries = [follower.query for follower in self._followers]
        kinds = frozenset(kind for query in queries for kind in query.kinds)
        sample = min(
            (query.sample for query in queries if any(kind.is_sampled for kind in query.kinds)),
            default=1,
        )
        self._ask(kinds_mask(kinds), self._service_of(queries), sample)

    def _service_of(self, queries: list[TraceQuery]) -> int:
        """Return the id of the one service that all want; 0: there is no such one, or it is not
        configured now.
        """
        wanted = {query.service for query in queries}
        if len(wanted) != 1:
            return 0
        (name,) = wanted
        return next((i for i, s in self._words().services.items() if s.name == name), 0)

    def _ask(self, kinds: int, service: int, sample: int) -> None:
        row = self._control[0:1]
        self._sample = sample
        row["sample"], row["service"] = sample - 1, service
        row["kinds"] = kinds  # last: it switches reporting on

    # -- what the data plane reports

    def _open(self, wanted: Mapping[int, int]) -> None:
        """Read these rings and no others.

        A ring is read until it has been missing from two calls in a row, because the old program
        runs on while the new one is put in its place.
        """
        gone = self._rings.keys() - wanted.keys()
        for ident in gone if not self._followers else gone & self._leaving:
            ring = self._rings.pop(ident)
            asyncio.get_running_loop().remove_reader(ring.fd)
            while self._followers and self._hand_out(ring) == BATCH_EVENTS:
                pass  # nothing writes there any more, so this ends
            ring.close()
        self._leaving = gone & self._rings.keys()
        for ident in wanted.keys() - self._rings.keys():
            self._rings[ident] = self._open_ring(wanted[ident])
            self._listen(ident)

    def _listen(self, ident: int) -> None:
        ring = self._rings.get(ident)
        if ring is not None:
            asyncio.get_running_loop().add_reader(ring.fd, self._readable, ident)

    def _readable(self, ident: int) -> None:
        """Take a batch, then leave the ring alone for a while that grows with what it cost."""
        ring = self._rings[ident]
        loop = asyncio.get_running_loop()
        started = time.thread_time()
        try:
            self._hand_out(ring)
        except Exception:  # the root of this callback: a follower must not end the balancing
            log.exception("reading events broke")
            for follower in tuple(self._followers):
                follower.close()  # they see it end, and may ask again
            return
        spent = time.thread_time() - started
        loop.remove_reader(ring.fd)
        loop.call_later(spent * (1 / CPU_SHARE - 1), self._listen, ident)

    def _hand_out(self, ring: _Ring) -> int:
        samples = ring.take(BATCH_EVENTS)
        rows = read(samples)
        epoch_ns = time.time_ns() - time.monotonic_ns()
        decoded = decode(rows, self._words(), epoch_ns)
        events = tuple(zip(rows["time"].tolist(), decoded, strict=True))
        for follower in self._followers:
            follower.offer(events, self._sample)
        return len(samples)
