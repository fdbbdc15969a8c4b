"""What a balancer knows of the tier of its host, asked of real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.hosttier import HostTier, Totals, understood
from agent.state.tierview import TierLoad, TierStatus

LOAD = {
    "connections": 40, "current": 12, "queued": 3,
    "requests_total": 1000, "refused_total": 50, "failed_total": 7,
}  # fmt: skip
ANSWER = {"problems": [], "load": LOAD}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute for whatever answers, however slow the host is."""
    monkeypatch.setattr("agent.hosttier.ANSWER_S", 60.0)


def test_rates_are_what_was_counted_since_the_look_before() -> None:
    status, totals = understood(ANSWER, None, 100.0)
    assert status == TierStatus((), TierLoad(40, 12, 3, 0.0, 0.0, 0.0))
    later = LOAD | {"requests_total": 1100, "refused_total": 60, "failed_total": 7}
    status, _ = understood({"problems": [], "load": later}, totals, 102.0)
    assert status.load is not None
    assert status.load.requests_per_s == pytest.approx(50.0)
    assert status.load.refused_per_s == pytest.approx(5.0)
    assert status.load.failed_per_s == 0.0


@pytest.mark.parametrize("before", [Totals(100.0, 5000, 60, 9), Totals(102.0, 1, 1, 1)])
def test_totals_that_begin_again_are_no_rate(before: Totals) -> None:
    status, _ = understood(ANSWER, before, 102.0)
    assert status.load == TierLoad(40, 12, 3, 0.0, 0.0, 0.0)


def test_haproxy_that_does_not_answer_has_no_load_and_few_of_many_problems_are_shown() -> None:
    named = [f"certificate {number} has no key" for number in range(200)]
    status, totals = understood({"problems": named, "load": None}, Totals(1.0, 1, 1, 1), 3.0)
    assert (status.load, totals) == (None, None)
    assert status.problems == (*named[:5], "and 195 more: lbctl tier status")


type Answering = Callable[[web.Request], Any]


def looked(folder: Path, answering: Answering | None) -> list[TierStatus | None]:
    """What is known with a tier that answers so, and after it was stopped. None: it has died and
    left its socket.
    """

    async def both() -> list[TierStatus | None]:
        tier = HostTier(folder / "agent.sock")
        await tier.look()
        assert tier.status is None, "there is none yet"
        tier.socket.parent.mkdir()
        app = web.Application()
        if answering is not None:
            app.add_routes([web.get("/v1/summary", answering)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(tier.socket)).start()
        if answering is None:
            await runner.cleanup()
            tier.socket.unlink(missing_ok=True)
            await _left(tier.socket)
        await tier.look()
        found = [tier.status]
        await runner.cleanup()
        tier.socket.unlink(missing_ok=True)
        await tier.look()
        return [*found, tier.status]

    return asyncio.run(both())


async def _left(path: Path) -> None:
    """Leave a socket that nobody listens at, as a process does that was killed."""
    server = await asyncio.start_unix_server(lambda _r, _w: None, path, cleanup_socket=False)
    server.close()
    await server.wait_closed()


def test_it_is_asked_beside_the_agents_socket(tmp_path: Path) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(ANSWER)

    assert looked(tmp_path, answer) == [
        TierStatus((), TierLoad(40, 12, 3, 0.0, 0.0, 0.0)),
        None,
    ]


def test_one_that_has_died_does_not_answer(tmp_path: Path) -> None:
    (status, _) = looked(tmp_path, None)
    assert status is not None
    assert status.problems == ("lb-agent tier does not answer: systemctl restart lb-agent-tier",)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b'{"problems": 1}', b'{"problems": [], "load": {}}',
     b'{"problems": [], "load": ["x"]}', b"\xff\xfe", b"x" * 100_000,
     json.dumps({"problems": [], "load": LOAD | {"current": "many"}}).encode()],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_named(tmp_path: Path, body: bytes) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    (status, _) = looked(tmp_path, answer)
    assert status is not None
    assert "does not understand" in status.problems[0]


def test_an_answer_may_come_in_pieces(tmp_path: Path) -> None:
    many = {"problems": [f"{n} " + "x" * 1000 for n in range(20)], "load": LOAD}

    async def slow(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        text = json.dumps(many).encode()
        for at in range(0, len(text), 4096):
            await answer.write(text[at : at + 4096])
            await asyncio.sleep(0.005)
        return answer

    (status, _) = looked(tmp_path, slow)
    assert status is not None
    assert status.load is not None
    assert status.problems[0].startswith("0 x")


def test_one_of_an_older_release_is_named(tmp_path: Path) -> None:
    async def missing(_: web.Request) -> web.Response:
        raise web.HTTPNotFound

    (status, _) = looked(tmp_path, missing)
    assert status is not None
    assert "restart" in status.problems[0]


def test_one_that_hangs_is_not_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.hosttier.ANSWER_S", 0.2)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    (status, _) = looked(tmp_path, hang)
    assert status is not None
    assert "does not answer" in status.problems[0]
