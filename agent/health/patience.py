"""Owns the time limits of checks; time in which this process gets no CPU does not count.

A host that is short of CPU, or a virtual machine that was paused, would otherwise find that none of
its servers answers in time, and take all of them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

from agent.health.alarms import Alarm, Alarms

LOOK_S = 0.05  # between two looks at how late the event loop is
NOTICED_S = 0.01  # lateness up to this is normal
MOST = 4  # times the limit at most, so that even the busiest host finds a dead server


class Wait:
    """A wait for one server. Times are on the event loop's clock, in seconds."""

    __slots__ = ("alarm", "end_s", "expire", "granted_s", "latest_s", "since_s")

    def __init__(self, now_s: float, seconds: float, expire: Callable[[Wait], object]) -> None:
        self.since_s = now_s
        self.end_s = now_s + seconds
        self.latest_s = now_s + MOST * seconds
        self.granted_s = 0.0  # time that did not count
        self.expire = expire
        self.alarm: Alarm


class Limit:
    """Cancels the work in its block when its time is over, which then raises TimeoutError.

    It does what ``asyncio.timeout`` does, at a third of the cost.
    """

    __slots__ = ("_cancelling", "_is_over", "_patience", "_seconds", "_task", "_wait")

    def __init__(self, patience: Patience, seconds: float) -> None:
        self._patience, self._seconds = patience, seconds
        self._is_over = False
        self._task: asyncio.Task[Any]
        self._wait: Wait

    async def __aenter__(self) -> Wait:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._task, self._cancelling = task, task.cancelling()
        self._wait = self._patience.begin(self._seconds, self._cancel)
        return self._wait

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._patience.end(self._wait)
        # Whoever else has cancelled the task meanwhile goes before.
        first = self._is_over and self._task.uncancel() <= self._cancelling
        if first and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _cancel(self, _: Wait) -> None:
        self._is_over = True
        self._task.cancel()


class Patience:
    """Time limits that are extended by the event loop's lateness while ``watching`` is open."""

    def __init__(self, alarms: Alarms | None = None) -> None:
        self._alarms = alarms or Alarms()
        self._waits: set[Wait] = set()
        self._due_s: float | None = None  # the next look; None: ``watching`` is not open

    def begin(self, seconds: float, expire: Callable[[Wait], object]) -> Wait:
        """Begin a wait. ``expire(wait)`` is called after ``seconds``, extended to ``MOST`` times
        that at most, unless ``end(wait)`` is called before.
        """
        wait = Wait(asyncio.get_running_loop().time(), seconds, expire)
        wait.alarm = self._alarms.at(wait.end_s, partial(self._ring, wait))
        self._waits.add(wait)
        return wait

    def end(self, wait: Wait) -> None:
        """End a wait before its time. It may have ended already."""
        wait.alarm.cancel()
        self._waits.discard(wait)

    def timeout(self, seconds: float) -> Limit:
        """Like ``asyncio.timeout``, but extended as ``begin`` says."""
        return Limit(self, seconds)

    def _ring(self, wait: Wait) -> None:
        loop = asyncio.get_running_loop()
        self._look(loop.time())  # this alarm may ring just before the next look
        if loop.time() < wait.end_s:
            wait.alarm = self._alarms.at(wait.end_s, partial(self._ring, wait))
        else:
            # In the next turn, because an answer that came in this one counts.
            loop.call_soon(self._expire, wait)

    def _expire(self, wait: Wait) -> None:
        if wait in self._waits:
            self._waits.discard(wait)
            wait.expire(wait)

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
