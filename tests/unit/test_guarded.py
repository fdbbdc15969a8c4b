"""Strangers at a port: few of them, and none who says nothing for long."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from agent import guarded
from agent.guarded import MOST_CONNECTIONS, MOST_OF_A_SOURCE
from tests.unit.page.test_server import certificate

ASKS = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"
type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute for whoever has something to say, however slow the host is."""
    monkeypatch.setattr(guarded, "HEAD_S", 60.0)


def application() -> web.Application:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text="here")

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=bytes(64 << 20))

    app = web.Application()

    async def slow(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(0.3)
        return web.Response(text="done")

    app.add_routes([web.get("/page", page), web.get("/large", large), web.post("/slow", slow)])
    return app


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[int]:
    runner = guarded.runner(application(), 0.1)
    await runner.setup()
    assert runner.server is not None
    listener = await asyncio.get_running_loop().create_server(
        guarded.Guarded(runner.server), "127.0.0.1", 0
    )
    try:
        yield int(listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        await runner.cleanup()


async def connect(port: int, source: int = 1) -> Streams:
    local = (f"127.0.0.{source}", 0)
    return await asyncio.open_connection("127.0.0.1", port, local_addr=local)


async def answer(streams: Streams, asks: bytes = ASKS) -> bytes:
    """The head of what comes; empty: the connection was closed."""
    reader, writer = streams
    try:
        writer.write(asks)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    return head


def run(work: Callable[[int], Awaitable[None]]) -> None:
    async def around() -> None:
        async with serving() as port:
            await work(port)

    asyncio.run(around())


def test_one_source_has_few_connections_and_the_others_are_served() -> None:
    async def work(port: int) -> None:
        idle = [await connect(port) for _ in range(MOST_OF_A_SOURCE)]
        assert await answer(await connect(port)) == b""
        assert b"200" in await answer(await connect(port, source=2))
        idle[0][1].close()
        while not await answer(await connect(port)):  # until the end has come through
            pass
        assert b"200" in await answer(idle[1])

    run(work)


def test_in_all_there_are_few() -> None:
    async def work(port: int) -> None:
        sources = [1 + n // MOST_OF_A_SOURCE for n in range(MOST_CONNECTIONS)]
        idle = [await connect(port, source) for source in sources]
        assert await answer(await connect(port, source=200)) == b""
        assert b"200" in await answer(idle[-1])

    run(work)


@pytest.mark.parametrize("said", [b"", b"GET /page HTTP/1.1\r\nHost:"])
def test_who_does_not_say_what_he_wants_is_left(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    async def work(port: int) -> None:
        monkeypatch.setattr(guarded, "HEAD_S", 0.05)
        reader, writer = await connect(port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        for head_s in (0.05, 1.0, 10.0):  # a slow host needs more until it has asked
            monkeypatch.setattr(guarded, "HEAD_S", head_s)
            kept = await connect(port)
            if b"200" in await answer(kept):
                break
        await asyncio.sleep(2 * head_s)
        assert b"200" in await answer(kept), "between two requests there is time"
        kept[1].write(said or b"G")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(kept[0].read(), 60) == b""

    run(work)


def test_who_does_not_read_his_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = functools.partial(guarded.Limits, read_s=0.05)
    monkeypatch.setattr(guarded, "Limits", impatient)

    async def work(port: int) -> None:
        held = [await connect(port) for _ in range(MOST_OF_A_SOURCE)]
        for _, writer in held:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(ASKS.replace(b"page", b"large"))
        while not await answer(await connect(port)):  # noqa: ASYNC110 (until they are cut off)
            await asyncio.sleep(0.01)
        assert held  # which would be closed if nobody had them

    run(work)


def test_an_order_whose_body_comes_alone_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is compiled for it, say: an operator's order was broken off after five seconds."""
    monkeypatch.setattr(guarded, "HEAD_S", 0.05)
    patient = functools.partial(guarded.Limits, awaits_head=False)
    monkeypatch.setattr(guarded, "Limits", patient)

    async def work(port: int) -> None:
        reader, writer = await connect(port)
        writer.write(b"POST /slow HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        assert b"200" in await answer((reader, writer), b"{}")

    run(work)


def test_with_tls_handshakes_that_are_under_way_count_and_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    async def greet(port: int, source: int) -> bytes:
        """The answer to a request with TLS; empty: the connection was closed."""
        local = (f"127.0.0.{source}", 0)
        try:
            streams = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, local_addr=local
            )
        except (ConnectionError, ssl.SSLError):
            return b""
        return await answer(streams)

    async def work() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        serving = await guarded.serve_tls(application(), sock, context)
        port = sock.getsockname()[1]
        silent = [await connect(port) for _ in range(MOST_OF_A_SOURCE)]  # who never greet
        assert await greet(port, 1) == b""
        assert b"200" in await greet(port, 2)
        monkeypatch.setattr(guarded, "HEAD_S", 0.05)
        others = [await connect(port, 3) for _ in range(MOST_OF_A_SOURCE)]
        for reader, _ in others:
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 60) == b""
        monkeypatch.setattr(guarded, "HEAD_S", 60.0)
        async with asyncio.timeout(60):
            while not await greet(port, 3):  # until their ends have come through
                pass
        plain = await connect(port, 4)
        assert await answer(plain) == b""  # no TLS, and nobody is hurt by it
        assert b"200" in await greet(port, 4)
        assert silent  # which would be closed if nobody had them
        await serving.stop()
        sock.close()

    asyncio.run(work())


def test_a_head_that_comes_in_pieces_is_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(port: int) -> None:
        streams = await connect(port)
        for at in range(len(ASKS) - 1):
            streams[1].write(ASKS[at : at + 1])
            await streams[1].drain()
        assert b"200" in await answer(streams, ASKS[-1:])
        monkeypatch.setattr(guarded, "HEAD_S", 0.0)
        assert b"200" in await answer(streams)

    run(work)


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0\r\n\r\n"]
)
def test_what_is_no_http_leaves_nothing_in_the_log(
    caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    async def work(port: int) -> None:
        for _ in range(3):
            reader, writer = await connect(port)
            writer.write(said)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 60)
            writer.close()

    run(work)
    assert caplog.records == []
