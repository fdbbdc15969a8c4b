"""Protects listeners that anybody can reach: they limit connections, in all and per source, and
drop those that send nothing.

A client that holds connections open must not use up the file descriptors that the agent needs,
nor keep honest scrapers out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent.errors import ListenError
from agent.model import ANYWHERE

MOST_CONNECTIONS = 64
MOST_OF_A_SOURCE = 8
HEAD_S = 5.0  # time to send all of a request's head
SHUTDOWN_S = 2.0
LINGER_S = 2.0  # for connections whose certificates were replaced: what they have begun goes on
READ_S = 30.0  # time in which a client has to read on while an answer waits to be sent
_HEAD_ENDS = b"\r\n\r\n"


def address_of(transport: asyncio.BaseTransport) -> str:
    """Return the address from which a connection comes."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections there may be, and how many from a source.

    ``read_s``: the time in which a client has to read on; None: any time. ``awaits_head``: whether
    a request's head has to come within ``HEAD_S``. A body that comes behind its head is taken for
    the next head, so this is not for listeners that take bodies.
    """

    most: int = MOST_CONNECTIONS
    of_a_source: int = MOST_OF_A_SOURCE
    read_s: float | None = READ_S
    awaits_head: bool = True


class Guarded:
    """The protocol factory of a listener; connections within the limits get ``make``'s protocol.

    ``source_of`` returns the source of a connection; None: it has no limits.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        source_of: Callable[[asyncio.BaseTransport], str | None] = address_of,
        limits: Limits | None = None,
    ) -> None:
        self.make = make
        self.source_of = source_of
        self.limits = limits or Limits()
        self.held: Counter[str] = Counter()  # connections by source

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self, self.make)

    def has_room(self, source: str) -> bool:
        limits = self.limits
        return self.held.total() < limits.most and self.held[source] < limits.of_a_source


class _Connection(asyncio.Protocol):
    """One connection; it reaches the server only if ``Guarded`` has room for it."""

    def __init__(self, guarded: Guarded, make: Callable[[], asyncio.Protocol]) -> None:
        self._guarded = guarded
        self._make = make
        self._inner: asyncio.Protocol | None = None
        self._source: str | None = None  # None: it has no limits
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None  # for the rest of a request's head
        self._unread: asyncio.TimerHandle | None = None  # for a client that does not read on
        self._last = b""  # the last bytes of an incomplete head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (it is a stream's)
        source = self._source = self._guarded.source_of(transport)
        if source is not None:
            if not self._guarded.has_room(source):
                transport.abort()
                return
            self._guarded.held[source] += 1
        self._transport, self._inner = transport, self._make()
        self._inner.connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            return
        seen = self._last + data
        if _HEAD_ENDS in seen:
            self._wait_no_more()
        else:
            self._last = seen[-len(_HEAD_ENDS) + 1 :]
            if self._deadline is None:
                self._wait()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def pause_writing(self) -> None:
        if self._inner is not None:
            read_s = self._guarded.limits.read_s
            if self._source is not None and read_s is not None:
                self._unread = asyncio.get_running_loop().call_later(read_s, self._give_up)
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._reads_on()
        if self._inner is not None:
            self._inner.resume_writing()

    def _reads_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._reads_on()
        if self._inner is None:
            return
        if self._source is not None:
            self._guarded.held[self._source] -= 1
            self._guarded.held += Counter()  # drop sources without connections
        self._inner.connection_lost(exc)

    def _wait(self) -> None:
        if self._source is None or not self._guarded.limits.awaits_head:
            return
        self._deadline = asyncio.get_running_loop().call_later(HEAD_S, self._give_up)

    def _wait_no_more(self) -> None:
        self._last = b""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()


type Refused = Callable[[str, OSError], None]  # a source, and why it did not get in


class _Entrance:
    """What a TLS connection needs to come in: a context, and the server behind it.

    ``greeting``: handshakes that are under way.
    """

    def __init__(self, runner: web.AppRunner, context: ssl.SSLContext) -> None:
        self.runner = runner
        self.make = _server(runner)
        self.context = context
        self.greeting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Let requests in progress end, and nobody in any more."""
        for task in self.greeting:
            task.cancel()
        await self.runner.cleanup()


class TlsListening:
    """A listener that anybody can reach over TLS, with its server.

    Connections whose handshake is under way count towards the limits, too, because they hold
    descriptors and can come from anybody. ``refused`` is told whose handshake has failed.
    """

    def __init__(
        self,
        sock: socket.socket,
        runner: web.AppRunner,
        context: ssl.SSLContext,
        limits: Limits | None = None,
        refused: Refused | None = None,
    ) -> None:
        self._sock = sock
        self._entrance = _Entrance(runner, context)
        self._guarded = Guarded(self._entrance.make, limits=limits)
        self._refused = refused
        self._under_way: Counter[str] = Counter()  # handshakes by source
        self._closing: dict[asyncio.Task[None], _Entrance] = {}
        self._accepting = asyncio.create_task(self._accept())

    def exchange(self, context: ssl.SSLContext) -> None:
        """Let new connections have another context, and those that there are go on."""
        self._entrance.context = context

    async def renew(self, app: web.Application, context: ssl.SSLContext) -> None:
        """Let new connections come in by another context, without a moment in which none can.

        Those that there are, and handshakes that have begun, end after ``LINGER_S``: a client that
        is about to send its request gets an answer, and one whose certificate was revoked does not
        stay.
        """
        serving = runner(app, SHUTDOWN_S)
        await serving.setup()
        former, self._entrance = self._entrance, _Entrance(serving, context)
        task = asyncio.create_task(_close_later(former))
        self._closing[task] = former
        task.add_done_callback(lambda done: self._closing.pop(done, None))

    async def stop(self) -> None:
        """Accept no more requests, and let those in progress end."""
        self._accepting.cancel()
        await asyncio.wait([self._accepting])  # the socket may get another listener at once
        former = tuple(self._closing.values())
        for task in tuple(self._closing):
            task.cancel()
        await asyncio.gather(*(each.close() for each in (self._entrance, *former)))

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._sock)
            except OSError:  # for example because no descriptor is free
                await asyncio.sleep(0.1)
                continue
            source = str(peer[0])
            if not self._has_room(source):
                connection.close()
                continue
            connection.setblocking(False)
            self._under_way[source] += 1
            self._under_way += Counter()  # drop sources without handshakes
            entrance = self._entrance
            task = asyncio.create_task(self._greet(entrance, connection, source))
            entrance.greeting.add(task)
            task.add_done_callback(entrance.greeting.discard)

    def _has_room(self, source: str) -> bool:
        limits, held, greeting = self._guarded.limits, self._guarded.held, self._under_way
        return (
            greeting.total() + held.total() < limits.most
            and greeting[source] + held[source] < limits.of_a_source
        )

    async def _greet(self, entrance: _Entrance, connection: socket.socket, source: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self._guarded, entrance.make), connection,
                ssl=entrance.context, ssl_handshake_timeout=HEAD_S,
            )  # fmt: skip
        except OSError as error:  # ssl.SSLError, too: the client does not speak TLS, or has left
            connection.close()
            if self._refused is not None:
                self._refused(source, error)
        finally:
            self._under_way[source] -= 1


async def _close_later(entrance: _Entrance) -> None:
    await asyncio.sleep(LINGER_S)
    await entrance.close()


class Listening:
    """A listener that anybody can reach, with its server."""

    def __init__(self, runner: web.AppRunner, listener: asyncio.Server, port: int) -> None:
        self._runner = runner
        self._listener = listener
        self.port = port

    async def stop(self) -> None:
        """Accept no more requests, and let those in progress end."""
        self._listener.close()
        await self._runner.cleanup()


async def serve_tls(
    app: web.Application,
    sock: socket.socket,
    context: ssl.SSLContext,
    limits: Limits | None = None,
    refused: Refused | None = None,
) -> TlsListening:
    """Serve an application over TLS to anybody, on a listening socket.

    ``refused`` is told whose handshake has failed.
    """
    serving = runner(app, SHUTDOWN_S)
    await serving.setup()
    return TlsListening(sock, serving, context, limits, refused)


async def serve(app: web.Application, sock: socket.socket) -> Listening:
    """Serve an application to anybody, on a listening socket."""
    serving = runner(app, SHUTDOWN_S)
    await serving.setup()
    listener = await asyncio.get_running_loop().create_server(Guarded(_server(serving)), sock=sock)
    return Listening(serving, listener, int(sock.getsockname()[1]))


async def listen(app: web.Application, host: str, port: int) -> Listening:
    """Serve an application to anybody, at one address or ``ANYWHERE``.

    Raises ListenError if the port is taken.
    """
    serving = runner(app, SHUTDOWN_S)
    await serving.setup()
    try:
        listener = await asyncio.get_running_loop().create_server(
            Guarded(_server(serving)), None if host == ANYWHERE else host, port
        )
    except OSError as error:
        await serving.cleanup()
        raise ListenError(
            f"cannot listen for scrapes: {error.strerror or error}",
            where=f"{host}:{port}",
            remedy="choose a free local address with --listen",
        ) from error
    return Listening(serving, listener, int(listener.sockets[0].getsockname()[1]))


def _server(runner: web.AppRunner) -> web.Server:
    """Return the server of a runner that was set up."""
    assert runner.server is not None  # noqa: S101 (setup created it)
    return runner.server


def runner(app: web.Application, shutdown_s: float) -> web.AppRunner:
    """Return a runner for an application that anybody can reach.

    Data that is not HTTP leaves no traceback in the log.
    """
    logger = logging.getLogger("aiohttp.server")
    if _is_worth_a_line not in logger.filters:
        logger.addFilter(_is_worth_a_line)
    return web.AppRunner(app, access_log=None, shutdown_timeout=shutdown_s)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | ConnectionError)
