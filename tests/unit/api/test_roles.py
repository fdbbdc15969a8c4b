"""Who may do what: the role of a caller, the role of a request, and what is refused."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest

from agent.api import peer, roles
from agent.api.openapi import document
from agent.api.peer import Access, Peer
from agent.api.roles import Caller, Roles
from agent.api.routes import ROUTES
from agent.errors import ForbiddenError, RequestError
from agent.guarded import Limits
from agent.model import RemoteApi, Role, RoleNames

VIEWERS, OPERATORS, ADMINS, OTHERS = 5001, 5002, 5003, 5004
NAMES = {"lb-view": VIEWERS, "lb-ops": OPERATORS, "lb-admin": ADMINS}
CONFIGURED = RoleNames(("lb-view",), ("lb-ops",), ("lb-admin",))
KNOWN = Roles(
    Access(frozenset({0})),
    {
        Role.VIEWER: {VIEWERS: "lb-view"},
        Role.OPERATOR: {OPERATORS: "lb-ops"},
        Role.ADMIN: {ADMINS: "lb-admin"},
    },
    CONFIGURED,
)
ROUTE = {route.name: route for route in ROUTES}
READS = {
    "fleet",
    "fleetHistory",
    "fleetVersion",
    "fleetDiff",
    "fleetCompare",
    "status", "list", "services", "service", "serviceOrigins", "scales", "scale", "config", "flows",
    "explain", "events", "history", "historyDiff", "reverts", "discovery", "guard", "guardTest",
    "guardTop", "failover", "whoami", "audit", "remoteApi", "metrics", "healthz", "openapi",
}  # fmt: skip
OPERATES = {"trace", "discoveryAccept", "guardBlock", "guardUnblock", "failoverMove"}


def process(*groups, uid=1001):
    return Peer(1, uid, frozenset(groups))


@pytest.mark.parametrize(
    ("who", "role"),
    [
        (process(), None),
        (process(OTHERS), None),
        (process(VIEWERS), Role.VIEWER),
        (process(OTHERS, OPERATORS), Role.OPERATOR),
        (process(OPERATORS, VIEWERS), Role.OPERATOR),
        (process(VIEWERS, ADMINS), Role.ADMIN),
        (process(uid=0), Role.ADMIN),
        (process(VIEWERS, uid=0), Role.ADMIN),
    ],
)
def test_the_highest_role_of_a_callers_groups_counts(who, role):
    assert KNOWN.of(who) is role


SPOKESMAN = 6001
CERTIFIED = replace(
    KNOWN,
    api=RemoteApi(
        ("::1", 1),
        Path("/c"),
        Path("/k"),
        Path("/ca"),
        roles=RoleNames(("grafana",), ("alice",), ("carol",)),
    ),
    spokesman=(SPOKESMAN, 6002),
)


def test_the_user_of_the_api_over_tls_may_read_and_speak_for_certificates():
    assert CERTIFIED.of(process(uid=SPOKESMAN)) is Role.VIEWER
    assert CERTIFIED.of(process(6002)) is None, "its group alone is nothing"
    assert CERTIFIED.speaks(process(uid=SPOKESMAN))
    assert CERTIFIED.speaks(process(uid=0))
    assert not CERTIFIED.speaks(process(6002, ADMINS))
    assert not KNOWN.speaks(process(uid=SPOKESMAN))
    assert CERTIFIED.all_gids == KNOWN.all_gids | {6002}


@pytest.mark.parametrize(
    ("name", "role"),
    [("grafana", Role.VIEWER), ("alice", Role.OPERATOR), ("carol", Role.ADMIN), ("eve", None)],
)
def test_a_certificate_has_the_role_that_names_it(name, role):
    assert CERTIFIED.of_certificate(name) is role
    assert KNOWN.of_certificate(name) is None


def test_the_user_is_looked_up_only_if_the_api_is_served():
    api = RemoteApi(("::1", 1), user="root")
    assert roles.roles(None, RoleNames(), api).spokesman == (0, 0)
    assert roles.roles(None, RoleNames(), replace(api, listen=None)).spokesman is None
    assert roles.roles(None, RoleNames(), replace(api, user="no-such-user")).spokesman is None


def test_a_role_includes_those_before_it():
    assert [a.includes(b) for a in Role for b in Role] == [
        True, False, False,
        True, True, False,
        True, True, True,
    ]  # fmt: skip


def test_a_group_that_has_gone_gives_nobody_a_role(monkeypatch):
    known = roles.roles(None, RoleNames(viewer=("no-such-group-here", "root")))
    assert known.gids[Role.VIEWER] == {0: "root"}
    assert known.all_gids == {0}


def test_routes_that_need_no_more_than_a_viewer_are_these():
    """A new route has to be named here, so that nobody gives it a role by copying."""
    assert {route.name for route in ROUTES if route.role is Role.VIEWER} == READS
    assert {route.name for route in ROUTES if route.role is Role.OPERATOR} == OPERATES
    assert {route.name for route in ROUTES if route.role is Role.ADMIN} == {
        "edit",
        "rollback",
        "reload",
        "fleetRollback",
        "fleetForget",
        "fleetOrder",
    }
    assert all(route.role is not Role.VIEWER for route in ROUTES if route.method == "POST")


DRAIN = {"op": "backend.set", "service": "chat", "backend": "gpu-1", "values": {"state": "drain"}}
WEIGHT = DRAIN | {"values": {"weight": 5}}
ZONE = DRAIN | {"values": {"weight": 5, "zone": "east"}}
REMOVE = {"op": "backend.remove", "service": "chat", "backend": "gpu-1"}


@pytest.mark.parametrize(
    ("name", "body", "role"),
    [
        ("edit", DRAIN, Role.OPERATOR),
        ("edit", WEIGHT | {"for_s": 60}, Role.OPERATOR),
        ("edit", {"edits": [DRAIN, WEIGHT]}, Role.OPERATOR),
        ("edit", ZONE, Role.ADMIN),
        ("edit", REMOVE, Role.ADMIN),
        ("edit", {"edits": [DRAIN, REMOVE]}, Role.ADMIN),
        ("edit", {"op": "services.apply", "values": {"services": []}}, Role.ADMIN),
        ("edit", {"op": "service.set", "service": "chat", "values": {"weight": 5}}, Role.ADMIN),
        ("edit", REMOVE | {"dry_run": True}, Role.VIEWER),
        ("edit", REMOVE | {"dry_run": False}, Role.ADMIN),
        ("rollback", {"version": 1}, Role.ADMIN),
        ("rollback", {"version": 1, "dry_run": True}, Role.VIEWER),
        ("fleetRollback", {"version": 1}, Role.ADMIN),
        ("fleetRollback", {"version": 1, "dry_run": True}, Role.VIEWER),
        ("fleetForget", {"node": "lb3"}, Role.ADMIN),
        ("fleetOrder", {}, Role.ADMIN),
        ("edit", WEIGHT | {"canary": {"nodes": ["lb3"]}}, Role.OPERATOR),
        ("reload", {}, Role.ADMIN),
        ("reload", {"dry_run": True}, Role.ADMIN),
        ("failoverMove", {}, Role.OPERATOR),
        ("failoverMove", {"dry_run": True}, Role.VIEWER),
        ("guardBlock", {"prefixes": ["192.0.2.7"], "dry_run": True}, Role.OPERATOR),
        ("discoveryAccept", {"dry_run": True}, Role.OPERATOR),
    ],
)
def test_a_request_needs_a_role(name, body, role):
    assert roles.needed(ROUTE[name], body) is role
    is_preview = role is Role.VIEWER or name in ("reload", "guardBlock", "discoveryAccept")
    assert ROUTE[name].is_order(body) is not (is_preview and body.get("dry_run", False))


@pytest.mark.parametrize("value", [1, "true", [True], {"a": 1}])
def test_only_true_makes_a_dry_run(value):
    assert roles.needed(ROUTE["rollback"], {"version": 1, "dry_run": value}) is Role.ADMIN
    assert ROUTE["rollback"].is_order({"version": 1, "dry_run": value})


def test_a_body_that_makes_no_sense_is_no_question_of_roles():
    with pytest.raises(RequestError):
        roles.needed(ROUTE["edit"], {"op": "backend.sett"})


def refused(known, caller_role, name, body=None):
    caller = Caller(process(VIEWERS), caller_role, name="alice")
    with pytest.raises(ForbiddenError) as caught:
        roles.check(known, caller, ROUTE[name], body or {})
    return caught.value


def test_a_refusal_says_who_what_and_who_may():
    error = refused(KNOWN, Role.VIEWER, "guardBlock")
    assert error.message == "alice (uid 1001) is a viewer, and this needs an operator"
    assert error.where == "POST /v1/guard/block"
    assert error.remedy == (
        "ask a member of the group lb-ops (operator), or of lb-admin (admin), or use sudo"
    )
    assert "an operator, and this needs an admin" in refused(KNOWN, Role.OPERATOR, "reload").message
    without = Roles(KNOWN.access, KNOWN.gids, RoleNames(viewer=("lb-view",)))
    assert refused(without, Role.VIEWER, "reload").remedy == "only root may do this: use sudo"


def test_the_description_of_the_api_has_the_roles():
    operation = document()["paths"]["/v1/edit"]["post"]
    assert operation["x-role"] == "admin"
    assert [each["role"] for each in operation["x-lesser-roles"]] == ["viewer", "operator"]
    assert document()["paths"]["/v1/status"]["get"]["x-role"] == "viewer"


# -- over the socket


@pytest.fixture
def as_member(api, control, monkeypatch):
    """Sets the groups of whoever connects next; the agent's own user is nobody special."""
    monkeypatch.setattr(peer, "access", lambda gid: Access(frozenset({0}), gid))
    monkeypatch.setattr(peer, "group_id", NAMES.__getitem__)
    monkeypatch.setattr("agent.api.listen.let_in", lambda path, gids: None)
    control.running = replace(control.running, socket_roles=CONFIGURED)
    control.file = control.running

    def become(*groups):
        monkeypatch.setattr(peer, "peer_of", lambda sock: process(*groups))

    return become


def asks():
    """Every request of the API: the examples of reads, orders, and their dry runs."""
    for route in ROUTES:
        bodies = [route.sent] if route.sent or route.method == "GET" else [{}]
        if route.method == "POST":
            bodies += [{**(route.sent or {}), "dry_run": value} for value in (True, False)]
        if route.name == "edit":
            bodies += [REMOVE, REMOVE | {"dry_run": True}, {"edits": [DRAIN, REMOVE]}, ZONE, WEIGHT]
        for body in bodies:
            yield route, body


def answers(api, requests):
    """The statuses of these requests, in order, of one server. A stream is left at once."""

    async def story():
        server = api.server()
        await server.start()
        found = []
        try:
            connector = aiohttp.UnixConnector(path=str(api.path))
            async with aiohttp.ClientSession(connector=connector) as session:
                for method, target, body in requests:
                    data = None if body is None else json.dumps(body)
                    url = f"http://agent{target}"
                    async with session.request(method, url, data=data) as answer:
                        found.append(answer.status)
        finally:
            await server.stop()
        return found

    return asyncio.run(asyncio.wait_for(story(), 60))


CHANGES = {"edit", "rollback", "reload", "move", "block", "unblock", "accept"}


def changes_asked(control):
    """The changes that reached the agent, without dry runs."""
    found = []
    for name, *what in control.asked:
        is_dry = (name == "edit" and what[-1]) or (name == "rollback" and what[2])
        is_dry = is_dry or (name == "reload" and what[0]) or (name == "move" and what[0].dry_run)
        if name in CHANGES and not is_dry:
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("group", "role"),
    [(VIEWERS, Role.VIEWER), (OPERATORS, Role.OPERATOR), (ADMINS, Role.ADMIN), (OTHERS, None)],
)
def test_every_request_is_allowed_or_refused_as_its_role_says(api, control, as_member, group, role):
    as_member(group)
    requests = list(asks())
    found = answers(api, [(route.method, route.example, body) for route, body in requests])
    for (route, body), status in zip(requests, found, strict=True):
        may = role is not None and role.includes(roles.needed(route, body or {}))
        assert (status != 403) is may, (route.name, body, status)
    if role in (None, Role.VIEWER):
        assert changes_asked(control) == []
    if role is Role.OPERATOR:
        assert {"block", "unblock", "move", "accept", "edit"} == set(changes_asked(control))
        edits = [what[:-1] for name, *what in control.asked if name == "edit" and not what[-1]]
        assert all(set(edit.values) <= {"weight", "state"} for (edit,) in edits)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/trace?sample=1"),
        ("HEAD", "/v1/trace"),
        ("POST", "/v1/reload?dry_run=true"),
        ("POST", "/v1/rollback?dry_run=true"),
        ("POST", "/v1/failover/promote?dry_run=true"),
        ("POST", "//v1/reload"),
        ("POST", "/v1/./reload"),
        ("PUT", "/v1/edit"),
        ("DELETE", "/v1/services/chat"),
        ("PATCH", "/v1/config"),
        ("POST", "/v1/status"),
        ("POST", "/v1/discovery/chat%2Faccept/accept"),
    ],
)
def test_no_detour_leads_a_viewer_to_a_change(api, control, as_member, method, target):
    as_member(VIEWERS)
    (status,) = answers(api, [(method, target, REMOVE if method != "HEAD" else None)])
    assert status >= 400
    assert changes_asked(control) == []
    assert control.followers == []


def test_a_key_that_comes_twice_cannot_make_a_dry_run_of_an_order(api, control, as_member):
    """Two readers of JSON could take another one of the two values."""
    as_member(VIEWERS)
    twice = b'{"version": 1, "dry_run": true, "dry_run": false}'
    status, body = api.request("POST", "/v1/rollback", twice)
    assert (status, "comes twice" in body["error"]["message"]) == (400, True)
    assert control.asked == []


def test_a_viewer_cannot_stall_the_agent_with_a_huge_plan(api, control, as_member):
    order = {"op": "services.apply", "values": {"services": []}, "dry_run": True, "message": ""}
    body = json.dumps(order).encode()
    at_most = body + b" " * (roles.MAX_VIEWER_BYTES - len(body))
    as_member(VIEWERS)
    assert api.request("POST", "/v1/edit", at_most)[0] == 200
    control.asked.clear()
    status, answer = api.request("POST", "/v1/edit", at_most + b" ")
    assert (status, "a viewer may send 262144" in answer["error"]["message"]) == (403, True)
    assert control.asked == []
    as_member(OPERATORS)
    assert api.request("POST", "/v1/edit", at_most + b" ")[0] == 200


def test_secrets_are_for_admins(api, control, as_member):
    control.running = replace(control.running, hash_seed=4711)
    told = {}
    for group in (VIEWERS, OPERATORS, ADMINS):
        as_member(group)
        told[group] = api.get("/v1/config")[1]["config"]["hash_seed"]
    assert told == {VIEWERS: "(hidden)", OPERATORS: "(hidden)", ADMINS: 4711}


def test_whoami(api, as_member):
    as_member(OTHERS, OPERATORS, VIEWERS)
    status, body = api.get("/v1/whoami")
    assert status == 200
    assert (body["uid"], body["role"], body["groups"]) == (1001, "operator", ["lb-ops", "lb-view"])
    assert body["roles"]["admin"] == ["lb-admin"]


def test_without_roles_whoever_may_use_the_socket_is_an_admin(api):
    _, body = api.get("/v1/whoami")
    assert (body["uid"], body["role"], body["groups"]) == (os.getuid(), "admin", [])
    assert body["roles"] == {"viewer": [], "operator": [], "admin": []}


# -- for certificates


@pytest.fixture
def as_spokesman(as_member, control, monkeypatch):
    """Whoever connects is `lb-agent api`, or somebody else."""
    control.running = replace(control.running, api=replace(CERTIFIED.api, user="games"))
    control.file = control.running
    monkeypatch.setattr(
        roles.pwd, "getpwnam", lambda _: SimpleNamespace(pw_uid=SPOKESMAN, pw_gid=6002)
    )

    def become(uid=SPOKESMAN):
        monkeypatch.setattr(peer, "peer_of", lambda sock: process(uid=uid))

    become()
    return become


def asks_for(api, name, method, target, body=None):
    """What a request with the name of a certificate is answered."""
    headers = {"Steelyard-Certificate": name, "Steelyard-Address": "192.0.2.7"}
    return api.request(method, target, None if body is None else json.dumps(body).encode(), headers)


def test_a_certificate_is_who_asks(api, as_spokesman):
    status, body = asks_for(api, "alice", "GET", "/v1/whoami")
    assert status == 200
    assert (body["user"], body["address"]) == ("certificate alice", "192.0.2.7")
    assert (body["role"], body["groups"], body["uid"]) == ("operator", [], SPOKESMAN)
    assert body["roles"] == {"viewer": ["grafana"], "operator": ["alice"], "admin": ["carol"]}
    assert api.get("/v1/api")[1]["port"] == 1


def test_a_certificate_may_do_what_its_role_says_and_is_recorded(api, control, as_spokesman):
    status, body = asks_for(api, "grafana", "POST", "/v1/edit", DRAIN)
    assert status == 403
    assert body["error"] == {
        "message": "certificate grafana is a viewer, and this needs an operator",
        "where": "POST /v1/edit",
        "remedy": "have it named in api.roles.operator of the configuration",
    }
    status, body = asks_for(api, "a%6Cice", "POST", "/v1/edit", DRAIN)
    assert status == 200, body
    order = [record for record in api.audit.read(0.0, 1000) if record["kind"] == "order"][-1]
    assert (order["by"], order["source"]) == ("certificate alice", "TLS, from 192.0.2.7")
    assert asks_for(api, "alice", "POST", "/v1/reload", {})[0] == 403
    assert asks_for(api, "eve", "GET", "/v1/status")[0] == 403


@pytest.mark.parametrize("uid", [1001, SPOKESMAN + 1])
def test_nobody_else_may_name_a_certificate(api, control, as_spokesman, uid):
    as_spokesman(uid)
    status, body = asks_for(api, "carol", "POST", "/v1/edit", DRAIN)
    assert (status, control.asked) == (403, [])
    assert "may not send requests for others" in body["error"]["message"]


def test_root_gives_up_rights_by_naming_a_certificate(api, control, as_spokesman):
    as_spokesman(0)
    assert asks_for(api, "grafana", "POST", "/v1/edit", DRAIN)[0] == 403
    assert asks_for(api, "eve", "GET", "/v1/status")[0] == 403
    assert control.asked == []


def test_a_reload_changes_roles(api, control, as_member, monkeypatch):
    """For requests of connections that are open, too; and the socket lets other groups in."""
    as_member(VIEWERS)

    async def story():
        server = api.server()
        await server.start()
        let_in = []
        monkeypatch.setattr("agent.api.listen.let_in", lambda _, gids: let_in.append(gids))
        statuses = []
        try:
            connector = aiohttp.UnixConnector(path=str(api.path))
            async with aiohttp.ClientSession(connector=connector) as session:
                for given in (CONFIGURED, RoleNames(operator=("lb-view",)), RoleNames()):
                    control.running = replace(control.running, socket_roles=given)
                    for method, target in (("GET", "/v1/status"), ("POST", "/v1/guard/unblock")):
                        data = json.dumps({"prefixes": ["192.0.2.7"]}) if method == "POST" else None
                        url = f"http://agent{target}"
                        async with session.request(method, url, data=data) as answer:
                            statuses.append(answer.status)
                    await server.put_back()
                    await server.put_back()
        finally:
            await server.stop()
        return statuses, let_in

    statuses, let_in = asyncio.run(asyncio.wait_for(story(), 60))
    assert statuses == [200, 403, 200, 200, 403, 403]
    assert let_in == [frozenset({VIEWERS}), frozenset()]


async def status_of_one_more(api):
    """The status of a request by a new connection; empty: it was closed."""
    reader, writer = await asyncio.open_unix_connection(str(api.path))
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        return (await reader.read(12))[9:]
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_a_user_has_so_many_connections_and_root_any_number(api, as_member, monkeypatch):
    monkeypatch.setattr("agent.api.server._LIMITS", Limits(most=5, of_a_source=3, read_s=None))

    def become(**who):
        monkeypatch.setattr(peer, "peer_of", lambda sock: process(VIEWERS, **who))

    async def story():
        server = api.server()
        await server.start()
        try:
            become()
            held = [await asyncio.open_unix_connection(str(api.path)) for _ in range(3)]
            assert await status_of_one_more(api) == b""
            become(uid=1002)
            assert await status_of_one_more(api) == b"200"
            become(uid=0)
            more = [await asyncio.open_unix_connection(str(api.path)) for _ in range(9)]
            assert await status_of_one_more(api) == b"200"
            become()
            held.pop()[1].close()
            while await status_of_one_more(api) == b"":  # noqa: ASYNC110 (it has no event)
                await asyncio.sleep(0.01)
            return len(more)
        finally:
            await server.stop()

    assert asyncio.run(asyncio.wait_for(story(), 60)) == 9


def test_without_roles_there_is_no_limit_of_connections(api, monkeypatch):
    monkeypatch.setattr("agent.api.server._LIMITS", Limits(most=1, of_a_source=1, read_s=None))
    monkeypatch.setattr(peer, "access", lambda gid: Access(frozenset({0}), 7))
    monkeypatch.setattr(peer, "peer_of", lambda sock: process(7))

    async def story():
        server = api.server()
        await server.start()
        try:
            held = [await asyncio.open_unix_connection(str(api.path)) for _ in range(3)]
            return len(held), await status_of_one_more(api)
        finally:
            await server.stop()

    assert asyncio.run(asyncio.wait_for(story(), 60)) == (3, b"200")
