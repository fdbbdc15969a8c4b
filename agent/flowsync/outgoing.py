"""Owns what is sent to one peer: everything at first, then changes, within the allowed rate.

Changes that cannot be sent yet are not queued: the next look at the table finds the flows as they
are then. Flows that have just been established are named by their slots and sent without waiting
for that look.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np

from agent.failover.model import FlowSync
from agent.failover.times import GATHER_S
from agent.flowsync.flows import Flows, Look, SlotNumbers
from agent.flowsync.framing import RECORDS_BYTES, Fault, FrameError, Kind, Sealer
from agent.flowsync.messages import Ack
from agent.flowsync.rate import TokenBucket
from agent.flowsync.tally import Tally
from agent.flowsync.threads import in_thread
from agent.flowsync.window import Window

_PIECES_PER_S = 20  # frames are kept small enough that the bandwidth allows this many a second
_LEAST_PIECE = 4096  # bytes
_MOST_NAMED = 1 << 15  # named slots that may wait; the next look finds the flows beyond that


class Outgoing:
    """The sending half of a stream."""

    def __init__(
        self, writer: asyncio.StreamWriter, sealer: Sealer, flows: Flows, tally: Tally
    ) -> None:
        self.window = Window()
        self._writer = writer
        self._sealer = sealer
        self._flows = flows
        self._tally = tally
        self._config = FlowSync()
        self._bucket = TokenBucket(self._config.rate_bytes_per_s, time.monotonic())
        self._wake = asyncio.Event()
        self._credit = asyncio.Event()
        self._resync = False
        self._named: list[SlotNumbers] = []
        self._flushes: list[asyncio.Future[int]] = []
        self._flushing: list[asyncio.Future[int]] = []
        self._held: list[tuple[int, int, asyncio.Future[int]]] = []  # sequence, flows, waiter

    def configure(self, config: FlowSync) -> None:
        """Change how often to look at the table and how much to send, from now on."""
        self._config = config
        self._bucket.bytes_per_s = config.rate_bytes_per_s

    def write(self, kind: Kind, payload: bytes = b"") -> int:
        """Hand a frame to the socket and return its length. There must be no await between taking
        the sequence number and writing.
        """
        frame = self._sealer.seal(kind, payload)
        self._writer.write(frame)
        self._tally.bytes_sent += len(frame)
        return len(frame)

    async def flush(self) -> int:
        """Send everything that the peer does not know, including flows with an unfinished
        handshake. Return the number of flows once the peer has them.
        """
        flush: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._flushes.append(flush)
        self._wake.set()
        return await flush

    def name(self, slots: SlotNumbers) -> None:
        """Note that the flows in these slots are new and should be sent at once."""
        if sum(map(len, self._named)) < _MOST_NAMED:
            self._named.append(slots)
            self._wake.set()

    def resync(self) -> None:
        """Send everything again, as the peer asked."""
        self._resync = True
        self._wake.set()

    def acknowledge(self, ack: Ack) -> None:
        """Note that the peer has installed frames."""
        if not self.window.acknowledged(ack.sequence):
            raise FrameError(Fault.CONTENT, "the peer acknowledges frames that were not sent")
        self._tally.peer_installed += ack.installed
        self._tally.peer_dropped.update(ack.dropped)
        if self.window.has_credit:
            self._credit.set()
        self._settle()

    def close(self, reason: Exception) -> None:
        """Fail everything that waits for the peer."""
        for future in (*self._flushes, *self._flushing, *(held[2] for held in self._held)):
            if not future.done():
                future.set_exception(reason)

    async def run(self) -> None:
        """Send, until cancelled."""
        await self._send_everything()
        looked_s = sent_s = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(looked_s + self._config.interval_s - time.monotonic()):
                    await self._wake.wait()
                    await asyncio.sleep(sent_s + GATHER_S - time.monotonic())
            self._wake.clear()
            if self._named:
                await self._send_named()
                sent_s = time.monotonic()
            if self._resync:
                await self._send_everything()
            elif not self._flushes and time.monotonic() < looked_s + self._config.interval_s:
                continue  # woken only for named slots
            await self._send_changes()
            looked_s = time.monotonic()

    async def _send_everything(self) -> None:
        self._resync = False
        began_s = time.monotonic()
        identities = await in_thread(self._flows.begin)
        await self._send(Kind.IDENTITIES, identities)
        await self._send(Kind.FULL_BEGIN)
        while (part := await in_thread(self._flows.part)) is not None:
            await self._send_look(part)
            if self._named:
                await self._send_named()
        await self._send(Kind.FULL_END)
        self.window.looked(began_s)
        self._tally.full_sent += 1

    async def _send_named(self) -> None:
        slots, self._named = np.concatenate(self._named), []
        await self._send_look(await in_thread(lambda: self._flows.named(slots)))

    async def _send_changes(self) -> None:
        self._flushing, self._flushes = self._flushes, []
        unfinished = bool(self._flushing)
        flows, began_s = 0, time.monotonic()
        while True:
            look = await in_thread(lambda: self._flows.changed(unfinished=unfinished))
            if look.wants_resync:
                self.write(Kind.RESYNC)
            await self._send_look(look)
            flows += look.flows
            if look.complete:
                break
        self.window.looked(began_s)
        self._held += [(self.window.newest, flows, flush) for flush in self._flushing]
        self._flushing = []
        self._settle()

    async def _send_look(self, look: Look) -> None:
        if look.identities is not None:
            await self._send(Kind.IDENTITIES, look.identities)
        size = self._piece_bytes()
        for first in range(0, len(look.records), size):
            await self._send(Kind.RECORDS, look.records[first : first + size])
        self._tally.flows_sent += look.flows
        self._tally.gone_sent += look.gone

    def _piece_bytes(self) -> int:
        """Return how many bytes of records go in one frame, a multiple of the record's length."""
        wanted = max(_LEAST_PIECE, self._config.rate_bytes_per_s // _PIECES_PER_S)
        record = self._flows.record_bytes
        return int(min(RECORDS_BYTES, wanted) // record * record)

    async def _send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a data frame as soon as credit and bandwidth allow it."""
        while not self.window.has_credit:
            self._credit.clear()
            await self._credit.wait()
        size = self.write(kind, payload)
        self.window.sent(self._sealer.sequence, size)
        await self._writer.drain()
        await asyncio.sleep(self._bucket.take(size, time.monotonic()))

    def _settle(self) -> None:
        """Complete the flushes whose frames the peer has acknowledged."""
        waiting = [held for held in self._held if held[0] > self.window.acknowledged_to]
        for held in self._held:
            if held not in waiting and not held[2].done():
                held[2].set_result(held[1])
        self._held = waiting
