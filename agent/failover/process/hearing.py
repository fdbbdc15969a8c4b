"""Owns the listeners of this process: one for an interface and a family, open while it is used."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable

from agent.failover.times import LONGEST_READ_PAUSE_S, READ_PAUSE_INTERVALS
from agent.failover.vrrp.listener import Listener
from agent.logs import get_logger

log = get_logger()

type _Place = tuple[str, int, int]  # interface, its number, family


class Hearing:
    """Reads the listeners' sockets when there is something, but those that rest."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[_Place, Listener] = {}
        self._read_at: dict[socket.socket, float] = {}
        self._is_reading = False
        self._news: list[Callable[[], None]] = []

    def listener(self, interface: str, ifindex: int, family: int) -> Listener:
        """The one of this interface; ``ifindex`` tells it from one of the same name before."""
        place = interface, ifindex, family
        found = self._listeners.get(place)
        if found is None:
            found = self._listeners[place] = Listener(interface, family)
            for each in found.sockets:
                self._watch(found, each)
        return found

    def tidy(self) -> None:
        """Close those that nobody uses any more."""
        for place, listener in list(self._listeners.items()):
            if not listener.is_used:
                del self._listeners[place]
                for each in listener.sockets:
                    self._loop.remove_reader(each)
                    self._read_at.pop(each, None)
                listener.close()

    def _watch(self, listener: Listener, one: socket.socket) -> None:
        self._loop.add_reader(one, self._read, listener, one)

    def _resume(self, listener: Listener, one: socket.socket) -> None:
        if listener in self._listeners.values():
            self._watch(listener, one)
            self._read(listener, one)

    def _read(self, listener: Listener, one: socket.socket) -> None:
        self._is_reading = True
        try:
            listener.read(one)
        except Exception:  # whatever somebody sends
            log.exception("adverts cannot be read")
        finally:
            self._is_reading = False
        rest_s = max(listener.rests_s(one), self._pause_s(listener, one))
        if rest_s > 0:  # readable it stays, and would have the loop for itself
            self._loop.remove_reader(one)
            self._loop.call_later(rest_s, self._resume, listener, one)
        news, self._news = self._news, []
        for told in news:
            try:
                told()
            except Exception:  # the others have theirs
                log.exception("what was heard could not be acted upon")

    def _pause_s(self, listener: Listener, one: socket.socket) -> float:
        """Where adverts come one after the other, to read some at once costs a fraction.

        One that comes alone is read at once, and timers read before they count.
        """
        now_s = self._loop.time()
        before_s = self._read_at.get(one, -math.inf)
        self._read_at[one] = now_s
        pause_s = min(listener.interval_s * READ_PAUSE_INTERVALS, LONGEST_READ_PAUSE_S)
        return pause_s if now_s - before_s <= 2 * pause_s else 0.0

    def tell(self, told: Callable[[], None]) -> None:
        """Call this when what is being read is read."""
        if self._is_reading:
            self._news.append(told)
        else:  # by somebody who acts first on what it has read itself
            self._loop.call_soon(told)
