"""The stand-in engine over HTTP: real connections to a server on this host's loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from lbctl.lab import prompts, server
from lbctl.lab.client import Connection, Target
from lbctl.lab.engine import openai
from lbctl.lab.engine.model import H100, Engine
from lbctl.lab.engine.server import EngineServer

FAST = 1000.0  # times faster than a GPU
TIMEOUT_S = 60.0


@asynccontextmanager
async def served(
    engine: Engine, chunk_tokens: int = 1, time_scale: float = FAST
) -> AsyncIterator[Target]:
    made = EngineServer("be1", engine, chunk_tokens, time_scale)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: server.Connection(made), "127.0.0.1", 0)
    try:
        yield Target("127.0.0.1", listener.sockets[0].getsockname()[1])
    finally:
        listener.close()


def play(talk: Callable[[Engine], Coroutine[None, None, None]]) -> None:
    """Let a test talk to a server of a new engine; bounded."""
    asyncio.run(asyncio.wait_for(talk(Engine(H100)), TIMEOUT_S))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (nothing tells it)
        await asyncio.sleep(0.001)


async def events(connection: Connection) -> list[bytes]:
    """The chunks of an answer."""
    found = []
    while part := await connection.read_chunk():
        found.append(part)
    return found


@pytest.mark.parametrize(("chunk_tokens", "parts"), [(1, 9), (4, 3), (100, 2)])
def test_a_stream_has_its_first_token_alone_and_the_others_in_parts(
    chunk_tokens: int, parts: int
) -> None:
    async def talk(engine: Engine) -> None:
        async with (
            served(engine, chunk_tokens) as target,
            Connection(target, TIMEOUT_S) as connection,
        ):
            for _ in range(2):  # the connection is kept alive
                head = await connection.ask("/v1/completions", body(answer_tokens=9))
                assert (head.status, head.backend, head.length) == (200, "be1", None)
                found = await events(connection)
                assert len(found) == parts
                assert found[-1].endswith(b"data: [DONE]\n\n")
        assert engine.generation_tokens == 18

    play(talk)


def body(answer_tokens: int, stream: bool = True) -> bytes:
    return json.dumps({"prompt": "x", "max_tokens": answer_tokens, "stream": stream}).encode()


def test_the_head_comes_before_the_prompt_is_done() -> None:
    async def talk(engine: Engine) -> None:
        # So slow that the test would end by its timeout if the head waited for the first token.
        async with (
            served(engine, time_scale=0.001) as target,
            Connection(target, TIMEOUT_S) as connection,
        ):
            assert (await connection.ask("/v1/completions", body(1))).status == 200
            assert engine.generation_tokens == 0

    play(talk)


def test_a_client_that_hangs_up_ends_its_request_running_or_waiting() -> None:
    async def talk(engine: Engine) -> None:
        async with served(engine, time_scale=0.001) as target:
            async with Connection(target, TIMEOUT_S) as first:
                await first.ask("/v1/completions", body(5))
                async with Connection(target, TIMEOUT_S) as second:
                    await second.ask("/v1/completions", body(5))
                    assert (engine.running, engine.waiting) == (1, 1)
                await until(lambda: engine.waiting == 0)
                assert engine.running == 1
            await until(lambda: engine.running == 0)

    play(talk)


async def whole_answer(target: Target, path: str, sent: bytes = b"") -> str:
    """The body of an answer on a connection of its own."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    head = f"{'POST' if sent else 'GET'} {path} HTTP/1.1\r\nContent-Length: {len(sent)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + sent)
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n\r\n")[2].decode()


def test_whole_answers_models_metrics_and_the_name_are_served() -> None:
    async def talk(engine: Engine) -> None:
        async with served(engine) as target:
            whole = await whole_answer(target, "/v1/completions", body(3, stream=False))
            assert json.loads(whole)["usage"]["completion_tokens"] == 3
            models = json.loads(await whole_answer(target, "/v1/models"))
            assert [model["id"] for model in models["data"]] == [openai.MODEL]
            page = await whole_answer(target, "/metrics")
            assert (
                'finished_reason="length",model_name="meta-llama/Llama-2-70b-chat-hf"} 1.0' in page
            )
            assert await whole_answer(target, "/health") == "ok\n"
            assert await whole_answer(target, "/") == "be1\n"

    play(talk)


def test_a_prefix_cache_knows_conversations_and_system_prompts() -> None:
    def chat(*said: str) -> bytes:
        roles = ("system", "user", "assistant", "user")
        messages = [
            {"role": role, "content": text} for role, text in zip(roles, said, strict=False)
        ]
        return json.dumps({"messages": messages, "max_tokens": 1}).encode()

    system, first, other = "s" * 500, "a" * 1000, "b" * 1000

    async def talk(engine: Engine) -> None:
        async with served(engine) as target:
            for said, cached in (
                ((system, first), 0),
                ((system, first, "yes", "c" * 97), 100 + 200),
                ((system, other), 100),
                (("t" * 500, first), 0),
            ):
                before = engine.cached_tokens
                await whole_answer(target, "/v1/chat/completions", chat(*said))
                # One more is of the answer, which the stand-in takes for a token of the prompt's.
                assert engine.cached_tokens - before in (cached, cached + 1)

    made = Engine(replace(H100, prefix_tokens=10_000))
    asyncio.run(asyncio.wait_for(talk(made), TIMEOUT_S))


def test_bad_requests_are_refused_and_the_engine_does_not_hear_of_them() -> None:
    async def talk(engine: Engine) -> None:
        async with served(engine) as target:
            for path, sent in (
                ("/v1/completions", b"{"),
                ("/v1/chat/completions", body(1)),
                ("/throttle", b""),
                ("/throttle?slow=0", b""),
                ("/throttle?slow=nan", b""),
            ):
                async with Connection(target, TIMEOUT_S) as connection:
                    assert (await connection.ask(path, sent)).status == 400
            async with Connection(target, TIMEOUT_S) as connection:
                assert (await connection.ask("/throttle?slow=2")).status == 405
        assert engine.iterations == 0

    play(talk)


def test_throttling_makes_the_engine_slower_by_that_factor() -> None:
    async def talk(engine: Engine) -> None:
        async with served(engine) as target, Connection(target, TIMEOUT_S) as connection:
            assert engine.slow == pytest.approx(1 / FAST)
            assert (await connection.ask("/throttle?slow=3", b"")).status == 200
            assert engine.slow == pytest.approx(3 / FAST)

    play(talk)


def test_prompts_are_sent_and_their_first_tokens_timed() -> None:
    async def talk(engine: Engine) -> None:
        async with served(engine, chunk_tokens=8) as target:
            prompt = await prompts.ask(target, 700, 20, TIMEOUT_S)
            gone = await prompts.ask(Target("127.0.0.1", 1), 700, 20, TIMEOUT_S)
        assert (prompt.error, prompt.backend) == (None, "be1")
        assert (engine.prompt_tokens, engine.generation_tokens) == (700, 20)
        assert prompt.first_token_ms is not None
        assert prompt.done_ms is not None
        assert 0 < prompt.first_token_ms <= prompt.done_ms
        assert (gone.error, gone.first_token_ms, gone.done_ms) == ("refused", None, None)

    play(talk)
