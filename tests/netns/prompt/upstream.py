"""An HTTP/1.1 server that computes as long as it is told, and logs when it did what.

A request's path is its name, its query says what to do: ``delay_ms`` until the first byte of the
answer; ``chunks``, ``gap_ms`` between them, and ``size`` of each (one chunk: an ordinary body with
a length, more: chunked, as engines stream tokens); ``head_first``: the head of a chunked answer
at once, as web frameworks of engines do, and ``delay_ms`` until the first chunk; ``interim_ms``:
until a 100-continue that is asked for; ``end_with_fin``, ``end_with_rst``: hang up instead of
answering. Connections are kept alive, pipelined requests are answered one after the other.

The log has one JSON object a line: ``id``, ``event`` (received, first, done) and ``at_ns`` of
CLOCK_MONOTONIC, which all namespaces of a host share. ``received`` is logged after the request's
last byte was read and ``first`` before the answer's first byte is written, so that whatever is
seen between the two was seen while the server was computing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import time
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# As long as vLLM's: it does not fit into what lies in the first page of a packet under tc.
_HEAD = (
    "HTTP/1.1 200 OK\r\ndate: Fri, 27 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    "x-request-id: 6f1c2d7e-0a4b-4c55-9d38-2b7f0e91a3c4\r\n"
)
BACKLOG = 64


class Log:
    """Lines of events, each written at once."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, ident: str, event: str, **more: int) -> None:
        """Add a line with the time of this moment."""
        line = {"id": ident, "event": event, "at_ns": time.monotonic_ns(), **more}
        os.write(self._fd, (json.dumps(line) + "\n").encode())


@dataclass(frozen=True, slots=True)
class Order:
    """What a request wants."""

    ident: str
    delay_s: float
    chunks: int
    gap_s: float
    size: int
    interim_s: float
    head_first: bool
    ends_with_fin: bool
    ends_with_rst: bool

    @classmethod
    def of(cls, target: str) -> Order:
        """From the target of a request line."""
        url = urlsplit(target)
        query = parse_qs(url.query)

        def number(key: str, default: int) -> int:
            return int(query.get(key, [str(default)])[0])

        return cls(
            url.path.strip("/"),
            number("delay_ms", 0) / 1000,
            number("chunks", 1),
            number("gap_ms", 0) / 1000,
            number("size", 64),
            number("interim_ms", 0) / 1000,
            bool(number("head_first", 0)),
            bool(number("end_with_fin", 0)),
            bool(number("end_with_rst", 0)),
        )


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Log
) -> Order:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    order = Order.of(request_line.split(" ")[1])
    if headers.get("expect", "").lower() == "100-continue":
        await asyncio.sleep(order.interim_s)
        log.write(order.ident, "interim")
        writer.write(CONTINUE)
    await reader.readexactly(int(headers.get("content-length", "0")))
    return order


async def _hang_up(order: Order, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(order.delay_s)
    if order.ends_with_rst:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    raise ConnectionAbortedError


async def _answer(order: Order, writer: asyncio.StreamWriter, log: Log) -> None:
    body = b"x" * order.size
    if order.chunks == 1:
        head = f"{_HEAD}content-length: {order.size}\r\ncontent-type: application/json\r\n\r\n"
        pieces = [head.encode() + body]
    else:
        kind = "content-type: text/event-stream; charset=utf-8\r\n"
        head = f"{_HEAD}{kind}transfer-encoding: chunked\r\n"
        chunk = b"%x\r\n%s\r\n" % (order.size, body)
        pieces = [head.encode() + b"\r\n" + chunk, *[chunk] * (order.chunks - 1)]
        pieces[-1] += b"0\r\n\r\n"
        if order.head_first:
            writer.write(pieces[0][: -len(chunk)])
            pieces[0] = chunk
    await asyncio.sleep(order.delay_s)
    log.write(order.ident, "first")
    for turn, piece in enumerate(pieces):
        if turn:
            await asyncio.sleep(order.gap_s)
        writer.write(piece)
        await writer.drain()
    log.write(order.ident, "done")


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Log) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            order = await _read_request(reader, writer, log)
            log.write(order.ident, "received")
            if order.ends_with_fin or order.ends_with_rst:
                await _hang_up(order, writer)
            await _answer(order, writer, log)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _run(ports: list[int], log: Log) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve(reader, writer, log)

    servers = [
        await asyncio.start_server(connected, None, port, backlog=BACKLOG, limit=1 << 16)
        for port in ports
    ]
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    for server in servers:
        server.close()


def main() -> None:
    """Serve until a signal ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", required=True)
    parser.add_argument("ports", type=int, nargs="+")
    options = parser.parse_args()
    asyncio.run(_run(options.ports, Log(options.log)))


if __name__ == "__main__":
    main()
