"""What the server records of requests, and when."""

import asyncio
import json
from dataclasses import replace

import aiohttp
import pytest

from agent.api.routes import ROUTES
from agent.errors import ConflictError, DataplaneError

DRAIN = {"op": "backend.set", "service": "chat", "backend": "gpu-1", "values": {"state": "drain"}}


def records(api, kind):
    return [each for each in api.audit.read(0.0, 1000) if each["kind"] == kind]


def test_an_order_is_on_record_before_the_agent_gets_it(api, control, monkeypatch):
    seen = []
    edit = control.edit

    async def looking(*edits, **how):
        seen.append([each["kind"] for each in api.audit.read(0.0, 10)])
        return await edit(*edits, **how)

    monkeypatch.setattr(control, "edit", looking)
    assert api.post("/v1/edit", **DRAIN, message="new driver")[0] == 200
    assert seen == [["begin", "order"]]
    (order,), (outcome,) = records(api, "order"), records(api, "outcome")
    assert order["what"] == "POST /v1/edit"
    assert (order["role"], order["source"]) == ("admin", "socket")
    assert order["request"]["values"] == {"state": "drain"}
    assert order["request"]["message"] == "new driver"
    assert order["by"] == control.authors[0].who
    assert outcome["change"] == order["change"]
    assert outcome["effect"] == "change backend chat/gpu-1: state active → drain"


@pytest.mark.parametrize("route", [r for r in ROUTES if r.method == "POST"], ids=lambda r: r.name)
def test_every_order_is_recorded_and_no_dry_run(api, route):
    body = {key: value for key, value in (route.sent or {}).items() if key != "dry_run"}
    assert api.request("POST", route.example, json.dumps(body).encode())[0] == 200
    (order,) = records(api, "order")
    assert order["what"] == f"POST {route.example}"
    assert [each["outcome"] for each in records(api, "outcome")] == ["ok"]
    if any(each.when == "with `dry_run`" for each in route.lesser) or route.name == "reload":
        body["dry_run"] = True
        assert api.request("POST", route.example, json.dumps(body).encode())[0] == 200
        assert len(records(api, "order")) == 1


@pytest.mark.parametrize("target", ["/v1/status", "/v1/config", "/v1/whoami", "/v1/audit"])
def test_reads_are_not_recorded(api, target):
    assert api.get(target)[0] == 200
    assert api.audit.read(0.0, 10) == ()


@pytest.mark.parametrize(
    ("failure", "outcome", "effect"),
    [
        (ConflictError("it has open flows", where="chat"), "refused", "chat: it has open flows"),
        (DataplaneError("no memory"), "failed", "no memory"),
        (RuntimeError("the secret inside"), "failed", "POST /v1/reload: an internal error"),
    ],
)
def test_what_became_of_an_order_is_recorded(api, control, failure, outcome, effect):
    control.failure = failure
    assert api.post("/v1/reload")[0] >= 400
    (found,) = records(api, "outcome")
    assert (found["outcome"], found["effect"]) == (outcome, effect)


def test_a_request_that_makes_no_sense_is_no_order(api):
    assert api.request("POST", "/v1/reload?soon=1", b"{}")[0] == 400
    assert api.request("POST", "/v1/reload", b"{")[0] == 400
    assert api.audit.read(0.0, 10) == ()


def test_without_a_record_no_change_if_it_is_required(api, control):
    control.running = control.file = replace(control.running, audit_required=True)
    api.audit.path.mkdir()
    status, body = api.post("/v1/edit", **DRAIN)
    assert status == 503
    assert "cannot be recorded" in body["error"]["message"]
    assert control.asked == []
    control.running = control.file = replace(control.running, audit_required=False)
    assert api.post("/v1/edit", **DRAIN)[0] == 200
    assert api.get("/v1/audit")[1]["problem"].startswith(str(api.audit.path))


def test_an_order_that_the_end_of_the_agent_breaks_off_is_recorded(api, control, monkeypatch):
    async def story():
        started = asyncio.Event()

        async def endless(**_):
            started.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(control, "reload", endless)
        monkeypatch.setattr("agent.api.server._SHUTDOWN_S", 0.01)
        server = api.server()
        await server.start()
        connector = aiohttp.UnixConnector(path=str(api.path))
        async with aiohttp.ClientSession(connector=connector) as session:
            asked = asyncio.create_task(session.post("http://agent/v1/reload"))
            await started.wait()
            await server.stop()
            await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(asyncio.wait_for(story(), 60))
    (found,) = records(api, "outcome")
    assert (found["outcome"], found["effect"]) == ("failed", "it was broken off")


def test_records_are_shown_as_they_are(api):
    api.post("/v1/edit", **DRAIN)
    _, body = api.get("/v1/audit?since_s=60&limit=2")
    assert body["file"] == str(api.audit.path)
    assert [each["kind"] for each in body["records"]] == ["order", "outcome"]
    assert body["head"] == {key: body["records"][-1][key] for key in ("number", "hash")}
    assert api.get("/v1/audit?limit=0")[0] == 400
