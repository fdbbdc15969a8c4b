"""Owns a client connection to a server of the lab; every step is bounded.

It also has what the load generators share: the options for targets and duration, one JSON line
per record for a process that reads along, and leaving on SIGTERM and SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from lbctl.lab.figures import Record, to_line
from lbctl.lab.http import MAX_HEADER_BYTES

LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class Target:
    """An address and port to connect to."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer."""

    status: int
    backend: str | None
    length: int | None  # None: chunked


class ProtocolError(Exception):
    """The answer is not one that a server of the lab sends."""


def parse_target(text: str) -> Target:
    """Read ``10.99.0.100:80`` or ``[fd99::100]:80``; raises ArgumentTypeError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
        target = Target(host, int(port))
    except ValueError:
        target = None
    if target is None or not 1 <= target.port <= LAST_PORT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not ADDRESS:PORT, as in 10.99.0.100:80 or [fd99::100]:80"
        )
    return target


def number[N: (int, float)](kind: type[N], *, or_zero: bool = False) -> Callable[[str], N]:
    """Return an option's type: a finite number above zero, or also zero."""
    wanted = f"a {'whole ' if kind is int else ''}number {'of 0 or more' if or_zero else 'above 0'}"

    def read(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        # Also false for nan.
        if not (0 < value < math.inf or (or_zero and value == 0)):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return read


def parser(module: str, about: str | None, timeout_s: float) -> argparse.ArgumentParser:
    """Return a parser with the options of every load generator; ``timeout_s`` is a default."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    add = made.add_argument
    add("--target", action="append", required=True, type=parse_target, help="ADDRESS:PORT")
    add(
        "--timeout",
        type=number(float),
        default=timeout_s,
        help="seconds without an answer, or its next part, after which it has failed",
    )
    add("--duration", type=number(float), help="seconds; default: until interrupted")
    return made


def parse_head(head: bytes) -> Head:
    """Read the head of an answer; raises ProtocolError."""
    status_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    chunked = headers.get("transfer-encoding") == "chunked"
    try:
        status = int(status_line.split(" ")[1])
        length = None if chunked else int(headers["content-length"])
    except (IndexError, KeyError, ValueError) as error:
        raise ProtocolError(f"unreadable answer {status_line[:60]!r}") from error
    return Head(status, headers.get("x-backend"), length)


class Connection:
    """A connection to a target; every step is bounded by the timeout."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Connection:
        async with asyncio.timeout(self._timeout_s):
            self._reader, self._writer = await asyncio.open_connection(
                self._target.host, self._target.port, limit=MAX_HEADER_BYTES
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await self._writer.wait_closed()

    async def ask(self, path: str, body: bytes | None = None) -> Head:
        """Send a request, a POST if there is a body, and read the head of the answer."""
        reader, writer = self._streams()
        method = "GET" if body is None else "POST"
        framing = "" if body is None else f"Content-Length: {len(body)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._target}\r\n{framing}\r\n"
        async with asyncio.timeout(self._timeout_s):
            writer.write(head.encode() + (body or b""))
            await writer.drain()
            return parse_head(await reader.readuntil(b"\r\n\r\n"))

    async def get(self, path: str) -> Head:
        """Send a request and read the whole answer."""
        head = await self.ask(path)
        reader, _ = self._streams()
        async with asyncio.timeout(self._timeout_s):
            await reader.readexactly(head.length or 0)
        return head

    async def read_chunk(self) -> bytes:
        """Return the next chunk of a chunked answer; empty: there are no more."""
        reader, _ = self._streams()
        async with asyncio.timeout(self._timeout_s):
            size = int(await reader.readuntil(b"\r\n"), 16)
            return (await reader.readexactly(size + 2))[:-2]

    def _streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            raise ProtocolError("the connection is not open")
        return self._reader, self._writer


FAILURES = (OSError, TimeoutError, asyncio.IncompleteReadError, ProtocolError, ValueError)


def describe(error: BaseException) -> str:
    """Return an exception as a word or two: refused, reset, timeout, closed."""
    match error:
        case TimeoutError():
            return "timeout"
        case ConnectionRefusedError():
            return "refused"
        case ConnectionResetError() | BrokenPipeError():
            return "reset"
        case asyncio.IncompleteReadError():
            return "closed"
        case _:
            return str(error) or type(error).__name__


def write(record: Record) -> None:
    """Write one record and flush it, because another process may be reading along."""
    print(to_line(record), flush=True)


def leaving_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    leaving = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leaving.set)
    return leaving


async def within(timeout_s: float, event: Awaitable[object]) -> None:
    """Wait for an event, at most ``timeout_s``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, timeout_s)):
            await event


def run(load: Coroutine[Any, Any, None]) -> None:
    """Run a load; end quietly if the reader goes away."""
    try:
        asyncio.run(load)
    except* BrokenPipeError:
        # Without this, Python would report the error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
