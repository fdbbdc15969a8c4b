"""One prober and its servers, among them the worst; most of what it does is in test_probe.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.errors import NetworkError
from agent.health.exchange import MOST_BYTES, Exchange
from agent.health.monitor import MAX_PROBES_AT_ONCE, HealthMonitor, Target
from agent.health.patience import Patience
from agent.health.prober import Prober, Server
from agent.health.rules import ProbeResult
from agent.model import BackendRef, CheckKind, Health, HealthCheck

LOOPBACK = ip_address("127.0.0.1")
HTTP = HealthCheck(kind=CheckKind.HTTP, timeout_s=20.0, interval_s=0.02)
BARE = HealthCheck(kind=CheckKind.TCP, timeout_s=20.0, interval_s=0.02)
TCP = replace(BARE, send="PING\r\n", expect="PONG")
KINDS = pytest.mark.parametrize("check", [HTTP, TCP], ids=["http", "tcp"])
REF = BackendRef("chat", "gpu-1")

type Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def play(story: Callable[[Prober], Awaitable[None]]) -> None:
    """Run a story, which leaves no connection behind."""

    async def run() -> None:
        patience = Patience()
        prober = Prober(patience)
        with patience.watching(), prober.running():
            await story(prober)
            assert not prober._talks
            assert not patience._waits

    asyncio.run(run())


def ask(check: HealthCheck, client: Client) -> ProbeResult:
    found: list[ProbeResult] = []

    async def story(prober: Prober) -> None:
        async with served(client) as port:
            found.append(await prober.ask(Server(check, LOOPBACK, port)))

    play(story)
    return found[0]


@contextlib.asynccontextmanager
async def served(client: Client) -> AsyncIterator[int]:
    server = await asyncio.start_server(client, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A server that takes no connection: those before ours fill its queue."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        contextlib.ExitStack() as waiting,
    ):
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield full.getsockname()[1]


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@KINDS
def test_a_server_that_sends_a_byte_now_and_then_has_no_more_time_than_others(
    check: HealthCheck,
) -> None:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for byte in b"HTTP/1.1 100 Continue\r\n" + b"x" * 10_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)

    result = ask(replace(check, timeout_s=0.3), drip)
    assert not result.ok
    assert result.detail.startswith("no answer within 300 ms")
    assert (result.silent, result.busy) == (False, True)


@KINDS
def test_of_an_answer_without_end_a_quarter_of_a_megabyte_is_read(check: HealthCheck) -> None:
    sent = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 100 Continue\r\n")
            for _ in range(100 << 4):  # 100 MB
                writer.write(b"X: " + b"x" * (1 << 16) + b"\r\n")
                await writer.drain()
                sent += 1 << 16

    result = ask(check, flood)
    assert not result.ok
    if check is HTTP:
        assert result.detail == "the answer is not HTTP"
    else:
        assert int(result.detail.split()[0]) <= MOST_BYTES + 4096
        assert result.detail.endswith("without 'PONG'")
    assert sent < 50 << 20, "the rest was not waited for"


def test_a_head_without_end_does_not_matter_after_its_status() -> None:
    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(b"X: " + b"x" * (1 << 16) + b"\r\n")
                await writer.drain()

    assert ask(HTTP, flood).ok


@KINDS
def test_a_server_that_resets_says_so(check: HealthCheck) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    result = ask(check, rude)
    assert (result.ok, result.silent, result.detail) == (False, False, "connection reset")


def test_a_request_larger_than_the_buffers_arrives_whole() -> None:
    received = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        while received < 8 << 20:
            received += len(await reader.read(1 << 20))
        writer.write(b"PONG")
        writer.close()

    assert ask(replace(TCP, send="x" * (8 << 20)), slow).ok
    assert received == 8 << 20


def test_a_bare_check_is_content_with_a_server_that_closes_at_once() -> None:
    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    result = ask(BARE, close)
    assert result.ok
    assert result.detail.startswith("connected in ")


def test_out_of_descriptors_is_no_verdict_and_passes() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async def story(prober: Prober) -> None:
        async with served(answer) as port:
            server = Server(HTTP, LOOPBACK, port)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(0)  # the lowest number that is free
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                with pytest.raises(NetworkError, match="Too many open files"):
                    await prober.ask(server)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert (await prober.ask(server)).ok

    play(story)


def test_a_defect_in_one_check_does_not_reach_the_others() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    def defect(_received: bytes, _ended: bool, _took_s: float) -> None:
        raise ZeroDivisionError

    async def story(prober: Prober) -> None:
        async with served(answer) as port:
            servers = [Server(HTTP, LOOPBACK, port) for _ in range(9)]
            servers[4].exchange = Exchange(servers[4].exchange.request, defect)
            found = await asyncio.gather(*map(prober.ask, servers), return_exceptions=True)
        broken = found.pop(4)
        assert isinstance(broken, ZeroDivisionError)
        assert all(isinstance(each, ProbeResult) and each.ok for each in found), found

    play(story)


def test_events_of_a_closed_connection_are_not_taken_for_those_of_the_next() -> None:
    """A child that was just forked may hold the socket for a while, so that it still has events."""
    speak = threading.Event()

    async def late(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await until(speak.is_set)
        writer.write(b"too late")
        await writer.drain()

    async def story(prober: Prober) -> None:
        with deaf() as dead:
            async with served(late) as port:
                first = asyncio.create_task(prober.ask(Server(HTTP, LOOPBACK, port)))
                await until(lambda: any(talk.is_connected for talk in prober._talks.values()))
                (number,) = prober._talks
                held = os.dup(number)
                first.cancel()
                await asyncio.wait([first])
                server = Server(replace(BARE, timeout_s=0.3), LOOPBACK, dead)
                second = asyncio.create_task(prober.ask(server))
                await until(lambda: bool(prober._talks))
                assert list(prober._talks) == [number]
                speak.set()
                result = await second
                os.close(held)
        assert result.silent, result

    play(story)


@KINDS
def test_a_target_that_is_removed_while_it_is_asked_leaves_nothing_behind(
    check: HealthCheck,
) -> None:
    told: list[object] = []

    async def run() -> None:
        monitor = HealthMonitor(lambda *all_: told.append(all_))
        running = asyncio.create_task(monitor.run())
        async with served(mute) as port:
            await asyncio.sleep(0)
            talks = monitor._prober._talks
            gc.collect()  # what an earlier test has left is closed now, and not in the middle
            before = open_files()
            monitor.change({REF: Target(check, LOOPBACK, port)}, ())
            await until(lambda: any(talk.is_connected for talk in talks.values()))
            monitor.change({}, [REF])
            await until(lambda: not talks)
            await until(lambda: open_files() <= before)
            assert monitor._turns.room == MAX_PROBES_AT_ONCE
            assert not monitor._patience._waits
            assert not running.done()
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(run())
    assert told == []


def test_an_end_of_the_agent_waits_for_no_server() -> None:
    async def run() -> None:
        monitor = HealthMonitor(lambda *_: None)
        gc.collect()
        before = open_files()
        async with served(mute) as port:
            running = asyncio.create_task(monitor.run())
            checks = [replace(HTTP, path=f"/{n}") for n in range(50)]  # or they would be shared
            targets = {
                BackendRef("chat", f"gpu-{n}"): Target(check, LOOPBACK, port)
                for n, check in enumerate(checks)
            }
            monitor.change(targets, ())
            await until(lambda: len(monitor._prober._talks) == len(checks))
            running.cancel()
            async with asyncio.timeout(10):
                await asyncio.wait([running])
            assert not monitor._prober._talks
        await until(lambda: open_files() <= before)

    asyncio.run(run())


def test_a_dead_server_goes_down_beside_one_that_answers() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    other = BackendRef("chat", "gpu-2")
    silences: list[object] = []

    async def run() -> None:
        monitor = HealthMonitor(lambda *_: None, silences.append)
        running = asyncio.create_task(monitor.run())
        async with served(answer) as port:
            with deaf() as dead:
                short = replace(HTTP, timeout_s=0.2)
                targets = {REF: Target(HTTP, LOOPBACK, port), other: Target(short, LOOPBACK, dead)}
                monitor.change(targets, ())
                await until(lambda: monitor.status(REF).health is Health.UP)
                await until(lambda: monitor.status(other).health is Health.DOWN)
                assert monitor.status(other).reason.startswith("no answer within 200 ms")
                assert silences
                assert monitor.status(REF).health is Health.UP
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(run())
