"""Requests of clients go to the agent's socket with the names of their certificates."""

from __future__ import annotations

import asyncio
import http.client
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from agent.api.client import ApiRefusedError
from agent.errors import AgentUnreachableError
from agent.remote import forward
from agent.remote.forward import BURST, RATE, Rates
from agent.remote.run import Remote
from tests.pki import Authority, Pair, client_context
from tests.unit.fleet.conftest import runs
from tests.unit.remote.conftest import FakeAgent, body_of, client, get, served


@given(pauses=st.lists(st.floats(0, 3), max_size=400))
def test_a_certificate_gets_no_more_than_its_rate(pauses: list[float]) -> None:
    rates, at, taken = Rates(), 100.0, 0
    for pause in pauses:
        at += pause
        taken += rates.takes("alice", at)
        assert taken <= BURST + (at - 100.0) * RATE + 1e-6
    assert rates.takes("bob", at), "another one has its own"
    assert rates.takes("alice", at + 1 / RATE + 1e-6), "it comes back"


def test_no_more_than_so_many_names_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_MOST_NAMES", 10)
    rates = Rates()
    for number in range(100):
        assert rates.takes(f"client {number}", 1.0)
    assert len(rates._left) == 10


@runs
async def test_the_agent_hears_who_asks_and_from_where(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    async with served(agent) as remote:
        assert await get(remote, alice, authority, "/v1/services/a%2Fb") == {
            "path": "/v1/services/a/b"
        }
        order = {"op": "backend.set", "message": "Zoë"}
        await asyncio.to_thread(client(remote, alice, authority).post, "/v1/edit", order)
    read, edit = agent.asked
    assert (read[0], read[1]) == ("GET", "/v1/services/a%2Fb")
    assert (edit[0], edit[1], body_of(edit)) == ("POST", "/v1/edit", order)
    for _, _, headers, _ in (read, edit):
        assert headers["Steelyard-Certificate"] == "alice"
        assert headers["Steelyard-Address"] == "127.0.0.1"


@runs
async def test_nobody_speaks_for_another(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    """Headers of the client are not passed on, whatever their spelling, but for three."""
    async with served(agent) as remote:
        sent = {
            "steelyard-certificate": "root",
            "Steelyard-Address": "127.0.0.2",
            "Cookie": "a=b",
            "Accept": "application/json",
        }
        await asyncio.to_thread(ask, remote, alice, authority, "GET", "/v1/status", sent)
    ((_, _, headers, _),) = agent.asked
    assert headers["Steelyard-Certificate"] == "alice"
    assert headers["Steelyard-Address"] == "127.0.0.1"
    assert headers["Accept"] == "application/json"
    assert "Cookie" not in headers


def ask(
    remote: Remote, pair: Pair, authority: Authority, method: str, target: str, headers: Any
) -> tuple[int, bytes]:
    assert remote.port is not None
    connection = http.client.HTTPSConnection(
        "127.0.0.1", remote.port, context=client_context(authority, pair), timeout=60
    )
    try:
        connection.request(method, target, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["Zoë", "a b/c?d&e", "%41"])
@runs
async def test_any_name_reaches_the_agent_as_it_is(
    agent: FakeAgent, authority: Authority, name: str
) -> None:
    from urllib.parse import unquote

    pair = authority.issue("odd", "/CN=" + name.replace("/", "\\/"))
    async with served(agent) as remote:
        await get(remote, pair, authority)
    ((_, _, headers, _),) = agent.asked
    assert unquote(headers["Steelyard-Certificate"]) == name


@runs
async def test_a_certificate_without_a_single_name_is_refused(
    agent: FakeAgent, authority: Authority
) -> None:
    async with served(agent) as remote:
        for number, subject in enumerate(("/O=example", "/CN=alice/CN=bob")):
            pair = authority.issue(f"bad{number}", subject)
            with pytest.raises(ApiRefusedError, match="no common name, or several") as caught:
                await get(remote, pair, authority)
            assert caught.value.status == 403
    assert agent.asked == []


@runs
async def test_errors_of_the_agent_come_back_as_they_are(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    async def refuse(_: web.Request) -> web.Response:
        error = {"message": "no", "where": "here", "remedy": "ask"}
        return web.json_response({"error": error}, status=409)

    agent.answer = refuse
    async with served(agent) as remote:
        with pytest.raises(ApiRefusedError, match="no") as caught:
            await get(remote, alice, authority)
        assert (caught.value.status, caught.value.remedy) == (409, "ask")


@runs
async def test_while_the_agent_is_away_that_is_said(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    async with served(agent) as remote:
        await get(remote, alice, authority)
        await agent.stop()
        await remote.look()
        status, _ = await asyncio.to_thread(ask, remote, alice, authority, "GET", "/v1/status", {})
        assert status == 502
        with pytest.raises(AgentUnreachableError, match="does not answer"):
            await get(remote, alice, authority)  # so that what follows waits, as by the socket
        await agent.start()
        await get(remote, alice, authority)


@runs
async def test_an_order_whose_answer_breaks_off_may_have_been_carried_out(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    async def die(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with served(agent) as remote:
        await asyncio.to_thread(client(remote, alice, authority).post, "/v1/edit", {})
        agent.answer = die
        with pytest.raises(AgentUnreachableError, match="it may have carried out the request"):
            await asyncio.to_thread(client(remote, alice, authority).post, "/v1/edit", {})
    assert len(agent.asked) == 2, "nothing is sent once more"


@runs
async def test_a_stream_comes_line_by_line_and_half_an_answer_is_none(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    told, broken = asyncio.Event(), asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write(b'{"number": 1}\n')
        await told.wait()
        await response.write(b'{"number": 2}\n')
        await broken.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    agent.answer = stream
    async with served(agent) as remote:
        lines = client(remote, alice, authority).stream("/v1/trace")
        assert await asyncio.to_thread(next, lines) == {"number": 1}
        told.set()
        assert await asyncio.to_thread(next, lines) == {"number": 2}
        lines.close()
        half = asyncio.create_task(
            asyncio.to_thread(ask, remote, alice, authority, "GET", "/v1/trace", {})
        )
        broken.set()
        with pytest.raises((http.client.IncompleteRead, OSError)):
            await half


@runs
async def test_one_certificate_cannot_use_up_the_agent(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    """Traces stay open; others are served meanwhile, and the certificate again when some end."""
    end = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/trace":
            await end.wait()
        return web.json_response({})

    agent.answer = wait
    bob = authority.issue("bob", "/CN=bob")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(32))
    async with served(agent) as remote:
        traces = [
            asyncio.create_task(get(remote, alice, authority, "/v1/trace"))
            for _ in range(forward.AT_ONCE)
        ]
        while len(agent.asked) < forward.AT_ONCE:  # noqa: ASYNC110 (the agent tells nobody)
            await asyncio.sleep(0.01)
        with pytest.raises(ApiRefusedError, match="alice sends too many requests") as caught:
            await get(remote, alice, authority)
        assert caught.value.status == 429
        await get(remote, bob, authority)
        end.set()
        await asyncio.gather(*traces)
        await get(remote, alice, authority)


@runs
async def test_a_body_that_is_too_large_and_a_request_for_another_host_are_refused(
    agent: FakeAgent, authority: Authority, alice: Pair
) -> None:
    async with served(agent) as remote:
        order = {"message": "x" * forward.MAX_BODY_BYTES}
        with pytest.raises(ApiRefusedError, match="larger than") as caught:
            await asyncio.to_thread(client(remote, alice, authority).post, "/v1/edit", order)
        assert caught.value.status == 413
        status, _ = await asyncio.to_thread(
            ask, remote, alice, authority, "GET", "http://other/v1/status", {}
        )
        assert status == 400
    assert agent.asked == []
