"""What a client of the API sees."""

import asyncio
import io
import os
import pwd
import socket
import stat
from dataclasses import replace
from ipaddress import ip_address, ip_network

import aiohttp
import pytest
from structlog.testing import capture_logs

from agent.api import answers, peer
from agent.api.server import MAX_BODY_BYTES
from agent.config.edit import Edit, EditOp
from agent.config.reverts import Revert
from agent.discovery.run import SourceView
from agent.errors import (
    ConfigError,
    ConflictError,
    DataplaneError,
    ListenError,
    NetworkError,
    NotFoundError,
    SteelyardError,
)
from agent.model import Discover
from agent.state.guardview import BlockOrder
from agent.state.moves import MoveOrder, MoveVerb
from agent.state.queries import FlowQuery, ListQuery, SortBy, TopQuery
from agent.state.sources import SourceState


def test_status(api):
    status, body = api.get("/v1/status")
    assert status == 200
    assert body["agent"]["name"] == "edge-1"
    assert body["services"] == {"total": 2, "up": 0, "degraded": 1, "down": 1}


def test_services_and_one_service(api):
    status, body = api.get("/v1/services")
    assert status == 200
    assert [service["name"] for service in body["services"]] == ["chat", "dns"]
    status, chat = api.get("/v1/services/chat")
    assert status == 200
    assert chat == body["services"][0]


def test_what_a_scaler_is_told_of_all_services_and_of_one(api):
    status, body = api.get("/v1/scale")
    assert status == 200
    assert [service["service"] for service in body["services"]] == ["chat", "dns"]
    status, chat = api.get("/v1/scale/chat")
    assert status == 200
    assert chat == body["services"][0]
    assert api.get("/v1/scale/none")[0] == 404


def test_a_page_of_backends_has_them_as_their_service_has(api, control):
    _, chat = api.get("/v1/services/chat")
    status, page = api.get("/v1/list/backends?sort=waiting&limit=5&offset=10&state=down,drain")
    assert (status, page["matched"], page["total"]) == (200, 7, 9)
    assert page["backends"] == chat["backends"]
    query = ListQuery(SortBy.WAITING, 5, 10, states=frozenset({"down", "drain"}))
    assert control.asked[-1] == ("page", "backends", query)


def test_a_page_of_services_has_what_a_list_shows(api, control):
    _, chat = api.get("/v1/services/chat")
    status, page = api.get("/v1/list/services?match=ch")
    (row,) = page["services"]
    assert (status, row["flows_established"], row["backends_total"]) == (200, 8, 2)
    own = ("first_byte_last_minute", "handshakes", "flows_established")
    assert row["first_byte_last_minute"] == {"count": 3, "p50_ms": 12.346, "p99_ms": 250.0}
    assert row["handshakes"] == {"begun": 40, "established": 30, "span_s": 25.0}
    assert {name: chat[name] for name in row if name not in own} == {
        name: value for name, value in row.items() if name not in own
    }
    assert control.asked[-1] == ("page", "services", ListQuery(match="ch"))


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("flows", 404, "use one of backends, services"),
        ("backends?sort=colour", 400, "use one of name, state"),
        ("backends?state=green", 400, "use one of up, drain"),
        ("services?state=ejected", 400, "use one of up, degraded, down"),
        ("backends?limit=0", 400, "limit"),
        ("backends?offset=-1", 400, "offset"),
        ("backends?page=2", 400, "page"),
    ],
)
def test_lists_that_make_no_sense(api, path, status, says):
    code, body = api.get(f"/v1/list/{path}")
    assert code == status
    assert says in str(body["error"])


def test_service_that_does_not_exist(api):
    status, body = api.get("/v1/services/nope")
    assert status == 404
    assert body["error"]["message"] == "there is no service 'nope'"


def test_config_is_the_document_and_what_the_file_lacks(api):
    api.post("/v1/edit", op="backend.set", service="chat", backend="gpu-1", values={"weight": 7})
    status, body = api.get("/v1/config")
    assert status == 200
    assert body["config"]["interface"] == "eth0"
    assert body["config"]["services"][0]["backends"][0]["weight"] == 7
    (change,) = body["changes_since_file"]
    assert (change["action"], change["kind"]) == ("change", "backend")
    assert change["fields"] == [{"field": "weight", "old": 100, "new": 7}]
    assert change["effect"]


def test_edit_changes_and_says_what(api, control):
    status, body = api.post(
        "/v1/edit", op="backend.set", service="chat", backend="gpu-1", values={"state": "drain"}
    )
    assert status == 200
    assert body["applied"] is True
    assert body["changes"][0]["backend"] == "gpu-1"
    edit = Edit(EditOp.BACKEND_SET, "chat", "gpu-1", {"state": "drain"})
    assert control.asked == [("edit", edit, False)]


def test_a_change_that_is_in_memory_only_says_so(api, control):
    order = {"op": "service.remove", "service": "chat"}
    control.problem_of_saving = "the disk is full"
    _, body = api.post("/v1/edit", dry_run=True, **order)
    assert body["unsaved_problem"] == ""
    _, body = api.post("/v1/edit", **order)
    assert (body["applied"], body["unsaved_problem"]) == (True, "the disk is full")


def test_dry_run_changes_nothing(api, control):
    before = control.running
    status, body = api.post("/v1/edit", op="service.remove", service="chat", dry_run=True)
    assert status == 200
    assert body["applied"] is False
    assert body["changes"][0]["action"] == "remove"
    assert control.running == before


def test_whoever_makes_a_change_is_known_and_what_they_say(api, control):
    api.post("/v1/edit", op="service.remove", service="dns", message="not needed")
    api.post("/v1/reload")
    api.get("/v1/status")
    me = pwd.getpwuid(os.getuid()).pw_name
    assert [author.message for author in control.authors] == ["not needed", ""]
    assert all(author.who.split(" as ")[-1] == me for author in control.authors)


@pytest.mark.parametrize("message", ["x" * 201, "two\nlines", 7])
def test_a_message_is_a_short_line(api, control, message):
    status, body = api.post("/v1/reload", message=message)
    assert (status, body["error"]["where"]) == (400, "field message")
    assert control.authors == []


def test_events_are_told_as_they_are_asked_for(api, control):
    status, body = api.get("/v1/events?backend=chat/gpu-1")
    assert status == 200
    assert [event["number"] for event in body["events"]] == [2, 4]
    assert body["events"][0] == {
        "number": 2,
        "at": "1970-01-12T13:46:41.000Z",
        "level": "warning",
        "event": "backend",
        "service": "chat",
        "backend": "chat/gpu-1",
        "fields": {"backend": "chat/gpu-1", "old": "up"},
    }
    _, body = api.get("/v1/events?service=chat&level=warning&after=2")
    assert [event["number"] for event in body["events"]] == [3]
    _, body = api.get("/v1/events?since_s=60")
    assert body["events"] == []
    _, body = api.get("/v1/events?limit=1")
    assert [event["number"] for event in body["events"]] == [4]


@pytest.mark.parametrize("asked", ["level=bad", "backend=gpu-1", "since_s=-1", "limit=0", "kind=x"])
def test_what_no_event_can_be_is_refused(api, asked):
    status, body = api.get(f"/v1/events?{asked}")
    assert status == 400
    assert body["error"]["where"] == f"parameter {asked.partition('=')[0]}"


def test_the_history_and_a_rollback(api, control):
    _, body = api.get("/v1/history")
    assert body["versions"][1] == {
        "number": 2,
        "at": "1970-01-12T13:47:40.000Z",
        "how": "edit",
        "who": "root",
        "message": "too slow",
        "changes": ["change backend chat/gpu-1"],
        "changes_count": 1,
    }
    assert api.get("/v1/history/diff?old=1&new=2") == (200, {"changes": []})
    status, body = api.post("/v1/rollback", version=1, service="chat", dry_run=True)
    assert (status, body["applied"]) == (200, False)
    status, body = api.post("/v1/rollback", version=1, confirmed=True)
    assert (status, body["applied"]) == (200, True)
    assert control.asked == [
        ("diff", 1, 2),
        ("rollback", 1, "chat", True, False),
        ("rollback", 1, None, False, True),
    ]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "field version"),
        ({"version": "1"}, "field version"),
        ({"version": True}, "field version"),
        ({"version": 1, "to": 2}, "field to"),
    ],
)
def test_a_rollback_names_a_version(api, body, where):
    status, answer = api.post("/v1/rollback", **body)
    assert (status, answer["error"]["where"]) == (400, where)


def test_a_diff_names_a_version(api):
    status, answer = api.get("/v1/history/diff?new=2")
    assert (status, answer["error"]["where"]) == (400, "parameter old")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"op": "service.set", "service": "nope", "values": {}}, 404),
        ({"op": "backend.set", "service": "chat", "backend": "gpu-9", "values": {}}, 404),
        (
            {
                "op": "backend.add",
                "service": "chat",
                "backend": "gpu-1",
                "values": {"address": "10.0.0.99"},
            },
            409,
        ),
        (
            {
                "op": "backend.set",
                "service": "chat",
                "backend": "gpu-1",
                "values": {"weight": 2000},
            },
            400,
        ),
        ({"op": "backend.set", "values": {"weight": 20}}, 400),
        ({"op": "services.apply", "values": {"services": 7}}, 400),
    ],
)
def test_edits_that_cannot_be_made_say_why(api, control, body, status):
    before = control.running
    got, answer = api.post("/v1/edit", **body)
    assert got == status, answer
    assert answer["error"]["message"]
    assert set(answer["error"]) <= {"message", "where", "remedy", "problems"}
    assert control.running == before


def test_several_problems_are_all_listed(api):
    _, body = api.post(
        "/v1/edit",
        op="backend.set",
        service="chat",
        backend="gpu-1",
        values={"weight": 2000, "state": "asleep"},
    )
    assert len(body["error"]["problems"]) == 2


def test_reload(api, control):
    api.post("/v1/edit", op="service.remove", service="dns")
    status, body = api.post("/v1/reload")
    assert status == 200
    assert [change["action"] for change in body["changes"]] == ["add", "add"]
    assert control.asked[-1] == ("reload", False, False)
    status, body = api.post("/v1/reload", dry_run=True, confirmed=True)
    assert (status, body["applied"]) == (200, False)
    assert control.asked[-1] == ("reload", True, True)


def test_failover_is_told_and_moved(api, control):
    status, body = api.get("/v1/failover")
    assert (status, body["configured"]) == (200, False)
    control.asked.clear()
    status, body = api.post("/v1/failover/handover", instance="web", force=True)
    assert (status, body) == (200, {"text": "handed over", "flows_sent": 12, "applied": True})
    assert control.asked == [("move", MoveOrder(MoveVerb.HANDOVER, "web", force=True))]
    with capture_logs() as logs:
        api.post("/v1/failover/promote", message="new kernel")
    (said,) = [each for each in logs if each["event"] == "promote"]
    assert (said["message"], said["by"]) == ("new kernel", pwd.getpwuid(os.getuid()).pw_name)


@pytest.mark.parametrize(
    ("verb", "body", "status"),
    [("hand", {}, 404), ("promote", {"forse": True}, 400), ("release", {"force": 1}, 400),
     ("promote", {"instance": 3}, 400), ("promote", {"message": "two\nlines"}, 400)],
)  # fmt: skip
def test_moves_that_make_no_sense(api, control, verb, body, status):
    got, answer = api.post(f"/v1/failover/{verb}", **body)
    assert got == status
    assert answer["error"]["remedy"]
    assert control.asked == []


def test_settings_are_shown_with_their_origin(api, control):
    status, body = api.get("/v1/services/chat/origins")
    assert (status, body["service"]) == (200, "chat")
    assert {"backend": None, "field": "port", "value": 80, "origin": "runtime"} in body["settings"]
    control.failure = NotFoundError("there is no service 'x'", where="services")
    assert api.get("/v1/services/x/origins")[0] == 404


def test_a_change_for_a_time_says_for_how_long_and_is_listed(api, control):
    drain = {
        "op": "backend.set",
        "service": "chat",
        "backend": "gpu-1",
        "values": {"state": "drain"},
    }
    assert api.post("/v1/edit", **drain, for_s=90)[0] == 200
    assert control.for_s == 90.0
    assert api.post("/v1/edit", edits=[drain, drain], for_s=1.5)[0] == 200
    assert control.for_s == 1.5
    assert api.post("/v1/edit", **drain)[0] == 200
    assert control.for_s is None
    address = ip_address("10.0.0.21")
    late, soon = (
        Revert("chat", "gpu-1", address, None, field, 5, back, at)
        for field, back, at in (("weight", 100, 4e9), ("state", None, 0.0))
    )
    control.pending = (late, soon)
    status, body = api.get("/v1/reverts")
    assert status == 200
    assert [(each["field"], each["back"]) for each in body["reverts"]] == [
        ("state", None), ("weight", 100),
    ]  # fmt: skip
    assert body["reverts"][0]["in_s"] == 0.0


@pytest.mark.parametrize(
    "body",
    [
        {"op": "backend.set", "service": "chat", "backend": "gpu-1", "values": {"backup": True}},
        {"op": "backend.remove", "service": "chat", "backend": "gpu-1"},
        {"op": "service.set", "service": "chat", "values": {"panic": 0.5}},
    ],
)
def test_only_weight_and_state_change_for_a_time(api, control, body):
    status, answer = api.post("/v1/edit", **body, for_s=60)
    assert (status, answer["error"]["where"]) == (400, "field for_s")
    assert not control.asked


@pytest.mark.parametrize("for_s", [0, -1, True, "1h", 1e9, []])
def test_a_time_that_is_none(api, control, for_s):
    body = {"op": "backend.set", "service": "chat", "backend": "gpu-1", "values": {"weight": 5}}
    status, answer = api.post("/v1/edit", **body, for_s=for_s)
    assert (status, answer["error"]["where"]) == (400, "field for_s")
    assert not control.asked


def test_sources_are_shown_and_a_held_answer_is_accepted(api, control):
    chat, dns = control.running.services
    held = SourceState("dns x", (), 5.0, "the answer lacks 3 of the 4 targets", 6.0, ())
    control.found = (
        SourceView(replace(chat, discover=Discover(dns="x")), held, 6.0, ()),
        SourceView(replace(dns, discover=Discover(dns="y")), SourceState(), None, ()),
    )
    status, body = api.get("/v1/discovery")
    assert status == 200
    assert [(each["service"], each["source"]) for each in body["sources"]] == [
        ("chat", "dns x"),
        ("dns", "dns y"),
    ]
    with capture_logs() as logs:
        status, body = api.post("/v1/discovery/chat/accept")
    assert (status, [each["service"] for each in body["sources"]]) == (200, ["chat"])
    assert ("accept", "chat") in control.asked
    (logged,) = (log for log in logs if log["event"].startswith("the held answer"))
    assert logged["service"] == "chat"
    control.failure = ConflictError("there is no answer that waits", where="service chat")
    assert api.post("/v1/discovery/chat/accept")[0] == 409


def test_the_guard_is_told_asked_and_changed(api, control):
    status, body = api.get("/v1/guard")
    assert (status, body["blocks"], body["lists"]) == (200, [], [])
    control.asked.clear()
    prefixes = ["192.0.2.7", "2001:db8:7::/64"]
    status, body = api.post("/v1/guard/block", prefixes=prefixes, for_s=60, why="scans")
    assert (status, body["blocked"], body["flows_ended"]) == (200, prefixes, 3)
    assert body["told_balancers"] == 1
    networks = (ip_network("192.0.2.7"), ip_network("2001:db8:7::/64"))
    status, body = api.post("/v1/guard/unblock", prefixes=prefixes)
    assert (status, body["unblocked"]) == (200, prefixes)
    assert [asked for asked in control.asked if asked[0] != "snapshot"] == [
        ("block", BlockOrder(networks, 60.0, "scans")), ("unblock", networks),
    ]  # fmt: skip
    status, body = api.get("/v1/guard/test?address=192.0.2.7")
    assert (status, body["lists"], body["block"]) == (200, ["drop"], None)
    status, body = api.get("/v1/guard/top?by=waiting&limit=3")
    assert (status, body["sources_total"], body["sources"][0]["flows"]) == (200, 7, 5)
    assert control.asked[-1] == ("top", TopQuery(None, waiting=True, limit=3))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prefixes": []},
        {"prefixes": "192.0.2.7"},
        {"prefixes": ["192.0.2.7"] * 1025},
        {"prefixes": ["x"]},
        {"prefixes": ["192.0.2.7/24"]},
        {"prefixes": ["fe80::1%eth0"]},
        {"prefixes": ["192.0.2.7"], "for": 60},
        {"prefixes": ["192.0.2.7"], "for_s": "60"},
        {"prefixes": ["192.0.2.7"], "for_s": True},
        {"prefixes": ["192.0.2.7"], "why": "x" * 201},
        {"prefixes": ["192.0.2.7"], "why": "two\nlines"},
        {"prefixes": ["192.0.2.7"], "confirmed": 1},
    ],
)
def test_blocks_that_make_no_sense(api, control, body):
    control.asked.clear()
    status, answer = api.post("/v1/guard/block", **body)
    assert status == 400
    assert answer["error"]["remedy"]
    assert control.asked == []


@pytest.mark.parametrize("query", ["test", "test?address=x", "top?by=name", "top?limit=0"])
def test_questions_to_the_guard_that_make_no_sense(api, query):
    status, answer = api.get(f"/v1/guard/{query}")
    assert status == 400
    assert answer["error"]["remedy"]


def test_flows_are_filtered_as_asked(api, control):
    status, body = api.get("/v1/flows?service=chat&limit=1")
    assert status == 200
    assert (body["matched"], body["shown"]) == (17, 1)
    assert control.asked == [("flows", FlowQuery(service="chat", limit=1))]


def test_explain(api):
    status, body = api.get(
        "/v1/explain?protocol=tcp&client=192.0.2.7&client_port=1234&vip=10.0.0.10&port=80"
    )
    assert status == 200
    assert body["verdict"] == "forward"
    (draw,) = body["ring"]["draws"]
    assert (draw["slot"], draw["backend"], draw["usable"]) == (5, "gpu-1", True)


def test_metrics_over_the_socket(api):
    status, content_type, text = api.raw("GET", "/metrics")
    assert (status, content_type) == (200, "text/plain")
    assert text == "steelyard_up{name='edge-1'} 1\n"


def test_health_says_whether_packets_are_balanced(api, control):
    assert api.raw("GET", "/healthz")[::2] == (200, "ok\n")
    control.attached = False
    assert api.raw("GET", "/healthz")[::2] == (503, "not attached to eth0\n")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v2/status", 404),
        ("GET", "/", 404),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/edit", 405),
        ("GET", "/v1/status?verbose=1", 400),
        ("GET", "/v1/flows?servise=chat", 400),
        ("GET", "/v1/flows?service=nope", 404),
        ("GET", "/v1/explain?protocol=tcp", 400),
        ("GET", "/metrics?name=x", 400),
    ],
)
def test_requests_that_make_no_sense(api, method, target, status):
    got, body = api.request(method, target)
    assert got == status
    assert body["error"]["message"]
    assert body["error"]["where"]
    assert body["error"]["remedy"]


def test_unknown_parameter_suggests_the_known_one(api):
    _, body = api.get("/v1/flows?servise=chat")
    assert body["error"]["remedy"] == "did you mean 'service'?"


def test_body_that_is_too_large_is_refused(api, control):
    status, body = api.request("POST", "/v1/edit", io.BytesIO(b" " * (MAX_BODY_BYTES + 1)))
    assert status == 413
    assert "larger" in body["error"]["message"]
    assert control.asked == []


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ConfigError("bad", where="agent.yaml:3", remedy="fix it"), 400),
        (NotFoundError("bad", where="agent.yaml:3", remedy="fix it"), 404),
        (ConflictError("bad", where="agent.yaml:3", remedy="fix it"), 409),
        (DataplaneError("bad", where="agent.yaml:3", remedy="fix it"), 503),
        (NetworkError("bad", where="agent.yaml:3", remedy="fix it"), 503),
        (SteelyardError("bad", where="agent.yaml:3", remedy="fix it"), 500),
    ],
)
def test_every_error_has_its_status(api, control, failure, status):
    control.failure = failure
    got, body = api.post("/v1/reload")
    assert got == status
    assert body == {"error": {"message": "bad", "where": "agent.yaml:3", "remedy": "fix it"}}


def test_bug_is_logged_and_tells_the_client_nothing_inside(api, control):
    control.failure = RuntimeError("the secret inside")
    with capture_logs() as logged:
        status, body = api.get("/v1/status")
    assert status == 500
    assert "secret" not in str(body)
    (line,) = [line for line in logged if line["event"] == "api_request_failed"]
    assert line["exc_info"]
    assert line["path"] == "/v1/status"


def test_peer_that_is_not_allowed_is_refused_everywhere(api, control, monkeypatch):
    monkeypatch.setattr(peer, "access", lambda gid: peer.Access(frozenset(), None))
    for method, target in (
        ("GET", "/v1/status"),
        ("POST", "/v1/reload"),
        ("GET", "/metrics"),
        ("GET", "/healthz"),
        ("GET", "/nowhere"),
    ):
        status, body = api.request(method, target)
        assert status == 403
        assert f"user {os.getuid()}" in body["error"]["message"]
        assert "socket_group" in body["error"]["remedy"]
    assert control.asked == []


def test_socket_is_for_owner_and_group_only_and_goes_with_the_server(api):
    async def story():
        server = api.server()
        await server.start()
        mode = api.path.stat().st_mode
        await server.stop()
        return mode

    mode = asyncio.run(story())
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert not api.path.exists()


@pytest.mark.parametrize("with_folder", [False, True])
def test_a_socket_that_somebody_removes_is_put_back(api, with_folder):
    async def status(session):
        async with session.get("http://agent/v1/status") as answer:
            return answer.status

    def session():
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(api.path)))

    async def story():
        server = api.server()
        await server.start()
        async with session() as before:
            assert await status(before) == 200
            await server.put_back()
            inode = api.path.stat().st_ino
            api.path.unlink()
            if with_folder:
                api.path.parent.rmdir()
            await server.put_back()
            assert api.path.stat().st_ino != inode
            async with session() as after:
                assert await status(after) == 200
            assert await status(before) == 200, "who was connected stays so"
        await server.stop()
        assert not api.path.exists()

    asyncio.run(story())


def test_second_agent_is_refused_and_the_first_goes_on(api):
    async def story():
        first, second = api.server(), api.server()
        await first.start()
        try:
            with pytest.raises(ListenError, match="another agent answers on"):
                await second.start()
            connector = aiohttp.UnixConnector(path=str(api.path))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get("http://agent/v1/status") as answer,
            ):
                return answer.status
        finally:
            await first.stop()

    assert asyncio.run(story()) == 200


def test_unknown_group_is_refused(api):
    api.group = "no-such-group-here"
    with pytest.raises(ListenError, match="does not exist") as caught:
        asyncio.run(api.server().start())
    assert caught.value.where == "socket_group"
    assert not api.path.exists()


def test_metrics_port_serves_metrics_health_and_scaling_only(api):
    api.metrics_listen = ("127.0.0.1", 0)

    async def story():
        server = api.server()
        await server.start()
        host, port = server.metrics_address
        answers = {}
        try:
            async with aiohttp.ClientSession() as session:
                for target in (
                    *("/metrics", "/healthz", "/v1/scale", "/v1/scale/chat", "/v1/scale/none"),
                    *("/v1/status", "/v1/config", "/v1/services/chat"),
                ):
                    async with session.get(f"http://{host}:{port}{target}") as answer:
                        answers[target] = answer.status
                async with session.post(f"http://{host}:{port}/v1/reload") as answer:
                    answers["reload"] = answer.status
        finally:
            await server.stop()
        return answers

    assert asyncio.run(story()) == {
        "/metrics": 200,
        "/healthz": 200,
        "/v1/scale": 200,
        "/v1/scale/chat": 200,
        "/v1/scale/none": 404,
        "/v1/status": 404,
        "/v1/config": 404,
        "/v1/services/chat": 404,
        "reload": 404,
    }


def test_metrics_port_in_use_leaves_nothing_behind(api):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        api.metrics_listen = taken.getsockname()
        with pytest.raises(ListenError, match="cannot listen for metrics") as caught:
            asyncio.run(api.server().start())
    assert "metrics" in caught.value.remedy
    assert not api.path.exists()


def test_stopping_lets_a_change_in_progress_end(api, control):
    async def story():
        started, finish = asyncio.Event(), asyncio.Event()

        async def slow_reload(**_):
            started.set()
            await finish.wait()
            return ()

        control.reload = slow_reload
        server = api.server()
        await server.start()
        connector = aiohttp.UnixConnector(path=str(api.path))
        async with aiohttp.ClientSession(connector=connector) as session:
            asked = asyncio.create_task(session.post("http://agent/v1/reload"))
            await started.wait()
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            finish.set()
            answer = await asked
            await stopping
            return answer.status

    assert asyncio.run(asyncio.wait_for(story(), 60)) == 200


def test_client_that_leaves_does_not_break_off_a_change(api, control):
    async def story():
        started, finish, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow_reload(**_):
            started.set()
            await finish.wait()
            done.set()
            return ()

        control.reload = slow_reload
        server = api.server()
        await server.start()
        _, writer = await asyncio.open_unix_connection(str(api.path))
        writer.write(b"POST /v1/reload HTTP/1.1\r\nHost: agent\r\nContent-Length: 0\r\n\r\n")
        await started.wait()
        writer.transport.abort()
        await asyncio.sleep(0.05)
        finish.set()
        await done.wait()
        await server.stop()

    asyncio.run(asyncio.wait_for(story(), 60))


def test_views_of_a_changed_snapshot_are_made_per_request(api, control, snapshot):
    async def changed(_services=None):
        return replace(snapshot, config_problem="agent.yaml:3: bad")

    control.snapshot = changed
    _, body = api.get("/v1/status")
    assert body["agent"]["config_problem"] == "agent.yaml:3: bad"


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("deflate, GZIP", True), ("gzip;q=0", False), ("identity", False)],
)
def test_a_long_page_of_metrics_is_packed_for_who_takes_that(
    api, monkeypatch: pytest.MonkeyPatch, accepted: str, packed: bool
):
    monkeypatch.setattr(answers, "_WORTH_GZIP", 1)

    async def ask() -> tuple[str | None, str]:
        running = api.server()
        await running.start()
        try:
            connector = aiohttp.UnixConnector(path=str(api.path))
            headers = {"Accept-Encoding": accepted}
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get("http://agent/metrics", headers=headers) as answer,
            ):
                return answer.headers.get("Content-Encoding"), await answer.text()
        finally:
            await running.stop()

    encoding, text = asyncio.run(ask())
    assert (encoding == "gzip") is packed
    assert text.startswith("steelyard_up{")


def test_several_edits_are_one_order(api, control):
    edits = [
        {"op": "backend.set", "service": "chat", "backend": "gpu-1", "values": {"state": "drain"}},
        {"op": "backend.set", "service": "chat", "backend": "gpu-2", "values": {"weight": 7}},
    ]
    status, body = api.post("/v1/edit", edits=edits, dry_run=True, message="why")
    assert (status, len(body["changes"]), body["applied"]) == (200, 2, False)
    (asked,) = control.asked
    assert (asked[0], len(asked[1:-1]), asked[-1]) == ("edit", 2, True)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"edits": []}, "field edits"),
        ({"edits": {}}, "field edits"),
        ({"edits": [7]}, "field edits, edit 1"),
        ({"edits": [{"op": "service.remove", "service": "chat"}, {}]}, "field op, edit 2"),
        ({"edits": [{"op": "backend.set", "values": 7}]}, "field values, edit 1"),
        ({"edits": [{"op": "backend.set", "dry_run": True}]}, "field dry_run"),
        ({"edits": [{"op": "service.remove"}], "service": "chat"}, "field service"),
    ],
)
def test_edits_that_make_no_sense_are_named(api, control, body, where):
    status, answer = api.post("/v1/edit", **body)
    assert (status, answer["error"]["where"]) == (400, where)
    assert control.asked == []
