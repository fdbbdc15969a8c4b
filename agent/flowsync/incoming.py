"""Owns the frames from one peer that wait to be installed, and acknowledges them afterwards."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from agent.flowsync.flows import Flows, Installed
from agent.flowsync.framing import (
    IDENTITIES_BYTES,
    RECORDS_BYTES,
    Fault,
    Frame,
    FrameError,
    Kind,
)
from agent.flowsync.messages import Ack
from agent.flowsync.tally import Tally
from agent.flowsync.threads import in_thread
from agent.flowsync.window import CREDIT_BYTES

_MERGE_BYTES = 2**20  # how many bytes of records are installed in one go
_MOST_BYTES = CREDIT_BYTES + RECORDS_BYTES + IDENTITIES_BYTES  # that may wait


class Incoming:
    """The receiving half of a stream; ``acknowledge`` is called in the order of the frames."""

    def __init__(self, flows: Flows, tally: Tally, acknowledge: Callable[[Ack], object]) -> None:
        self._flows = flows
        self._tally = tally
        self._acknowledge = acknowledge
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()

    def put(self, frame: Frame) -> None:
        """Queue a data frame that has arrived. FrameError if the peer exceeds its credit."""
        self._bytes += len(frame.payload)
        if self._bytes > _MOST_BYTES:
            raise FrameError(Fault.WINDOW, "the peer does not wait for acknowledgements")
        self._frames.append(frame)
        self._arrived.set()

    async def run(self) -> None:
        """Install what arrives, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._frames:
                frames = self._next_frames()
                try:
                    done = await self._install(frames)
                except ValueError as error:
                    text = f"records that make no sense: {error}"
                    raise FrameError(Fault.CONTENT, text) from error
                self._acknowledge(
                    Ack(frames[-1].sequence, 0, {})
                    if done is None
                    else Ack(frames[-1].sequence, done.installed, done.dropped)
                )

    def _next_frames(self) -> list[Frame]:
        """Return the next frame, or as many frames of records as are installed in one go."""
        frames: list[Frame] = []
        size = 0
        while self._frames and size < _MERGE_BYTES:
            if frames and not (frames[0].kind is self._frames[0].kind is Kind.RECORDS):
                break
            frames.append(self._frames.popleft())
            size += len(frames[-1].payload)
        self._bytes -= size
        return frames

    async def _install(self, frames: list[Frame]) -> Installed | None:
        flows, kind = self._flows, frames[0].kind
        if kind is Kind.RECORDS:
            data = b"".join(frame.payload for frame in frames)
            return await in_thread(lambda: flows.install(data), self._count)
        if kind is Kind.FULL_END:
            done = await in_thread(flows.end_full, self._count)
            self._tally.full_received += 1
            return done
        if kind is Kind.FULL_BEGIN:
            await in_thread(flows.begin_full)
        else:
            await in_thread(lambda: flows.meet(frames[0].payload))
        return None

    def _count(self, done: Installed) -> None:
        done.account()
        self._tally.flows_received += done.flows
        self._tally.gone_received += done.gone
        self._tally.flows_installed += done.installed
        self._tally.flows_dropped.update(done.dropped)
