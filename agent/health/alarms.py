"""Owns the times at which the waits of health checks end, with one timer of the event loop for all.

Most of these waits end long before their time, because an answer comes. A timer of asyncio for each
of them would cost as much as sending a request.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from heapq import heappop, heappush


class Alarm:
    """A call that is due at some time. ``call`` is None once it was made or cancelled."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Do not make the call."""
        self.call = None


class Alarms:
    """Makes calls when they are due. Times are on the event loop's clock, in seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Alarm]] = []
        self._count = itertools.count()  # alarms for the same time are made in order
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = math.inf  # when the timer runs

    def at(self, when_s: float, call: Callable[[], object]) -> Alarm:
        """Make this call at that time, from the event loop, unless it is cancelled before."""
        alarm = Alarm(call)
        heappush(self._heap, (when_s, next(self._count), alarm))
        if when_s < self._next_s:
            self._set(when_s)
        return alarm

    def _set(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_s = when_s
        self._timer = asyncio.get_running_loop().call_at(when_s, self._ring)

    def _ring(self) -> None:
        heap = self._heap
        now_s = max(self._next_s, asyncio.get_running_loop().time())
        self._next_s = math.inf
        try:
            while heap and (heap[0][0] <= now_s or heap[0][2].call is None):
                alarm = heappop(heap)[2]
                call, alarm.call = alarm.call, None
                if call is not None:
                    call()
        finally:
            if heap and heap[0][0] < self._next_s:
                self._set(heap[0][0])
