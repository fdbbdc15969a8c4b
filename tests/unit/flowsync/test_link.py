"""A stream of which the peer, or this process, falls silent."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from agent.failover.times import SILENCE_S, STALL_S
from agent.flowsync import link as module
from agent.flowsync.flows import Look
from agent.flowsync.framing import HEADER, Kind, Opener, Sealer
from agent.flowsync.handshake import Hello, Session
from agent.flowsync.link import Callbacks, Ended, Link
from agent.flowsync.tally import Tally

BEAT_S = 0.01
KEY = b"k" * 32
HELLO = Hello("0.1.0", 1, 1, "edge-2", "p2", b"n" * 32)


class Clock:
    """time.monotonic, which can jump: so a process that stood still sees it."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


class Empty:
    """A flow table of which nothing is to be told."""

    record_bytes = 64

    def begin(self) -> bytes:
        return b"{}"

    def part(self) -> None:
        return None

    def changed(self, *, unfinished: bool = False) -> Look:
        return Look(None, b"", 0, 0, complete=True)


class Wire:
    """The writing end: frames that are opened again."""

    def __init__(self) -> None:
        self.opener, self.kinds = Opener(KEY), list[Kind]()

    def write(self, frame: bytes) -> None:
        header = frame[: HEADER.size]
        self.opener.rest_bytes(header)
        self.kinds.append(self.opener.open(header, frame[HEADER.size :]).kind)

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class Linked:
    """A link whose peer says what the test says."""

    def __init__(self) -> None:
        async def refused(_: str | None) -> str:
            raise AssertionError

        self.reader, self.wire, self.peers = asyncio.StreamReader(), Wire(), Sealer(KEY)
        streams: Any = (self.reader, self.wire)
        flows: Any = Empty()
        session = Session(HELLO, Sealer(KEY), Opener(KEY))
        self.link = Link(streams, session, flows, Tally(), Callbacks(refused, refused))
        self.running = asyncio.create_task(self.link.run())

    def says(self, kind: Kind, payload: bytes = b"") -> None:
        self.reader.feed_data(self.peers.seal(kind, payload))

    async def beats(self, times: int) -> None:
        """Until so many more heartbeats have gone, or the link has ended."""
        goal = self._sent() + times
        async with asyncio.timeout(60):
            while self._sent() < goal and not self.running.done():  # noqa: ASYNC110
                await asyncio.sleep(BEAT_S / 4)

    def _sent(self) -> int:
        return self.wire.kinds.count(Kind.HEARTBEAT)

    async def ended(self) -> Ended:
        return await asyncio.wait_for(self.running, 60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "HEARTBEAT_S", BEAT_S)
    monkeypatch.setattr(module, "time", found)
    return found


def test_a_stall_of_this_process_is_not_taken_for_the_peers_silence(clock: Clock) -> None:
    async def story() -> None:
        here = Linked()
        await here.beats(2)
        clock.ahead_s += SILENCE_S + STALL_S  # what the peer said meanwhile was not read
        await here.beats(3)
        assert not here.running.done()
        here.link.stop("the test is over")
        assert str(await here.ended()) == "the test is over"

    asyncio.run(story())


def test_a_peer_that_says_nothing_for_long_is_given_up(clock: Clock) -> None:
    async def story() -> None:
        here = Linked()
        await here.beats(2)
        while not here.running.done():
            clock.ahead_s += STALL_S / 2  # no stall
            await here.beats(1)
            assert clock.ahead_s < 3 * SILENCE_S
        assert "has said nothing for 4 s" in str(await here.ended())
        assert clock.ahead_s > SILENCE_S - STALL_S

    asyncio.run(story())


def test_a_goodbye_ends_the_stream_and_what_was_asked_is_not_waited_for(clock: Clock) -> None:
    async def story() -> None:
        here = Linked()
        asking = asyncio.create_task(here.link.ask(Kind.TAKE))
        await here.beats(1)
        here.says(Kind.BYE)
        assert str(await here.ended()) == "the peer has stopped"
        with pytest.raises(Ended, match="the peer has stopped"):
            await asking

    asyncio.run(story())


def test_a_stream_that_ends_within_a_frame_is_told_from_one_that_is_closed(clock: Clock) -> None:
    async def story(data: bytes) -> str:
        here = Linked()
        here.reader.feed_data(data)
        here.reader.feed_eof()
        return str(await here.ended())

    assert asyncio.run(story(b"")) == "the peer closed the stream"
    assert "within a frame" in asyncio.run(story(Sealer(KEY).seal(Kind.BYE)[:-1]))
