"""``python -m bench.scrapes``: the share of one core that it takes to read the engines' load.

A server in a process of its own plays the engines: it sends vLLM pages of realistic size as uvicorn
sends them (the head, then one chunk). Only the agent's side runs in this process, whose CPU time is
counted.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from multiprocessing.connection import Connection

import click

from agent.model import BackendRef, Telemetry, TelemetryKind
from agent.telemetry.asks import Target, Topic
from agent.telemetry.monitor import Key, TelemetryMonitor
from agent.telemetry.report import EngineReport, Failure, Report
from lbctl.lab.engine.model import H100, Engine
from lbctl.lab.engine.page import Histogram, Page

_RUNNING = b"vllm:num_requests_running{"
_BOUNDS = tuple(0.001 * 2**power for power in range(20))


@dataclass(frozen=True, slots=True)
class Result:
    """What one run counted, and the time that it took."""

    page_bytes: int
    engines: int
    reports: int
    failures: int
    wall_s: float
    user_s: float
    system_s: float

    @property
    def core(self) -> float:
        """The share of one core that was used."""
        return (self.user_s + self.system_s) / self.wall_s


class _Engine(asyncio.Protocol):
    """Answers each request with its page, with another figure each time."""

    def __init__(self, page: bytes) -> None:
        value = page.index(b"} ", page.index(b"\n" + _RUNNING)) + 2
        self._before, self._after = page[:value], page[page.index(b"\n", value) :]
        self._asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self._asked += 1
        body = b"%s%d.0%s" % (self._before, self._asked % 200, self._after)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: uvicorn\r\n"
            b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self._transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))


def vllm_page(at_least_bytes: int) -> bytes:
    """Return a page of the simulated engine, of at least this size.

    It is filled up with the histograms that HTTP servers keep for each handler.
    """
    parts = [Page().text(Engine(H100)).decode()]
    while sum(map(len, parts)) < at_least_bytes:
        name = f"http_request_duration_seconds_of_handler_{len(parts)}"
        parts.append(Histogram(name, "Time of requests.", _BOUNDS).text())
    return "".join(parts).encode()


def _serve(page: bytes, ready: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Engine(page), "0.0.0.0", 0)
        ready.send(server.sockets[0].getsockname()[1])
        async with server:
            await server.serve_forever()

    asyncio.run(serve())


def measure(page: bytes, engines: int, interval_s: float, seconds: float) -> Result:
    """Scrape ``engines`` engines for ``seconds``."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(page, theirs), daemon=True
    )
    process.start()
    try:
        if not ours.poll(20):
            raise click.ClickException("the engines did not start")
        return asyncio.run(_scrape(len(page), ours.recv(), engines, interval_s, seconds))
    finally:
        process.terminate()
        process.join()


async def _scrape(
    page_bytes: int, port: int, engines: int, interval_s: float, seconds: float
) -> Result:
    reports = failures = 0

    def on_report(
        _key: Key, report: Report | Failure, _asked: float, _got: float, _pace: float
    ) -> None:
        nonlocal reports, failures
        if isinstance(report, EngineReport) and report.queue is not None:
            reports += 1
        else:
            failures += 1

    monitor = TelemetryMonitor(lambda _key: None, on_report)
    question = Telemetry(TelemetryKind.VLLM, interval_s=interval_s)
    monitor.set_targets(
        {
            (BackendRef("bench", f"engine-{number}"), Topic.ENGINE): Target(
                IPv4Address(f"127.0.{1 + number // 250}.{1 + number % 250}"), port, question
            )
            for number in range(engines)
        }
    )
    task = asyncio.create_task(monitor.run())
    await asyncio.sleep(1)  # until the connections are made
    reports = failures = 0
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(seconds)
    wall_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return Result(
        page_bytes,
        engines,
        reports,
        failures,
        wall_s,
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
    )


@click.command()
@click.option("--engines", default=100, show_default=True)
@click.option("--interval", "interval_s", default=0.1, show_default=True, help="Seconds.")
@click.option("--seconds", default=10.0, show_default=True, help="How long each case runs.")
@click.option("--kilobytes", default=(45, 100, 300), multiple=True, help="Sizes of the page.")
def main(engines: int, interval_s: float, seconds: float, kilobytes: tuple[int, ...]) -> None:
    """Measure what reading the engines' load costs the agent."""
    print("| page | engines | every | reports/s | failures | user | system | share of one core |")
    print("|-|-|-|-|-|-|-|-|")
    for size in kilobytes:
        result = measure(vllm_page(size * 1000), engines, interval_s, seconds)
        rate = result.reports / result.wall_s
        print(
            f"| {result.page_bytes / 1000:.0f} kB | {engines} | {interval_s * 1000:.0f} ms "
            f"| {rate:.0f} | {result.failures} | {result.user_s / result.wall_s:.1%} "
            f"| {result.system_s / result.wall_s:.1%} | {result.core:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
