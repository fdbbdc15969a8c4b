"""Events over the API's socket: what arrives, and how each side notices that the other is gone."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address

import aiohttp
import pytest
from structlog.testing import capture_logs

from agent.api import trace
from agent.errors import DataplaneError
from agent.state.events import Event, EventKind, Fate, Lost

DROP = Event(
    at=1_700_000_000.25,
    kind=EventKind.DROP,
    protocol=6,
    client=ip_address("198.51.100.7"),
    client_port=40_000,
    vip=ip_address("203.0.113.10"),
    port=443,
    length=60,
    service="web",
    reason="no-backend",
    fate=Fate.REFUSED,
    tcp_flags="S",
)
ALIVE = {"lost_in_ring": 0, "lost_by_client": 0}


def follow(api, story, target="/v1/trace"):
    """Run a story with the answer to GET /v1/trace and with its follower."""

    async def ask():
        server = api.server()
        await server.start()
        try:
            connector = aiohttp.UnixConnector(path=str(api.path))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(f"http://agent{target}") as answer,
            ):
                assert answer.status == 200, await answer.text()
                await story(answer, api.control.followers[-1], server)
        finally:
            await server.stop()

    asyncio.run(asyncio.wait_for(ask(), 60))


async def line(answer):
    return json.loads(await answer.content.readline())


def test_first_line_says_that_it_follows(api):
    async def story(answer, follower, server):
        assert answer.content_type == "application/x-ndjson"
        assert await line(answer) == ALIVE

    follow(api, story)


def test_event_is_told_in_words_and_units(api):
    async def story(answer, follower, server):
        await line(answer)
        follower.tell(DROP)
        assert await line(answer) == {
            "event": "drop",
            "at": "2023-11-14T22:13:20.250000Z",
            "protocol": "tcp",
            "client": "198.51.100.7",
            "client_port": 40000,
            "vip": "203.0.113.10",
            "port": 443,
            "length_bytes": 60,
            "tcp_flags": "S",
            "service": "web",
            "backend": None,
            "backend_address": None,
            "scheduler": None,
            "reason": "no-backend",
            "fate": "refused",
            "flow_state": None,
            "waited_bytes": None,
            "waited_us": None,
        }

    follow(api, story)


def test_parameters_become_the_query(api):
    async def story(answer, follower, server):
        assert follower.query.kinds == {EventKind.DROP, EventKind.PACKET}
        assert (follower.query.service, follower.query.sample) == ("chat", 8)
        assert follower.query.matches(DROP)

    follow(api, story, "/v1/trace?kind=drop,packet&service=chat&sample=8&filter=tcp+and+port+443")


def test_many_events_arrive_in_order(api):
    async def story(answer, follower, server):
        await line(answer)
        count = 3 * trace.CHUNK_EVENTS + 7
        follower.tell(*([DROP] * (count - 1)), Event(**{**_fields(DROP), "length": 1}))
        lines = [await line(answer) for _ in range(count)]
        assert [each["length_bytes"] for each in lines] == [60] * (count - 1) + [1]

    follow(api, story)


def _fields(event):
    return {name: getattr(event, name) for name in Event.__slots__}


def test_what_is_lost_is_told_with_the_next_events(api):
    async def story(answer, follower, server):
        await line(answer)
        follower.lost = Lost(ring=12, follower=3)
        follower.tell(DROP)
        assert (await line(answer))["event"] == "drop"
        assert await line(answer) == {"lost_in_ring": 12, "lost_by_client": 3}

    follow(api, story)


def test_silence_is_told_from_death(api, monkeypatch):
    monkeypatch.setattr(trace, "HEARTBEAT_S", 0.01)

    async def story(answer, follower, server):
        assert [await line(answer) for _ in range(3)] == [ALIVE] * 3

    follow(api, story)


def test_client_that_leaves_is_noticed(api, monkeypatch):
    monkeypatch.setattr(trace, "HEARTBEAT_S", 0.01)

    async def story(answer, follower, server):
        await line(answer)
        answer.close()
        await follower.left.wait()

    with capture_logs() as logged:
        follow(api, story)
    assert [entry["event"] for entry in logged if entry["log_level"] == "error"] == []


def test_agent_that_stops_ends_the_answer_and_does_not_wait_for_it(api, monkeypatch):
    monkeypatch.setattr("agent.api.server._SHUTDOWN_S", 60.0)

    async def story(answer, follower, server):
        await line(answer)
        await server.stop()
        assert await line(answer) == ALIVE
        assert await answer.content.read() == b""
        assert follower.left.is_set()

    follow(api, story)


def test_who_follows_is_logged(api):
    async def story(answer, follower, server):
        pass

    with capture_logs() as logged:
        follow(api, story, "/v1/trace?kind=drop")
    (entry,) = [entry for entry in logged if entry["event"] == "trace"]
    assert (entry["kind"], "pid" in entry) == ("drop", True)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/trace?kind=dorp", 400),
        ("/v1/trace?filter=host", 400),
        ("/v1/trace?service=nope", 404),
        ("/v1/trace?count=3", 400),
    ],
)
def test_refusals_come_before_anything_is_followed(api, control, target, status):
    got, body = api.get(target)
    assert got == status
    assert body["error"]["remedy"]
    assert control.followers == []


def test_data_plane_that_cannot_be_followed_is_said(api, control):
    control.failure = DataplaneError("16 follow already", where="trace", remedy="end one")
    status, body = api.get("/v1/trace")
    assert (status, body["error"]["message"]) == (503, "16 follow already")
