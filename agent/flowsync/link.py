"""Owns one stream between two balancers, from the end of the handshake to the end of the stream.

Reading never waits for the flow table: received data is queued in ``incoming``, which is bounded,
and sending is paced by the peer's acknowledgements. So a slow peer still gets our heartbeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import batched
from typing import Any

from agent.errors import SteelyardError
from agent.failover.model import FlowSync
from agent.failover.syncstatus import RouterReport
from agent.failover.times import ASKED_S, HEARTBEAT_S, SILENCE_S, STALL_S
from agent.flowsync import messages
from agent.flowsync.flows import Flows, SlotNumbers
from agent.flowsync.framing import DATA, HEADER, Fault, Frame, FrameError, Kind
from agent.flowsync.handshake import Session
from agent.flowsync.incoming import Incoming
from agent.flowsync.messages import Answer, Ask, Heartbeat
from agent.flowsync.outgoing import Outgoing
from agent.flowsync.sockets import Streams
from agent.flowsync.tally import Tally
from agent.logs import get_logger
from agent.state.blocks import Blocks
from agent.weights.speeds import Speeds

log = get_logger()

_BLOCKS = 4096  # in a frame
_SPEEDS = 1000  # likewise
_MOST_ASKS = 8  # requests of a peer that are served at the same time
_CLOCKS = 20  # heartbeats from which the difference to the peer's clock is estimated

type Callback = Callable[[str | None], Awaitable[str]]  # an instance, or None for all -> answer


@dataclass(frozen=True, slots=True)
class Presence:
    """What this node announces about its failover.

    ``instances``: the names of its instances, which the peer uses in requests. ``routers``: the
    state of its virtual routers at ``routers_s`` on the monotonic clock, or None if that is not
    known. ``takes_at``: the port at which it takes packets of flows that the peer does not know,
    or 0. ``audit_head``: the head of its audit log, ``NUMBER:HASH``, which the peer notes.
    """

    instances: tuple[str, ...] = ()
    routers: tuple[RouterReport, ...] | None = None
    routers_s: float = 0.0
    takes_at: int = 0
    audit_head: str = ""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the link calls.

    ``take`` and ``give`` serve the peer's requests and raise SteelyardError if they are not done.
    ``presence`` returns what the peer is to know about this node. ``heard`` is called after each
    heartbeat of the peer. ``blocks`` returns all blocks of sources that are known here, and
    ``blocked`` is called with those that the peer sends. ``speeds_heard`` is called
    with what the peer has learned of backends' speeds.
    """

    take: Callback
    give: Callback
    presence: Callable[[], Presence] = field(default=Presence)
    heard: Callable[[], None] = field(default=lambda: None)
    blocks: Callable[[], Blocks] = field(default=dict)
    blocked: Callable[[Blocks], None] = field(default=lambda _blocks: None)
    speeds_heard: Callable[[Speeds], None] = field(default=lambda _speeds: None)


class Ended(Exception):  # noqa: N818 (every stream ends)
    """The stream is over. ``fault``: how the peer violated the protocol, if it did."""

    def __init__(self, text: str, fault: Fault | None = None) -> None:
        super().__init__(text)
        self.fault = fault


class Link:
    """A stream on which both ends have authenticated each other."""

    def __init__(
        self, streams: Streams, session: Session, flows: Flows, tally: Tally, callbacks: Callbacks
    ) -> None:
        self.peer = session.peer
        self.rtt_s: float | None = None
        self._reader, self._writer = streams
        self._opener = session.opener
        self._tally = tally
        self._callbacks = callbacks
        self._out = Outgoing(self._writer, session.sealer, flows, tally)
        self._in = Incoming(flows, tally, lambda ack: self._out.write(Kind.ACK, messages.pack(ack)))
        self._stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._heard_s = time.monotonic()
        self._heartbeat: Heartbeat | None = None  # the peer's newest
        self._heartbeat_s = 0.0
        self._news = asyncio.Event()  # the next heartbeat is due at once
        # By how much the arrival of each heartbeat (our clock) is later than its sending (the
        # peer's clock). The minimum is the difference between the clocks plus a delay near zero;
        # larger values come from a node that was busy.
        self._late_s: deque[float] = deque(maxlen=_CLOCKS)
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def run(self) -> Ended:
        """Run the stream until it ends, and return why it ended."""
        loops = [self._read(), self._in.run(), self._out.run(), self._beat(), self._say_goodbye()]
        tasks = [asyncio.create_task(loop) for loop in loops]
        ended = Ended("this agent stops")
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = _reason(tasks)
        except asyncio.CancelledError:
            self._out.write(Kind.BYE)
            raise
        finally:
            await _end([*tasks, *self._serving])
            self._out.close(ended)
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ended)
            self._writer.close()
        return ended

    def configure(self, config: FlowSync) -> None:
        """Change how often to look at the table and how much to send, from now on."""
        self._out.configure(config)

    def stop(self, why: str) -> None:
        """Say goodbye and end."""
        if not self._stopped.done():
            self._stopped.set_result(why)

    def name(self, slots: SlotNumbers) -> None:
        """Send the new flows in these slots at once."""
        self._out.name(slots)

    def lag_s(self) -> float | None:
        """Return the age of our newest state that the peer has completely, or None."""
        return self._out.window.lag_s(time.monotonic())

    def behind_s(self) -> float | None:
        """Return the age of the peer's newest state that we have completely, as the peer reports
        it, or None.
        """
        if self._heartbeat is None or self._heartbeat.lag_s is None:
            return None
        return self._heartbeat.lag_s + time.monotonic() - self._heartbeat_s

    @property
    def instances(self) -> tuple[str, ...] | None:
        """The names of the peer's failover instances, or None if it has not announced them."""
        return None if self._heartbeat is None else self._heartbeat.instances

    @property
    def routers(self) -> tuple[RouterReport, ...] | None:
        """The state of the peer's virtual routers at ``routers_s``, or None if not announced."""
        return None if self._heartbeat is None else self._heartbeat.routers

    @property
    def routers_s(self) -> float | None:
        """The time of ``routers`` on this host's monotonic clock, or None."""
        newest = self._heartbeat
        if newest is None or newest.routers is None:
            return None
        return newest.sent_s - newest.routers_age_s + min(self._late_s)

    @property
    def takes_at(self) -> int:
        """The port at which the peer takes packets of flows that we do not know, or 0."""
        return 0 if self._heartbeat is None else self._heartbeat.takes_at

    @property
    def audit_head(self) -> str:
        """The head of the peer's audit log, or an empty text if it is not announced."""
        return "" if self._heartbeat is None else self._heartbeat.audit_head

    @property
    def heard_s(self) -> float:
        """When the last data from the peer arrived, on the monotonic clock."""
        return self._heard_s

    def beat(self) -> None:
        """Send the next heartbeat at once."""
        self._news.set()

    def tell_blocks(self, blocks: Blocks) -> bool:
        """Send these blocks to the peer.

        Return False if the peer takes none, or has not said yet that it does; once it says so, it
        gets all blocks.
        """
        if self._heartbeat is None or not self._heartbeat.takes_blocks:
            return False
        for some in batched(blocks.items(), _BLOCKS):
            self._out.write(Kind.BLOCKS, messages.pack_blocks(dict(some)))
        return True

    def tell_speeds(self, speeds: Speeds) -> None:
        """Send what was learned of backends' speeds to the peer, if it takes that."""
        if self._heartbeat is not None and self._heartbeat.takes_speeds:
            for some in batched(speeds.items(), _SPEEDS):
                self._out.write(Kind.SPEEDS, messages.pack_speeds(dict(some)))

    async def flush(self) -> int:
        """Send everything that the peer does not know, wait until it has it, and return the number
        of flows. Ended if the stream ends before.
        """
        return await self._out.flush()

    async def ask(self, kind: Kind, instance: str | None = None) -> Answer:
        """Send a TAKE or GIVE and return the peer's answer. Ended if the stream ends before."""
        ask = Ask(next(self._ids), instance)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[ask.id] = answer
        self._out.write(kind, messages.pack(ask))
        try:
            return await answer
        finally:
            del self._asked[ask.id]

    # -- receiving

    async def _read(self) -> None:
        while True:
            header = await self._exactly(HEADER.size)
            rest = await self._exactly(self._opener.rest_bytes(header), inside=True)
            self._tally.bytes_received += len(header) + len(rest)
            self._take(self._opener.open(header, rest))

    async def _exactly(self, size: int, *, inside: bool = False) -> bytes:
        try:
            data = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            if inside or error.partial:
                raise FrameError(Fault.TRUNCATED, "the stream ended within a frame") from error
            raise Ended("the peer closed the stream") from error
        self._heard_s = time.monotonic()
        return data

    def _take(self, frame: Frame) -> None:
        kind, payload = frame.kind, frame.payload
        if kind in DATA:
            self._in.put(frame)
        elif kind is Kind.ACK:
            self._out.acknowledge(messages.unpack_ack(payload))
        elif kind is Kind.HEARTBEAT:
            self._hear(messages.unpack_heartbeat(payload))
        elif kind is Kind.BLOCKS:
            self._callbacks.blocked(messages.unpack_blocks(payload))
        elif kind is Kind.SPEEDS:
            self._callbacks.speeds_heard(messages.unpack_speeds(payload))
        elif kind is Kind.RESYNC:
            self._out.resync()
        elif kind is Kind.ANSWER:
            answer = messages.unpack_answer(payload)
            waiting = self._asked.get(answer.id)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)
        elif kind is Kind.BYE:
            raise Ended("the peer has stopped")
        else:
            self._serve(kind, messages.unpack_ask(payload))

    def _hear(self, heartbeat: Heartbeat) -> None:
        now, is_first = time.monotonic(), self._heartbeat is None
        self._heartbeat, self._heartbeat_s = heartbeat, now
        if is_first and (known := self._callbacks.blocks()):
            self.tell_blocks(known)
        self._late_s.append(now - heartbeat.sent_s)
        if heartbeat.echo_s is not None:
            self.rtt_s = max(0.0, now - heartbeat.echo_s - heartbeat.kept_s)
        self._callbacks.heard()

    def _serve(self, kind: Kind, ask: Ask) -> None:
        if len(self._serving) >= _MOST_ASKS:
            busy = Answer(ask.id, False, "too many requests at once")
            self._out.write(Kind.ANSWER, messages.pack(busy))
            return
        task = asyncio.create_task(self._answer(kind, ask))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _answer(self, kind: Kind, ask: Ask) -> None:
        do = self._callbacks.take if kind is Kind.TAKE else self._callbacks.give
        try:
            async with asyncio.timeout(ASKED_S):
                answer = Answer(ask.id, True, await do(ask.instance))
        except SteelyardError as error:
            answer = Answer(ask.id, False, f"{error.message}; {error.remedy}")
        except TimeoutError:
            answer = Answer(ask.id, False, f"not done within {ASKED_S:g} s")
        except Exception:  # a defect there must not end the stream
            log.exception("what the peer asked for broke", what=kind.name.lower())
            answer = Answer(ask.id, False, "a defect at the peer: see its log")
        self._out.write(Kind.ANSWER, messages.pack(answer))

    # -- heartbeats and the end

    async def _beat(self) -> None:
        while True:
            self._news.clear()
            now, newest = time.monotonic(), self._heartbeat
            present = self._callbacks.presence()
            beat = Heartbeat(
                now,
                None if newest is None else newest.sent_s,
                now - self._heartbeat_s if newest is not None else 0.0,
                self.lag_s(),
                messages.tellable(present.instances),
                present.routers and messages.tellable(present.routers),
                now - present.routers_s if present.routers else 0.0,
                present.takes_at,
                takes_blocks=True,
                audit_head=present.audit_head,
                takes_speeds=True,
            )
            self._out.write(Kind.HEARTBEAT, messages.pack(beat))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._news.wait()
            away_s = time.monotonic() - now - HEARTBEAT_S
            if away_s > STALL_S:
                # This process was not running; data that arrived meanwhile is yet to be read.
                self._heard_s += away_s
            elif time.monotonic() - self._heard_s > SILENCE_S:
                raise Ended(f"the peer has said nothing for {SILENCE_S:g} s")

    async def _say_goodbye(self) -> None:
        why = await self._stopped
        self._out.write(Kind.BYE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                await self._writer.drain()
        raise Ended(why)


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _reason(tasks: list[asyncio.Task[None]]) -> Ended:
    """Return why the first of these tasks ended."""
    for task in tasks:
        error = task.exception() if task.done() and not task.cancelled() else None
        if isinstance(error, Ended):
            return error
        if isinstance(error, FrameError):
            return Ended(str(error), error.fault)
        if isinstance(error, SteelyardError):
            return Ended(f"this node cannot go on: {error.where}: {error.message}")
        if isinstance(error, OSError):
            return Ended(f"the connection broke: {error.strerror or error}")
        if error is not None:
            log.error("the flow sync broke", exc_info=error)
            return Ended(f"a defect here: {error!r}")
    return Ended("it ended")
