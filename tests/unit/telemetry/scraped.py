"""Servers on loopback that behave as a test says, and a monitor that scrapes them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address

from agent.model import BackendRef, Telemetry, TelemetryKind
from agent.telemetry.asks import Question, Target, Topic
from agent.telemetry.monitor import Key, TelemetryMonitor
from agent.telemetry.report import Failure, Report

KEY: Key = (BackendRef("chat", "gpu-1"), Topic.ENGINE)
FAST = Telemetry(TelemetryKind.TGI, interval_s=0.02, timeout_s=60.0)
IMPATIENT = Telemetry(TelemetryKind.TGI, interval_s=0.02, timeout_s=0.25)

type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def page(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join([*head, b"", body])


async def request(reader: asyncio.StreamReader) -> bool:
    """One request is read; False: the client has left."""
    try:
        await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    return True


class Engine:
    """Answers each request with the next of its answers, the last one for ever."""

    def __init__(self, *answers: bytes, then_close: bool = False) -> None:
        self._answers = list(answers)
        self._then_close = then_close
        self.connections = 0
        self.requests = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await request(reader):
            self.requests += 1
            writer.write(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
            if self._then_close:
                break
        writer.close()


class Scrapes:
    """A running monitor, and what it told."""

    def __init__(self) -> None:
        self.asked: list[Key] = []
        self.told: list[tuple[Key, Report | Failure, float, float]] = []
        self.paces: list[float] = []
        self._more = asyncio.Event()
        self.monitor = TelemetryMonitor(self.asked.append, self._on_report)

    def _on_report(
        self, key: Key, report: Report | Failure, asked: float, got: float, pace: float
    ) -> None:
        self.told.append((key, report, asked, got))
        self.paces.append(pace)
        self._more.set()

    @property
    def reports(self) -> list[Report | Failure]:
        return [told[1] for told in self.told]

    async def until(self, enough: Callable[[], bool]) -> None:
        """Until enough was told; the test fails if that takes long."""
        async with asyncio.timeout(120):
            while not enough():
                self._more.clear()
                await self._more.wait()


async def scrape(
    serve: Serve,
    reports: int = 1,
    question: Question = FAST,
    *,
    tls: ssl.SSLContext | None = None,
    verify_tls: bool = True,
    port: int | None = None,
) -> Scrapes:
    """What a monitor tells of a server that behaves like this; at ``port``, if it is not there."""
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def run() -> None:
            with suppress(ConnectionError):
                await serve(reader, writer)

        tasks.add(asyncio.create_task(run()))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    port = port or server.sockets[0].getsockname()[1]
    scrapes = Scrapes()
    scrapes.monitor.set_targets(
        {KEY: Target(ip_address("127.0.0.1"), port, question, verify_tls=verify_tls)}
    )
    running = asyncio.create_task(scrapes.monitor.run())
    try:
        await scrapes.until(lambda: len(scrapes.told) >= reports)
    finally:
        server.close()
        for task in (running, *tasks):
            task.cancel()
        await asyncio.gather(running, *tasks, return_exceptions=True)
    return scrapes
