"""Owns the connection to one target: sends requests, and returns the whole answer or a reason.

One request is in progress at a time; the connection is kept between requests. Received data goes
into one buffer that all links share, and is copied only while an answer is not complete.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Coroutine
from typing import cast

from agent.health.outcome import WORDS, tls_words
from agent.health.talks import tls_context
from agent.telemetry.asks import Target
from agent.telemetry.framing import Answer, HttpAnswer, LineAnswer
from agent.telemetry.report import Failure

_RECEIVED_AT_ONCE = 256 * 1024

type Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

# A link takes its bytes out of this buffer before the event loop can read for another link.
_received = bytearray(_RECEIVED_AT_ONCE)
_room = memoryview(_received)


class Link:
    """A connection to a target, made at the first ``ask`` and again after each failure.

    ``on_ask()`` is called right before the request is written, and ``on_done(answer)`` once for
    each ``ask``, unless ``close`` cancels that.
    """

    def __init__(
        self,
        target: Target,
        request: bytes,
        spawn: Spawn,
        on_ask: Callable[[], None],
        on_done: Callable[[bytes | Failure], None],
    ) -> None:
        self._target = target
        self._request = request
        self._spawn = spawn
        self._on_ask = on_ask
        self._on_done = on_done
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._answer: Answer | None = None  # None: no request is in progress
        self._partial = bytearray()
        self.rtt_s = 0.0  # round trip: the duration of the last connect without TLS; 0: not known
        self._began = 0.0  # when the last connect began
        self._reused = False  # the present request uses a connection that has served one before

    def ask(self) -> None:
        """Send the request. Do not call this while an answer is awaited."""
        if self._wire is None:
            self._connect()
        else:
            self._reused = True
            self._send(self._wire)

    def close(self) -> None:
        """Cancel a request that is in progress, and close the connection."""
        self._answer = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._wire is not None:
            self._wire.drop()
            self._wire = None
        self._partial = bytearray()

    def opened(self, wire: _Wire) -> None:
        """Use a connection that has been made. A server that speaks first may do so right away."""
        self._wire = wire
        if not self._target.tls:
            self.rtt_s = asyncio.get_running_loop().time() - self._began
        self._send(wire)

    def received(self, data: memoryview) -> None:
        """Take bytes that have arrived."""
        if self._answer is None:
            self.close()  # the server sends without being asked
            return
        arrived: bytes | bytearray
        if self._partial:
            self._partial += data
            arrived = self._partial
        else:
            arrived = bytes(data)
        result = self._answer.more(arrived)
        if result is not None:
            self._done(result, self._answer.reusable)
        elif arrived is not self._partial:
            self._partial = bytearray(arrived)

    def lost(self, error: Exception | None) -> None:
        """Handle the end of the connection; without an error, the server has closed it."""
        self._wire = None
        if self._answer is None:
            return
        if self._reused and not self._partial:
            # The server had closed an idle connection, which it may do; this is not a failure.
            self._answer = None
            self._connect()
        elif error is None:
            self._done(self._answer.closed(self._partial), reusable=False)
        else:
            self._done(Failure(failure_words(error)), reusable=False)

    def _connect(self) -> None:
        self._reused = False
        self._connecting = self._spawn(self._open())

    async def _open(self) -> None:
        target, loop = self._target, asyncio.get_running_loop()
        self._began = loop.time()
        try:
            context = tls_context(target.verify_tls) if target.tls else None
            await loop.create_connection(
                lambda: _Wire(self),
                str(target.address),
                target.port,
                ssl=context,
                server_hostname=str(target.address) if context else None,
            )
        except OSError as error:  # ssl.SSLError is one too
            self._connecting = None
            self._done(Failure(failure_words(error)), reusable=False)
            return
        self._connecting = None

    def _send(self, wire: _Wire) -> None:
        self._answer = HttpAnswer() if self._request else LineAnswer()
        self._on_ask()
        if self._request:
            wire.write(self._request)

    def _done(self, result: bytes | Failure, reusable: bool) -> None:
        if not reusable or isinstance(result, Failure):
            self.close()
        else:
            self._answer = None
            if self._partial:
                self._partial = bytearray()
        self._on_done(result)


class _Wire(asyncio.BufferedProtocol):
    """One connection of a link; after ``drop`` its events no longer reach the link."""

    def __init__(self, link: Link) -> None:
        self._link: Link | None = link
        self._transport: asyncio.Transport | None = None

    def write(self, request: bytes) -> None:
        if self._transport is not None:
            self._transport.write(request)

    def drop(self) -> None:
        self._link = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._link is not None:
            self._link.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return _room

    def buffer_updated(self, nbytes: int) -> None:
        if self._link is not None:
            self._link.received(_room[:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        if self._link is not None:
            self._link.lost(exc)


def failure_words(error: Exception) -> str:
    """Return what happened to a connection, in words for the operator."""
    if isinstance(error, ssl.SSLError):
        return tls_words(error)
    number = getattr(error, "errno", None) or 0
    return WORDS.get(number) or (os.strerror(number).lower() if number else "connection failed")
