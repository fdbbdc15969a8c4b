"""Servers that behave, and servers that do not, on loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from agent.model import Telemetry, TelemetryKind
from agent.telemetry.report import AgentCheck, AgentState, EngineReport, Failure
from tests.pki import self_signed, server_context
from tests.unit.telemetry.scraped import FAST, IMPATIENT, Engine, Serve, page, request, scrape

TGI = b"tgi_batch_current_size 4\ntgi_queue_size 6\n"
REPORT = EngineReport(4, 6)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
    len(TGI),
    TGI,
)


def reports(serve: Serve, count: int = 1, question: Telemetry = FAST) -> list[object]:
    return list(asyncio.run(scrape(serve, count, question)).reports)


@pytest.mark.parametrize("answer", [page(TGI), CHUNKED])
def test_one_connection_serves_many_requests(answer: bytes) -> None:
    engine = Engine(answer)
    assert reports(engine, 5) == [REPORT] * 5
    assert engine.connections == 1


def test_a_server_that_closes_each_time_is_asked_over_new_connections() -> None:
    engine = Engine(b"HTTP/1.1 200 OK\r\n\r\n" + TGI, then_close=True)
    assert reports(engine, 3) == [REPORT] * 3
    assert engine.connections >= 3


def test_an_idle_connection_that_the_server_closed_is_no_failure() -> None:
    assert reports(Engine(page(TGI), then_close=True), 5) == [REPORT] * 5


def test_a_connection_that_is_closed_as_it_is_asked_again_is_no_failure() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(page(TGI))
        await request(reader)
        writer.close()

    scrapes = asyncio.run(scrape(once, 4))
    assert scrapes.reports == [REPORT] * 4
    assert len(scrapes.asked) >= 7  # asked anew, and the listener was told


def test_a_page_larger_than_one_read_is_whole() -> None:
    body = b"x 1\n" * 300_000 + TGI
    assert reports(Engine(page(body)), 3) == [REPORT] * 3


def test_names_may_change_between_scrapes() -> None:
    old = page(b"vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 0.5\n")
    new = page(b"vllm:num_requests_running 2\nvllm:kv_cache_usage_perc 0.25\n")
    question = Telemetry(TelemetryKind.VLLM, interval_s=0.02, timeout_s=5.0)
    assert reports(Engine(old, new), 3, question) == [
        EngineReport(1, kv_usage=0.5),
        EngineReport(2, kv_usage=0.25),
        EngineReport(2, kv_usage=0.25),
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (page(b"<html><body>It works!</body></html>"), "the page is HTML"),
        (page(b'{"detail":"Not Found"}'), "the page is JSON"),
        (page(b""), "the page is empty"),
        (page(b"tgi_queue_size NaN\ntgi_batch_current_size -3\n"), "can be true"),
        (page(b"no", status=b"503 Service Unavailable"), "HTTP 503"),
        (page(b"", b"Location: http://127.0.0.1/x", status=b"301 Moved"), "a redirect"),
        (page(TGI, b"Content-Encoding: gzip"), "compressed"),
        (b"220 mail ESMTP\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n", "longer than 4 MiB"),
    ],
)
def test_a_bad_answer_is_a_failure_and_the_next_good_one_a_report(
    answer: bytes, words: str
) -> None:
    failure, report = reports(Engine(answer, page(TGI)), 2)
    assert isinstance(failure, Failure)
    assert words in failure.reason
    assert report == REPORT


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x 1\n" * 16_384)
        await writer.drain()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    for byte in page(TGI):
        writer.write(bytes((byte,)))
        await asyncio.sleep(0.02)


async def unfinished(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(page(TGI)[:-1])
    await reader.read()


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.transport.abort()


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (endless, "longer than 4 MiB"),
        (dripping, "no answer within 250 ms"),
        (silent, "no answer within 250 ms"),
        (unfinished, "no answer within 250 ms"),
        (resetting, "closed before an answer"),
    ],
)
def test_a_server_that_misbehaves_is_cut_off(serve: Serve, words: str) -> None:
    question = IMPATIENT if "within" in words else FAST
    (failure,) = reports(serve, 1, question)
    assert isinstance(failure, Failure)
    assert words in failure.reason


def test_a_reset_is_a_failure_that_is_named() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.get_extra_info("socket").setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER 0
        writer.transport.abort()

    assert reports(reset) == [Failure("connection reset")]


def test_a_server_that_speaks_unasked_is_asked_over_a_new_connection() -> None:
    connections = 0

    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await request(reader):
            writer.write(page(TGI))
            await asyncio.sleep(0.005)
            writer.write(page(b"tgi_queue_size 99\n"))

    question = Telemetry(TelemetryKind.TGI, interval_s=0.3, timeout_s=5.0)
    assert reports(chatty, 3, question) == [REPORT] * 3
    assert connections == 3


def test_an_agent_check_is_read_from_a_server_that_speaks_first() -> None:
    async def agent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"up 75% # warm\n")
        writer.close()

    question = Telemetry(TelemetryKind.AGENT_CHECK, interval_s=0.02, timeout_s=5.0)
    assert reports(agent, 3, question) == [AgentCheck(0.75, AgentState.UP, "warm")] * 3


def test_a_refused_connection_is_named() -> None:
    async def run() -> object:
        async def leave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        with socket.socket() as held:  # nobody else gets its port, and it does not listen
            held.bind(("127.0.0.1", 0))
            scrapes = await scrape(leave, port=held.getsockname()[1])
        return scrapes.reports[0]

    assert asyncio.run(run()) == Failure("connection refused")


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return server_context(self_signed(tmp_path_factory.mktemp("tls"), "server", "gpu"))


def test_a_page_is_read_over_tls(server_tls: ssl.SSLContext) -> None:
    question = Telemetry(TelemetryKind.TGI, tls=True, interval_s=0.02, timeout_s=5)
    engine = Engine(page(b"x 1\n" * 20_000 + TGI))
    scrapes = asyncio.run(scrape(engine, 3, question, tls=server_tls, verify_tls=False))
    assert scrapes.reports == [REPORT] * 3
    assert engine.connections == 1


def test_a_certificate_that_nobody_signed_is_not_accepted(server_tls: ssl.SSLContext) -> None:
    question = Telemetry(TelemetryKind.TGI, tls=True, timeout_s=5)
    (failure,) = asyncio.run(scrape(Engine(page(TGI)), 1, question, tls=server_tls)).reports
    assert isinstance(failure, Failure)
    assert "certificate not accepted" in failure.reason
