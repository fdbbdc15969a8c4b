"""Owns the time limits of checks; time in which this process gets no CPU does not count.

A host that is short of CPU, or a virtual machine that was paused, would otherwise find that none of
its servers answers in time, and take all of them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

LOOK_S = 0.05  # between two looks at how late the event loop is
NOTICED_S = 0.01  # lateness up to this is normal
MOST = 4  # times the limit at most, so that even the busiest host finds a dead server


@dataclass(slots=True)
class Wait:
    """A wait for one server. Times are on the event loop's clock, in seconds."""

    since_s: float
    end_s: float
    latest_s: float
    granted_s: float = 0.0  # time that did not count


class Patience:
    """Time limits that are extended by the event loop's lateness while ``watching`` is open."""

    def __init__(self) -> None:
        self._waits: list[Wait] = []
        self._due_s: float | None = None  # the next look; None: ``watching`` is not open

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[Wait]:
        """Like ``asyncio.timeout``, but extended; at most to ``MOST`` times ``seconds``."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        wait = Wait(now_s, now_s + seconds, now_s + MOST * seconds)
        timer: asyncio.TimerHandle

        def end() -> None:
            nonlocal timer
            self._look(loop.time())  # this timer may run just before the timer of the next look
            if (now_s := loop.time()) < wait.end_s:
                timer = loop.call_at(wait.end_s, end)
            else:
                limit.reschedule(now_s)

        timer = loop.call_at(wait.end_s, end)
        self._waits.append(wait)
        try:
            async with asyncio.timeout(None) as limit:
                yield wait
        finally:
            self._waits.remove(wait)
            timer.cancel()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the event loop's lateness while the block runs."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            self._look(loop.time())
            timer = loop.call_later(LOOK_S, look)

        self._due_s = loop.time() + LOOK_S
        timer = loop.call_later(LOOK_S, look)
        try:
            yield
        finally:
            timer.cancel()
            self._due_s = None

    def _look(self, now_s: float) -> None:
        if self._due_s is None:
            return
        late_s = now_s - self._due_s
        if late_s > NOTICED_S:
            for wait in self._waits:
                _grant(wait, late_s, now_s)
        if late_s >= 0:
            self._due_s = now_s + LOOK_S


def _grant(wait: Wait, late_s: float, now_s: float) -> None:
    """Extend a wait by the lateness, and by at least ``LOOK_S`` from now, because what the server
    has sent meanwhile has yet to be read.
    """
    late_s = min(late_s, now_s - wait.since_s)
    end_s = min(max(wait.end_s + late_s, now_s + LOOK_S), wait.latest_s)
    wait.granted_s += end_s - wait.end_s
    wait.end_s = end_s
