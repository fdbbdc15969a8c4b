"""Probes against real servers on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web

from agent.errors import NetworkError
from agent.health import probe as probe_module
from agent.health import talks
from agent.health.patience import Patience
from agent.health.probe import probe
from agent.health.rules import ProbeResult
from agent.model import CheckKind, HealthCheck

LOOPBACK = ip_address("127.0.0.1")
TCP = HealthCheck(kind=CheckKind.TCP, timeout_s=20.0)
HTTP = HealthCheck(kind=CheckKind.HTTP, timeout_s=20.0, path="/health")
HTTPS = HealthCheck(kind=CheckKind.HTTPS, timeout_s=20.0, host="gpu.example")

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"

type Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
type Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(
    client: Client, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    server = await asyncio.start_server(client, host, 0, ssl=tls)
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def http_server(
    handler: Handler,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A port that nobody else gets, and where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def status_of(status: int) -> Handler:
    async def handler(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, headers={"Location": "http://127.0.0.1:1/"})

    return handler


def ask(check: HealthCheck, handler: Handler) -> ProbeResult:
    async def run() -> ProbeResult:
        async with http_server(handler) as port:
            return await probe(check, LOOPBACK, port, Patience())

    return asyncio.run(run())


def ask_raw(check: HealthCheck, client: Client) -> ProbeResult:
    async def run() -> ProbeResult:
        async with raw_server(client) as port:
            return await probe(check, LOOPBACK, port, Patience())

    return asyncio.run(run())


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def babbling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"SSH-2.0-OpenSSH_10.0\r\n\r\n")
    writer.close()


def test_tcp_passes_when_something_listens() -> None:
    result = ask_raw(TCP, silent)
    assert result.ok
    assert result.detail.startswith("connected in ")


def test_tcp_says_connection_refused() -> None:
    with refusing() as port:
        result = asyncio.run(probe(TCP, LOOPBACK, port, Patience()))
    assert (result.ok, result.detail) == (False, "connection refused")


def test_checks_over_ipv6() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    async def run() -> ProbeResult:
        async with raw_server(answer, host="::1") as port:
            return await probe(HTTP, ip_address("::1"), port, Patience())

    result = asyncio.run(run())
    assert result.ok
    assert result.detail.startswith("HTTP 204 in ")


def test_the_check_s_own_port_goes_before_the_service_s() -> None:
    async def run() -> ProbeResult:
        async with raw_server(silent) as port:
            check = HealthCheck(kind=CheckKind.TCP, port=port, timeout_s=20.0)
            return await probe(check, LOOPBACK, 1, Patience())

    assert asyncio.run(run()).ok


@pytest.mark.parametrize(
    ("status", "expect", "ok"),
    [
        (200, ((200, 399),), True),
        (302, ((200, 399),), True),
        (404, ((200, 399),), False),
        (503, ((200, 200), (500, 599)), True),
        (204, ((200, 200),), False),
    ],
)
def test_http_status_is_compared_with_what_is_expected(
    status: int, expect: tuple[tuple[int, int], ...], ok: bool
) -> None:
    check = HealthCheck(kind=CheckKind.HTTP, timeout_s=20.0, expect_status=expect)
    result = ask(check, status_of(status))
    assert result.ok is ok
    assert result.detail.startswith(f"HTTP {status} in ")


def test_an_unexpected_status_says_what_was_expected() -> None:
    detail = ask(HTTP, status_of(503)).detail
    assert detail.endswith(" ms, expected 200-399")


def test_request_is_what_the_configuration_says() -> None:
    seen: list[str] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.extend([request.method, request.raw_path, request.headers["Host"]])
        return web.Response()

    check = HealthCheck(
        kind=CheckKind.HTTP, method="HEAD", path="/a%2Fb?x=1", host="gpu.example", timeout_s=20.0
    )
    assert ask(check, handler).ok
    assert seen == ["HEAD", "/a%2Fb?x=1", "gpu.example"]


def test_a_slow_server_is_named_by_the_timeout() -> None:
    check = HealthCheck(kind=CheckKind.HTTP, timeout_s=0.1)
    result = ask_raw(check, silent)
    assert (result.ok, result.detail) == (False, "no answer within 100 ms")


@pytest.mark.parametrize("check", [HTTP, HTTPS], ids=["http", "https"])
def test_a_host_that_takes_the_connection_is_not_silent_however_late_its_answer(
    check: HealthCheck,
) -> None:
    result = ask_raw(replace(check, timeout_s=0.2), silent)
    assert (result.ok, result.silent) == (False, False)


@pytest.mark.parametrize("check", [TCP, HTTP, HTTPS], ids=["tcp", "http", "https"])
def test_a_host_that_takes_no_connection_is_silent(check: HealthCheck) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        # As many as are queued although nobody accepts them: what comes then is dropped.
        with contextlib.ExitStack() as waiting:
            for _ in range(4):
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(address)
            result = asyncio.run(
                probe(replace(check, timeout_s=0.2), LOOPBACK, address[1], Patience())
            )
    assert (result.ok, result.silent) == (False, True)


@pytest.mark.parametrize("check", [TCP, HTTP], ids=["tcp", "http"])
def test_a_refusal_is_no_silence(check: HealthCheck) -> None:
    with refusing() as port:
        assert not asyncio.run(probe(check, LOOPBACK, port, Patience())).silent


def test_a_body_without_end_is_not_waited_for() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        await silent(reader, writer)

    assert ask_raw(HTTP, drip).ok


def test_a_connection_closed_early_says_so() -> None:
    result = ask_raw(HTTP, rude)
    assert (result.ok, result.detail) == (False, "connection closed before an answer")


def test_another_protocol_says_so() -> None:
    result = ask_raw(HTTP, babbling)
    assert (result.ok, result.detail) == (False, "the answer is not HTTP")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.0 200\r\n\r\n", 200),
        (INTERIM + b"HTTP/1.1 201 x\r\n\r\n", 201),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 101),
        (b"HTTP/1.1 999 what\r\n\r\n", None),
        (b"HTTP/2 200 OK\r\n\r\n\r\n", None),
        (INTERIM, None),
        (b"HTTP/1.1 2", None),
    ],
)  # fmt: skip
def test_a_status_is_read_however_it_comes(answer: bytes, status: int | None) -> None:
    async def pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for at in range(0, len(answer), 5):
            writer.write(answer[at : at + 5])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    result = ask_raw(replace(HTTP, expect_status=((100, 599),)), pieces)
    assert result.ok is (status is not None)
    if status is not None:
        assert result.detail.startswith(f"HTTP {status} in ")
    else:
        assert result.detail == "the answer is not HTTP"


@pytest.mark.parametrize(("method", "has_length"), [("GET", False), ("POST", True)])
def test_a_request_is_whole_and_says_that_it_is_the_only_one(method: str, has_length: bool) -> None:
    seen: list[bytes] = []

    async def noting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    assert ask_raw(replace(HTTP, method=method), noting).ok
    head, *lines = seen[0].decode().split("\r\n")
    assert head == f"{method} /health HTTP/1.1"
    assert lines[0].startswith("Host: 127.0.0.1:")
    assert "Connection: close" in lines
    assert ("Content-Length: 0" in lines) is has_length


def test_out_of_descriptors_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_args: object) -> tuple[bool, str]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(probe_module, "TALKS", {CheckKind.HTTPS: full})
    with pytest.raises(NetworkError, match="Too many open files"):
        asyncio.run(probe(HTTPS, LOOPBACK, 1, Patience()))


def ask_tls(check: HealthCheck, tls: ssl.SSLContext) -> tuple[ProbeResult, list[str | None]]:
    names: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: names.append(name)

    async def run() -> ProbeResult:
        async with http_server(status_of(200), tls) as port:
            return await probe(check, LOOPBACK, port, Patience())

    return asyncio.run(run()), names


def test_https_refuses_a_certificate_that_nobody_vouches_for(tls: ssl.SSLContext) -> None:
    result, _ = ask_tls(HTTPS, tls)
    assert not result.ok
    assert result.detail.startswith("TLS certificate not accepted: self-signed certificate")


def test_https_tells_when_the_certificate_ends(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(talks, "tls_context", lambda *_: trusting)
    result, names = ask_tls(HTTPS, tls)
    assert result.ok, result.detail
    assert names == ["gpu.example"]
    assert result.certificate_until is not None
    assert 0 < result.certificate_until - time.time() <= 2 * 86_400
    assert re.search(
        r"^HTTP 200 in .* ms; its certificate expires in (1 d 23 h|2 d 0 h)$", result.detail
    )


def test_https_says_for_whom_a_certificate_is_not(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(talks, "tls_context", lambda *_: trusting)
    for other in ("other.example", None):  # None: the server's address
        result, _ = ask_tls(replace(HTTPS, host=other), tls)
        assert not result.ok
        assert result.detail.startswith("TLS certificate not accepted: ")
        assert "mismatch" in result.detail.lower()


def test_https_without_verification_passes_and_sends_the_host_as_server_name(
    tls: ssl.SSLContext,
) -> None:
    check = HealthCheck(kind=CheckKind.HTTPS, timeout_s=20.0, host="gpu.example", verify_tls=False)
    result, names = ask_tls(check, tls)
    assert result.ok, result.detail
    assert names == ["gpu.example"]


def test_https_to_a_plain_server_says_that_the_handshake_failed() -> None:
    result = ask(HTTPS, status_of(200))
    assert not result.ok
    assert result.detail.startswith("TLS handshake failed")
