"""Followers of events: what each gets, what is lost, what the data plane is asked to tell."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from agent.dataplane import abi, trace
from agent.dataplane.events import Lexicon
from agent.dataplane.trace import Follower, Tracer
from agent.errors import DataplaneError
from agent.state.events import EventKind, TraceQuery
from tests.unit.dataplane.test_events import WORDS, row

DROP, PICK, PACKET, REPLY = EventKind.DROP, EventKind.PICK, EventKind.PACKET, EventKind.REPLY


class FakeRing:
    """A ring in memory; its descriptor is readable while it holds something."""

    def __init__(self) -> None:
        self.fd, self._write = os.pipe()
        self.samples: list[bytes] = []
        self.closed = False
        self.failure: OSError | None = None

    def put(self, *rows: np.ndarray) -> None:
        if not self.samples:
            os.write(self._write, b"x")
        self.samples += [each.tobytes() for each in rows]

    def take(self, limit: int) -> list[bytes]:
        if self.failure is not None:
            raise self.failure
        taken, self.samples = self.samples[:limit], self.samples[limit:]
        if taken and not self.samples:
            os.read(self.fd, 1)
        return taken

    def close(self) -> None:
        self.closed = True
        os.close(self.fd)
        os.close(self._write)


class World:
    """A tracer, its table and its rings."""

    def __init__(self) -> None:
        self.control = np.zeros(1, dtype=abi.TRACE_CONTROL)
        self.control["kinds"] = 0x7E  # of an agent that was killed
        self.running = {1: 1}
        self.opened: list[tuple[int, FakeRing]] = []
        self.words = WORDS
        self.tracer = Tracer(self.control, lambda: self.running, lambda: self.words, self._open)

    def _open(self, fd: int) -> FakeRing:
        ring = FakeRing()
        self.opened.append((fd, ring))
        return ring

    @property
    def ring(self) -> FakeRing:
        return self.opened[-1][1]

    @property
    def asked(self) -> tuple[int, int, int]:
        kinds, service, sample, *_ = self.control[0].tolist()
        return kinds, service, sample

    def tell(self, kind: abi.EventKind, count: int = 1, **fields: object) -> None:
        """Let the data plane tell something, now."""
        self.ring.put(*(row(kind, time=time.monotonic_ns(), **fields) for _ in range(count)))


type Story = Callable[[World], Awaitable[None]]


def tell(story: Story) -> World:
    """Run a story with an event loop; its world."""

    async def run() -> World:
        world = World()
        await story(world)
        return world

    return asyncio.run(asyncio.wait_for(run(), 60))


async def got(follower: Follower, count: int = 1) -> list[str]:
    """The kinds of the next so many events."""
    events: list[str] = []
    while len(events) < count:
        more = await follower.next(5, count - len(events))
        assert more, f"only {events} came"
        events += [event.kind.value for event in more]
    return events


def query(*kinds: EventKind, **fields: object) -> TraceQuery:
    return TraceQuery(frozenset(kinds), **fields)


def test_nothing_is_asked_for_or_open_while_nobody_follows():
    async def story(world: World) -> None:
        assert world.asked == (0, 0, 0)
        with world.tracer.follow(query(DROP)):
            assert world.asked == (0b10, 0, 0)
        assert world.asked == (0, 0, 0)
        assert world.ring.closed

    assert len(tell(story).opened) == 1


def test_the_union_of_all_followers_is_asked_for():
    async def story(world: World) -> None:
        first = world.tracer.follow(query(DROP, service="web"))
        assert world.asked == (0b10, 3, 0)
        second = world.tracer.follow(query(PACKET, service="web", sample=1024))
        assert world.asked == (0b1010, 3, 1023)
        third = world.tracer.follow(query(PACKET, REPLY, sample=64))
        assert world.asked == (0b11010, 0, 63)
        third.close()
        assert world.asked == (0b1010, 3, 1023)
        second.close()
        first.close()
        assert world.asked == (0, 0, 0)

    tell(story)


def test_each_gets_its_kinds_and_its_service():
    async def story(world: World) -> None:
        with (
            world.tracer.follow(query(DROP)) as drops,
            world.tracer.follow(query(DROP, PICK, service="web")) as web,
        ):
            world.tell(abi.EventKind.DROP, service=0)
            world.tell(abi.EventKind.PICK)
            world.tell(abi.EventKind.DROP)
            assert await got(web, 2) == ["pick", "drop"]
            assert await got(drops, 2) == ["drop", "drop"]
            assert await drops.next(0, 9) == ()

    tell(story)


def test_the_expression_is_applied():
    async def story(world: World) -> None:
        only = query(DROP, matches=lambda event: event.client_port == 2)
        with world.tracer.follow(only) as follower:
            for port in (1, 2, 3):
                world.tell(abi.EventKind.DROP, client_port=port)
            (event,) = await follower.next(5, 9)
            assert event.client_port == 2

    tell(story)


def test_what_was_told_before_is_not_shown():
    async def story(world: World) -> None:
        with world.tracer.follow(query(DROP)) as follower:
            world.ring.put(row(abi.EventKind.DROP, time=1, client_port=1))
            world.tell(abi.EventKind.DROP, client_port=2)
            (event,) = await follower.next(5, 9)
            assert event.client_port == 2

    tell(story)


def test_who_samples_more_thinly_gets_less():
    async def story(world: World) -> None:
        with (
            world.tracer.follow(query(PACKET, sample=16)) as often,
            world.tracer.follow(query(PACKET, sample=64)) as rarely,
        ):
            world.tell(abi.EventKind.PACKET, count=40)
            assert len(await got(often, 40)) == 40
            assert len(await rarely.next(5, 99)) == 10

    tell(story)


def test_a_follower_that_does_not_read_loses_and_is_told_how_much(monkeypatch):
    monkeypatch.setattr(trace, "QUEUE_EVENTS", 10)

    async def story(world: World) -> None:
        world.control["lost"] = 100
        with (
            world.tracer.follow(query(DROP)) as slow,
            world.tracer.follow(query(DROP)) as quick,
        ):
            for _ in range(3):
                world.tell(abi.EventKind.DROP, count=5)
                await got(quick, 5)
            world.control["lost"] = 107
            assert (slow.lost.ring, slow.lost.follower) == (7, 5)
            assert (quick.lost.ring, quick.lost.follower) == (7, 0)
            assert len(await slow.next(5, 99)) == 10

    tell(story)


def test_a_flood_is_read_in_batches_with_pauses():
    async def story(world: World) -> None:
        with world.tracer.follow(query(DROP)) as follower:
            world.tell(abi.EventKind.DROP, count=2 * trace.BATCH_EVENTS + 1)
            await follower.next(5, 1)
            left = len(world.ring.samples)
            assert left == trace.BATCH_EVENTS + 1
            await got(follower, 2 * trace.BATCH_EVENTS)
            assert world.ring.samples == []

    tell(story)


def test_a_program_that_takes_over_is_followed_and_the_old_one_is_heard_out():
    async def story(world: World) -> None:
        with world.tracer.follow(query(DROP)) as follower:
            old = world.ring
            world.running = {2: 22}
            world.tracer.refresh()
            assert [fd for fd, _ in world.opened] == [1, 22]
            old.put(row(abi.EventKind.DROP, time=time.monotonic_ns(), client_port=1))
            assert [e.client_port for e in await follower.next(5, 9)] == [1]
            old.put(row(abi.EventKind.DROP, time=time.monotonic_ns(), client_port=2))
            world.tracer.refresh()
            assert old.closed
            assert [e.client_port for e in await follower.next(5, 9)] == [2]
            world.tell(abi.EventKind.DROP, client_port=3)
            assert [e.client_port for e in await follower.next(5, 9)] == [3]

    tell(story)


def test_a_service_that_is_made_anew_is_followed_under_its_new_id():
    async def story(world: World) -> None:
        with world.tracer.follow(query(DROP, service="web")):
            world.words = Lexicon({}, {})
            world.tracer.refresh()
            assert world.asked == (0b10, 0, 0)
            world.words = Lexicon({9: WORDS.services[3]}, {})
            world.tracer.refresh()
            assert world.asked == (0b10, 9, 0)

    tell(story)


def test_one_too_many_is_refused_and_changes_nothing():
    async def story(world: World) -> None:
        for _ in range(trace.MAX_FOLLOWERS):
            world.tracer.follow(query(DROP))
        with pytest.raises(DataplaneError, match="follow already"):
            world.tracer.follow(query(PICK))
        assert world.asked == (0b10, 0, 0)

    tell(story)


def test_a_ring_that_cannot_be_opened_is_said_and_leaves_nothing_on(monkeypatch):
    async def story(world: World) -> None:
        def refuse(fd: int) -> FakeRing:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(world.tracer, "_open_ring", refuse)
        with pytest.raises(DataplaneError, match="Operation not permitted"):
            world.tracer.follow(query(DROP))
        assert world.asked == (0, 0, 0)

    tell(story)


def test_a_ring_that_breaks_ends_its_followers():
    async def story(world: World) -> None:
        with world.tracer.follow(query(DROP)) as follower:
            world.ring.failure = OSError(22, "Invalid argument")
            world.tell(abi.EventKind.DROP)
            assert await follower.next(5, 9) == ()
            assert follower.ended
        assert world.asked == (0, 0, 0)
        assert world.ring.closed

    tell(story)


def test_a_follower_that_is_closed_from_elsewhere_stops_waiting():
    async def story(world: World) -> None:
        with world.tracer.follow(query(DROP)) as follower:
            waiting = asyncio.create_task(follower.next(60, 9))
            await asyncio.sleep(0)
            follower.close()
            assert await waiting == ()
            assert follower.ended

    tell(story)


def test_waiting_in_vain_ends():
    async def story(world: World) -> None:
        with world.tracer.follow(query(DROP)) as follower:
            assert await follower.next(0.01, 9) == ()
            assert not follower.ended

    tell(story)
