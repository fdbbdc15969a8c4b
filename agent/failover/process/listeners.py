"""Owns the listeners of this process: one per interface and family, open while it is used."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable

from agent.failover.times import LONGEST_READ_PAUSE_S, READ_PAUSE_INTERVALS
from agent.failover.vrrp.listener import Listener
from agent.logs import get_logger

log = get_logger()

type _Place = tuple[str, int, int]  # interface, ifindex, family


class Listeners:
    """Reads the sockets of the listeners when they are readable, except those that rest."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[_Place, Listener] = {}
        self._read_at: dict[socket.socket, float] = {}
        self._is_reading = False
        self._news: list[Callable[[], None]] = []

    def listener(self, interface: str, ifindex: int, family: int) -> Listener:
        """Return the listener of an interface; ``ifindex`` tells apart those of the same name."""
        place = interface, ifindex, family
        found = self._listeners.get(place)
        if found is None:
            found = self._listeners[place] = Listener(interface, family)
            for each in found.sockets:
                self._watch(found, each)
        return found

    def tidy(self) -> None:
        """Close the listeners that are no longer used."""
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
        except Exception:  # whatever was sent must not end this process
            log.exception("adverts cannot be read")
        finally:
            self._is_reading = False
        rest_s = max(listener.rests_s(one), self._pause_s(listener, one))
        if rest_s > 0:  # it stays readable, and would keep the event loop to itself
            self._loop.remove_reader(one)
            self._loop.call_later(rest_s, self._resume, listener, one)
        news, self._news = self._news, []
        for callback in news:
            try:
                callback()
            except Exception:  # the other routers still get their adverts
                log.exception("what was heard could not be acted upon")

    def _pause_s(self, listener: Listener, one: socket.socket) -> float:
        """Return how long to pause after reading a socket.

        Where adverts come in quick succession, it costs a fraction to read several at once. One
        that comes alone is read at once, and timers read all sockets before they count.
        """
        now_s = self._loop.time()
        before_s = self._read_at.get(one, -math.inf)
        self._read_at[one] = now_s
        pause_s = min(listener.interval_s * READ_PAUSE_INTERVALS, LONGEST_READ_PAUSE_S)
        return pause_s if now_s - before_s <= 2 * pause_s else 0.0

    def after_reading(self, callback: Callable[[], None]) -> None:
        """Call this back once the present reading has ended."""
        if self._is_reading:
            self._news.append(callback)
        else:  # a router is reading, and acts on its own adverts first
            self._loop.call_soon(callback)
