"""Owns the order in which checks begin: each at its time, and no more at once than there is room
for.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from functools import partial

from agent.health.alarms import Alarms

# Checks that are due within this time of each other begin together, which saves wake-ups.
TICK_S = 0.005


class Turns:
    """Gives each check its turn when it is due; ``room``: how many more may begin now."""

    def __init__(self, alarms: Alarms, room: int) -> None:
        self.room = room
        self._alarms = alarms
        self._early: set[asyncio.Future[None]] = set()  # not due yet
        self._due: deque[asyncio.Future[None]] = deque()

    async def take(self, due_s: float) -> None:
        """Wait until ``due_s``, on the event loop's clock, and until there is room.

        ``give_back`` has to be called when the check has ended.
        """
        turn = asyncio.get_running_loop().create_future()
        tick_s = math.ceil(due_s / TICK_S) * TICK_S
        alarm = self._alarms.at(tick_s, partial(self._queue, turn))
        self._early.add(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise
        finally:
            alarm.cancel()
            self._early.discard(turn)

    def give_back(self) -> None:
        """Make room for another check."""
        self.room += 1
        self._admit()

    def hasten(self, delay_s: Callable[[], float]) -> None:
        """Let all checks that are not due yet become due after a delay, or at their time if that
        comes first; ``delay_s`` is called for each.
        """
        now_s = asyncio.get_running_loop().time()
        for turn in self._early:
            self._alarms.at(now_s + delay_s(), partial(self._queue, turn))

    def _queue(self, turn: asyncio.Future[None]) -> None:
        if turn in self._early:  # otherwise another alarm has queued it
            self._early.discard(turn)
            self._due.append(turn)
            self._admit()

    def _admit(self) -> None:
        while self.room and self._due:
            turn = self._due.popleft()
            if not turn.cancelled():
                self.room -= 1
                turn.set_result(None)
