"""A small HTTP server that stands in for a GPU engine: it answers with its own name.

``/`` answers at once, ``/slow?seconds=3&chunks=30`` streams the answer as an engine streams
tokens, ``/health`` is for the balancer's checks. Connections are kept alive.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

MAX_HEADER_BYTES = 16_384
MAX_BODY_BYTES = 1_048_576
MAX_SECONDS = 3600.0
MAX_CHUNKS = 100_000
IDLE_TIMEOUT_S = 300.0
_REASONS = {
    200: "OK",
    400: "Bad Request",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
}


class BadRequestError(Exception):
    """A request that is answered with ``status``, after which the connection is closed."""

    def __init__(self, status: int) -> None:
        super().__init__(_REASONS[status])
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """What the server wants to know of a request."""

    method: str
    path: str
    query: dict[str, list[str]]
    keep_alive: bool
    body_bytes: int


def parse_request(head: bytes) -> Request:
    """Read a request's head, up to and with the empty line; raises BadRequestError."""
    request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    try:
        method, target, version = request_line.split(" ")
        headers = dict(_header(line) for line in lines)
        url = urlsplit(target)
        body_bytes = int(headers.get("content-length", "0"))
    except ValueError as error:
        raise BadRequestError(400) from error
    if not version.startswith("HTTP/1.") or body_bytes < 0:
        raise BadRequestError(400)
    if "transfer-encoding" in headers:
        raise BadRequestError(411)
    if body_bytes > MAX_BODY_BYTES:
        raise BadRequestError(413)
    if method not in {"GET", "HEAD", "POST"}:
        raise BadRequestError(405)
    connection = headers.get("connection", "").lower()
    keep_alive = connection == "keep-alive" if version == "HTTP/1.0" else connection != "close"
    return Request(method, url.path, parse_qs(url.query), keep_alive, body_bytes)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError(line)
    return name.strip().lower(), value.strip()


def slow_parameters(query: dict[str, list[str]]) -> tuple[float, int]:
    """Seconds and number of chunks of a streamed answer; raises BadRequestError."""
    try:
        seconds = float(query.get("seconds", ["1"])[0])
        chunks = int(query.get("chunks", ["10"])[0])
    except ValueError as error:
        raise BadRequestError(400) from error
    if not (0 <= seconds <= MAX_SECONDS and 1 <= chunks <= MAX_CHUNKS):
        raise BadRequestError(400)
    return seconds, chunks


class Server:
    """Answers requests under one name."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer the requests of one connection until either side closes it."""
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            keep_alive = True
            while keep_alive:
                try:
                    keep_alive = await self._serve_request(reader, writer)
                except BadRequestError as error:
                    keep_alive = False
                    writer.write(self._answer(error.status, f"{error}\n".encode(), keep_alive))
                    await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _serve_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                request = parse_request(head)
                await reader.readexactly(request.body_bytes)
        except asyncio.LimitOverrunError as error:
            raise BadRequestError(413) from error
        if request.path == "/slow":
            async for part in self._stream(request):
                writer.write(part)
                await writer.drain()
        else:
            body = b"ok\n" if request.path == "/health" else f"{self._name}\n".encode()
            answer = self._answer(200, body, request.keep_alive)
            writer.write(answer.removesuffix(body) if request.method == "HEAD" else answer)
            await writer.drain()
        return request.keep_alive

    def _answer(self, status: int, body: bytes, keep_alive: bool) -> bytes:
        return self._head(status, f"Content-Length: {len(body)}", keep_alive) + body

    def _head(self, status: int, framing: str, keep_alive: bool) -> bytes:
        connection = "keep-alive" if keep_alive else "close"
        return (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
            f"Content-Type: text/plain\r\n"
            f"X-Backend: {self._name}\r\n"
            f"Connection: {connection}\r\n"
            f"{framing}\r\n\r\n"
        ).encode()

    async def _stream(self, request: Request) -> AsyncIterator[bytes]:
        seconds, chunks = slow_parameters(request.query)
        yield self._head(200, "Transfer-Encoding: chunked", request.keep_alive)
        if request.method == "HEAD":
            return
        data = f"{self._name}\n".encode()
        for _ in range(chunks):
            await asyncio.sleep(seconds / chunks)
            yield b"%x\r\n%s\r\n" % (len(data), data)
        yield b"0\r\n\r\n"


async def serve(name: str, host: str | None, port: int) -> None:
    """Serve until SIGTERM or SIGINT; ``host`` None: every IPv4 and IPv6 address."""
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leaving.set)
    server = await asyncio.start_server(
        Server(name).serve_connection, host, port, limit=MAX_HEADER_BYTES, backlog=1024
    )
    print(f"{name} serves port {port}", flush=True)
    await leaving.wait()
    server.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lbctl.lab.server", description=__doc__)
    parser.add_argument("--name", required=True, help="what the server answers with")
    parser.add_argument("--host", default=None, help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=80)
    options = parser.parse_args()
    asyncio.run(serve(options.name, options.host, options.port))


if __name__ == "__main__":
    main()
