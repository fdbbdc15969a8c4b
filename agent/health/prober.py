"""Owns the sockets of the checks that need no library: ``tcp`` and ``http``.

One epoll instance serves all of them. The event loop sees it as one file, and handles everything
that has come back in one turn.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from agent.health import outcome
from agent.health.exchange import Exchange, Verdict, exchange_of
from agent.health.patience import Patience, Wait
from agent.health.rules import ProbeResult
from agent.model import Address, CheckKind, HealthCheck

KINDS = (CheckKind.TCP, CheckKind.HTTP)
_PIECE = 4096
_ONE_TURN = 256  # sockets that are served before other tasks get their turn
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
# Edge-triggered, so that a socket is registered once for connecting, sending and receiving.
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
_TROUBLE = select.EPOLLERR | select.EPOLLHUP


class Server:
    """What is asked of one server at each check, made ready once."""

    __slots__ = ("exchange", "family", "limit_s", "where")

    def __init__(self, check: HealthCheck, address: Address, default_port: int) -> None:
        port = check.port or default_port
        self.family = _FAMILY[address.version]
        self.where = (str(address), port)
        self.limit_s = check.timeout_s
        self.exchange: Exchange = exchange_of(check, address, port)


class _Talk:
    """A connection to a server, and what has come back on it."""

    __slots__ = (
        "end",
        "exchange",
        "is_connected",
        "number",
        "received",
        "result",
        "started_s",
        "unsent",
    )

    def __init__(self, server: Server, started_s: float) -> None:
        # This is the C type. Making and closing its subclass in Python costs as much again as the
        # system calls do.
        self.end = socket.SocketType(server.family, _KIND, socket.IPPROTO_TCP)
        self.number = self.end.fileno()
        self.exchange = server.exchange
        self.unsent = server.exchange.request
        self.received = b""
        self.is_connected = False
        self.started_s = started_s
        self.result: asyncio.Future[ProbeResult] = asyncio.get_running_loop().create_future()

    def go_on(self, events: int, took_s: float) -> Verdict | None:
        """Do what the socket is ready for, ``took_s`` after the start, and return the verdict if it
        is known by now. OSError if the network has failed.
        """
        end, exchange = self.end, self.exchange
        if not self.is_connected:
            if events & _TROUBLE and (number := end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                raise OSError(number, os.strerror(number))
            self.is_connected = True
        try:
            while self.unsent:
                self.unsent = self.unsent[end.send(self.unsent) :]
            if exchange.is_one_way:
                return exchange.judge(b"", False, took_s)
            verdict = None
            while verdict is None and events & select.EPOLLIN:
                piece = end.recv(_PIECE)
                self.received += piece
                verdict = exchange.judge(self.received, not piece, took_s)
        except BlockingIOError:
            return None
        return verdict


class Prober:
    """Asks servers while ``running`` is open. Time limits are those of ``patience``."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._talks: dict[int, _Talk] = {}  # by file descriptor
        self._epoll: select.epoll

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve the sockets while the block runs."""
        loop = asyncio.get_running_loop()
        with select.epoll() as self._epoll:
            loop.add_reader(self._epoll.fileno(), self._serve)
            try:
                yield
            finally:
                loop.remove_reader(self._epoll.fileno())

    async def ask(self, server: Server) -> ProbeResult:
        """Check a server once, within its check's timeout, which ``patience`` may extend.

        Whatever the server or the network does is a result. NetworkError is raised only if this
        host could not ask at all.
        """
        started_s = time.monotonic()
        try:
            talk = self._opened(server, started_s)
        except OSError as error:
            return outcome.failed(error, _ms(time.monotonic() - started_s))
        wait = self._patience.begin(server.limit_s, partial(_expire, talk, server.limit_s))
        try:
            return await talk.result
        finally:
            self._patience.end(wait)
            self._close(talk)

    def _opened(self, server: Server, started_s: float) -> _Talk:
        """Return a talk whose connection is being established."""
        talk = _Talk(server, started_s)
        try:
            number = talk.end.connect_ex(server.where)
            if number not in (0, errno.EINPROGRESS):
                raise OSError(number, os.strerror(number))
            self._epoll.register(talk.number, _EVENTS)
        except BaseException:
            talk.end.close()
            raise
        self._talks[talk.number] = talk
        return talk

    def _close(self, talk: _Talk) -> None:
        # The kernel would do it by itself unless a child process that has just been forked still
        # holds the socket. Events for it would then be taken for those of the next one.
        self._epoll.unregister(talk.number)
        del self._talks[talk.number]
        talk.end.close()

    def _serve(self) -> None:
        """Handle what has come back."""
        events = self._epoll.poll(0, _ONE_TURN)
        now_s = time.monotonic()  # one time for all: what is handled last came no later
        for number, ready in events:
            talk = self._talks.get(number)
            if talk is not None and not talk.result.done():
                _advance(talk, ready, now_s - talk.started_s)


def _advance(talk: _Talk, events: int, took_s: float) -> None:
    """Go on with a talk, and set its result if it has come to an end."""
    try:
        try:
            verdict = talk.go_on(events, took_s)
        except OSError as error:
            talk.result.set_result(outcome.failed(error, _ms(took_s)))
        else:
            if verdict is not None:
                talk.result.set_result(ProbeResult(*verdict, _ms(took_s)))
    except Exception as error:  # noqa: BLE001 (for this check's task; the others go on)
        talk.result.set_exception(error)


def _expire(talk: _Talk, limit_s: float, wait: Wait) -> None:
    if not talk.result.done():
        took_ms = _ms(time.monotonic() - talk.started_s)
        found = outcome.unanswered(limit_s, wait.granted_s, talk.is_connected, took_ms)
        talk.result.set_result(found)


def _ms(seconds: float) -> float:
    return seconds * 1000
