"""Owns how a request of a client goes to the agent's socket, and how its answer comes back."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import quote

import aiohttp
from aiohttp import web
from yarl import URL

from agent.api.peer import ADDRESS, CERTIFICATE
from agent.remote.tls import name_of

MAX_BODY_BYTES = 4 * 1024 * 1024  # as the agent
RATE, BURST = 20.0, 100.0  # requests of a certificate: in a second for long, and at once
AT_ONCE = 8  # requests of a certificate, traces included
_MOST_NAMES = 4096  # whose rates are remembered
_SOCKETS = 48  # to the agent
# The agent compiles a program in a change, and a trace tells every few seconds that it goes on.
_ANSWER_S = 150.0
_CONNECT_S = 5.0
_PASSED_ON = ("Accept", "Accept-Encoding", "Content-Type")
_PASSED_BACK = ("Content-Type", "Content-Encoding", "Vary")


class Rates:
    """How many requests each certificate may send (token buckets)."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}  # requests, and when that was so

    def takes(self, name: str, now: float) -> bool:
        """Return whether a certificate may send one now; ``now`` is a monotonic time."""
        left, at = self._left.pop(name, (BURST, now))
        left = min(left + (now - at) * RATE, BURST)
        is_taken = left >= 1
        self._left[name] = left - is_taken, now  # the least recent come first
        if len(self._left) > _MOST_NAMES:
            del self._left[next(iter(self._left))]
        return is_taken


class Forwarder:
    """Sends the requests of clients to the agent's socket, with the names of their certificates."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rates = Rates()
        self._under_way: Counter[str] = Counter()
        self._session: aiohttp.ClientSession | None = None

    def app(self) -> web.Application:
        """Return the application that is served."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connections to the agent."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Each has its own connection: an order must not meet one that has just ended.
                connector=aiohttp.UnixConnector(str(self._path), limit=_SOCKETS, force_close=True),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=_CONNECT_S, sock_connect=_CONNECT_S, sock_read=_ANSWER_S
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        """Close the connections to the agent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        found = None if transport is None else transport.get_extra_info("peercert")
        name = name_of(found)
        if name is None:
            return _refusal(
                403,
                "your certificate has no common name, or several",
                where="the client's certificate",
                remedy="have one issued with a single common name",
            )
        if not self._rates.takes(name, time.monotonic()) or self._under_way[name] >= AT_ONCE:
            return _refusal(
                429,
                f"the certificate {name} sends too many requests",
                where=request.path,
                remedy=f"send {RATE:.0f} in a second at most, and {AT_ONCE} at once",
            )
        async with self._counted(name):
            return await self._forward(request, name)

    @contextlib.asynccontextmanager
    async def _counted(self, name: str) -> AsyncGenerator[None]:
        self._under_way[name] += 1
        try:
            yield
        finally:
            self._under_way[name] -= 1
            self._under_way += Counter()  # drop names without requests

    async def _forward(self, request: web.Request, name: str) -> web.StreamResponse:
        headers = {key: request.headers[key] for key in _PASSED_ON if key in request.headers}
        headers |= {CERTIFICATE: quote(name, safe=""), ADDRESS: request.remote or "unknown"}
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _refusal(
                413,
                f"the body is larger than {MAX_BODY_BYTES} bytes",
                where=request.path,
                remedy="split the change",
            )
        if not request.raw_path.startswith("/"):
            return _refusal(
                400, "the request is for another host", where=request.raw_path, remedy="give a path"
            )
        url = URL(f"http://agent{request.raw_path}", encoded=True)
        response: web.StreamResponse | None = None
        try:
            async with self.session.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False
            ) as answer:
                back = {key: answer.headers[key] for key in _PASSED_BACK if key in answer.headers}
                response = web.StreamResponse(status=answer.status, headers=back)
                await response.prepare(request)
                async for part in answer.content.iter_any():
                    await response.write(part)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None or not response.prepared:
                return _gone(error)
            # Half an answer must not look like a whole one.
            if request.transport is not None:
                request.transport.abort()
            return response


def _gone(error: Exception) -> web.Response:
    status, message = 502, "the agent of this balancer broke off its answer"
    if isinstance(error, TimeoutError):
        status, message = 504, "the agent of this balancer did not answer in time"
    look = "its log says why: journalctl -u lb-agent, on that host"
    if isinstance(error, aiohttp.ClientConnectorError):
        message = "the agent of this balancer does not answer"
    else:
        message += "; it may have carried out the request"
        look = f"`lbctl events` shows whether it did; {look}"
    return _refusal(status, message, where="lb-agent api", remedy=look)


def _refusal(status: int, message: str, *, where: str, remedy: str) -> web.Response:
    """Return an answer that says what is wrong, as the agent's do."""
    error = {"message": message, "where": where, "remedy": remedy}
    return web.Response(
        status=status,
        text=json.dumps({"error": error}) + "\n",
        content_type="application/json",
        headers={"Retry-After": "1"} if status == 429 else None,
    )
