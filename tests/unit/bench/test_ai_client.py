"""The AI benchmark's client: a throttle that does not work fails the run."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.ai import client, plan
from bench.ai.client import ClientError
from bench.ai.plan import Ask, Plan, Throttle

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"
STREAM = (
    b"HTTP/1.1 200 OK\r\nX-Backend: be1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"8\r\ndata: {}\r\n0\r\n\r\n"
)


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """A client switches the garbage collector off, for the process that it has alone."""
    yield
    gc.enable()


async def _serve(said: bytes) -> tuple[asyncio.Server, str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(said if head.startswith(b"POST /throttle") else STREAM)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _play(said: bytes) -> plan.Played:
    server, target = await _serve(said)
    async with server:
        asks = (Ask(0.0, 1, 1, 0, 0),)
        return await client.play(Plan((target,), asks, (Throttle(0.0, 0, 3.0),), 0.0, 5.0))


def test_a_plan_is_played() -> None:
    (answer,) = asyncio.run(_play(OK)).answers
    assert (answer.backend, answer.error) == ("be1", "")
    assert answer.first_token_s is not None


def test_a_refused_throttle_is_an_error() -> None:
    with pytest.raises(ClientError, match="405 Method Not Allowed"):
        asyncio.run(_play(REFUSED))


def test_without_its_throttle_the_client_fails(tmp_path: Path) -> None:
    nobody = Plan(("127.0.0.1:1",), (Ask(0.0, 1, 1, 0, 0),), (Throttle(0.0, 0, 3.0),), 0.0, 1.0)
    plan.write(tmp_path / "plan", nobody)
    words = ["--plan", str(tmp_path / "plan"), "--result", str(tmp_path / "result")]
    result = CliRunner().invoke(client.main, words)
    assert result.exit_code == 1
    assert "could not be throttled" in result.output
    assert not (tmp_path / "result").exists()
