"""A small HTTP server that stands in for a backend: it answers with its own name.

``/`` answers at once, ``/slow?seconds=3&chunks=30`` streams the answer as an engine streams
tokens, ``/health`` is for the balancer's checks. Connections are kept alive. What behaves like an
engine, with prompts and a queue, is ``lbctl.lab.engine.server``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Sequence

from lbctl.lab.http import (
    CHUNKED,
    LAST_CHUNK,
    MAX_HEADER_BYTES,
    BadRequestError,
    Request,
    answer,
    answer_head,
    chunk,
    read_request,
)

MAX_SECONDS = 3600.0
MAX_CHUNKS = 100_000


def slow_parameters(query: dict[str, list[str]]) -> tuple[float, int]:
    """Return the seconds and the number of chunks of a streamed answer; raises BadRequestError."""
    try:
        seconds = float(query.get("seconds", ["1"])[0])
        chunks = int(query.get("chunks", ["10"])[0])
    except ValueError as error:
        raise BadRequestError(400) from error
    if not (0 <= seconds <= MAX_SECONDS and 1 <= chunks <= MAX_CHUNKS):
        raise BadRequestError(400)
    return seconds, chunks


class Connection(asyncio.StreamReaderProtocol):
    """A client's connection; ``on_gone`` is called when the client closes it."""

    def __init__(self, server: Server) -> None:
        super().__init__(asyncio.StreamReader(limit=MAX_HEADER_BYTES), server.serve_connection)
        self.on_gone: Callable[[], None] | None = None

    def eof_received(self) -> bool | None:
        """Treat the client's half-close as a close; real half-closes are rare enough."""
        self._gone()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle that the client has reset the connection, or that we have closed it."""
        self._gone()
        super().connection_lost(exc)

    def _gone(self) -> None:
        if self.on_gone is not None:
            self.on_gone()


class Server:
    """Answers requests under one name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer the requests of one connection until either side closes it."""
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            keep_alive = True
            while keep_alive:
                try:
                    request, body = await read_request(reader)
                    await self.respond(request, body, writer)
                    keep_alive = request.keep_alive
                except BadRequestError as error:
                    keep_alive = False
                    writer.write(self.refusal(error))
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def refusal(self, error: BadRequestError) -> bytes:
        """Return the answer to a request that cannot be served."""
        return answer(self.name, error.status, f"{error}\n".encode(), keep_alive=False)

    async def respond(self, request: Request, _body: bytes, writer: asyncio.StreamWriter) -> None:
        """Answer one request; raises BadRequestError."""
        if request.path == "/slow":
            async for part in self._stream(request):
                writer.write(part)
                await writer.drain()
        else:
            body = b"ok\n" if request.path == "/health" else f"{self.name}\n".encode()
            whole = answer(self.name, 200, body, request.keep_alive)
            writer.write(whole.removesuffix(body) if request.method == "HEAD" else whole)

    async def _stream(self, request: Request) -> AsyncIterator[bytes]:
        seconds, chunks = slow_parameters(request.query)
        yield answer_head(self.name, 200, CHUNKED, request.keep_alive)
        if request.method == "HEAD":
            return
        data = f"{self.name}\n".encode()
        for _ in range(chunks):
            await asyncio.sleep(seconds / chunks)
            yield chunk(data)
        yield LAST_CHUNK


async def serve(server: Server, host: str | None, ports: Sequence[int]) -> None:
    """Serve until SIGTERM or SIGINT; ``host`` None: every IPv4 and IPv6 address."""
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leaving.set)
    listeners = [
        await loop.create_server(lambda: Connection(server), host, port, backlog=1024)
        for port in ports
    ]
    print(f"{server.name} serves port {', '.join(map(str, ports))}", flush=True)
    await leaving.wait()
    for listener in listeners:
        listener.close()


def parser(module: str, about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every server of the lab has."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    made.add_argument("--name", required=True, help="the name with which the server answers")
    made.add_argument("--host", default=None, help="address to listen on (default: all)")
    made.add_argument("--port", type=int, action="append", help="may be given again (default: 80)")
    return made


def main() -> None:
    """Run the command line."""
    options = parser("lbctl.lab.server", __doc__).parse_args()
    asyncio.run(serve(Server(options.name), options.host, options.port or [80]))


if __name__ == "__main__":
    main()
