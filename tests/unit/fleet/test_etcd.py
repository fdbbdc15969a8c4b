"""A client of etcd whose members misbehave: what is asked again, and what an operator reads."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from agent.errors import CompactedError, LeaseLostError, StoreError, UncertainError
from agent.fleet import gateway
from agent.fleet.etcd import Change, Client, Listing, Row
from agent.model import Etcd
from tests.pki import self_signed

PREFIX = "/steelyard/prod/"
HEADER = {"cluster_id": "9", "member_id": "7", "revision": "41", "raft_term": "2"}

type Json = dict[str, Any]
type Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def kv(key: str, value: str, revision: int) -> Json:
    return {"key": b64(PREFIX + key), "value": b64(value), "mod_revision": str(revision)}


def says(body: Json | str | bytes, status: int = 200, **headers: str) -> Answer:
    """Give this answer."""
    content = json.dumps(body) if isinstance(body, dict) else body
    content = content.encode() if isinstance(content, str) else content

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, status=status, headers=headers)

    return answer


def ok(**fields: Any) -> Answer:
    return says({"header": HEADER, **fields})


def refuses(code: int, message: str, status: int = 400) -> Answer:
    return says({"code": code, "message": message}, status)


async def hangs(_: web.Request) -> web.StreamResponse:
    """Never give an answer."""
    await asyncio.sleep(3600)
    raise AssertionError


async def hangs_up(request: web.Request) -> web.StreamResponse:
    """Close the connection once the request is read."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """Close the connection in the middle of an answer."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"header":{"revi')
    assert request.transport is not None
    request.transport.abort()
    return response


def streams(*messages: Json | bytes, then: Answer | None = None) -> Answer:
    """Send the lines of a watch, and end it, or hang."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
            await response.write(line)
        if then is not None:
            await then(request)
        return response

    return answer


CREATED: Json = {"result": {"header": HEADER, "created": True}}


class Member:
    """One fake member: the answers it gives, in this order; the last one is repeated."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, Json, dict[str, str]]] = []
        self.url = ""

    async def start(self, stack: AsyncExitStack, tls: ssl.SSLContext | None) -> None:
        runner = web.ServerRunner(web.Server(self._serve, handler_cancellation=True))
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.removeprefix("/v3/")
        self.asked.append((path, await request.json(), dict(request.headers)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)  # type: ignore[arg-type]


def run[T](
    use: Callable[[Client], Awaitable[T]],
    *members: Member,
    etcd: Etcd | None = None,
    tls: ssl.SSLContext | None = None,
    first: int = 0,
    absent: int = 0,
) -> T:
    """Use a client of these members; before them come so many where nothing listens."""

    async def body() -> T:
        async with AsyncExitStack() as stack:
            for member in members:
                await member.start(stack, tls)
            unused = stack.enter_context(socket.socket())  # its port is held, and refuses
            unused.bind(("127.0.0.1", 0))
            nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
            urls = (nobody,) * absent + tuple(member.url for member in members)
            client = Client(replace(etcd or Etcd(), endpoints=urls), PREFIX, first)
            stack.push_async_callback(client.close)
            return await use(client)

    return asyncio.run(body())


def failure[E: StoreError](
    use: Callable[[Client], Awaitable[Any]], *members: Member, kind: type[E], **settings: Any
) -> E:
    """What is wrong; every error names a member and a remedy, and fits on a line."""

    async def fails(client: Client) -> E:
        with pytest.raises(StoreError) as caught:
            await use(client)
        error = caught.value
        assert type(error) is kind
        assert error.where
        assert error.remedy
        assert "\n" not in error.message
        return error  # type: ignore[return-value]

    return run(fails, *members, **settings)


async def get(client: Client) -> Listing:
    return await client.get("active")


async def commit(client: Client) -> int | None:
    return await client.commit({"active": 40}, {"active": b"new"})


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute for whatever must succeed."""
    monkeypatch.setattr(gateway, "CONNECT_S", 60.0)
    monkeypatch.setattr(gateway, "ANSWER_S", 60.0)
    monkeypatch.setattr(gateway, "CALL_S", 60.0)


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time for the member that is asked first, and a minute for the next ones."""
    monkeypatch.setattr(gateway, "ANSWER_S", 0.2)
    ask = gateway.Gateway._ask

    async def asked(of: gateway.Gateway, member: str, how: Any, limit_s: float) -> Any:
        monkeypatch.setattr(gateway, "ANSWER_S", 60.0)
        return await ask(of, member, how, limit_s)

    monkeypatch.setattr(gateway.Gateway, "_ask", asked)


# -- what is asked


def test_keys_are_below_the_prefix_and_numbers_are_strings() -> None:
    member = Member(ok(kvs=[kv("log/2", "b", 40), kv("log/3", "", 41)]))

    async def use(client: Client) -> Listing:
        return await client.list("log/", after="log/1", newest_first=True, limit=2, keys_only=True)

    assert run(use, member) == Listing(41, (Row("log/2", b"b", 40), Row("log/3", b"", 41)))
    ((path, body, headers),) = member.asked
    assert path == "kv/range"
    assert body == {
        "key": b64("/steelyard/prod/log/1\0"),
        "range_end": b64("/steelyard/prod/log0"),
        "limit": "2",
        "keys_only": True,
        "serializable": False,
        "sort_order": "DESCEND",
        "sort_target": "KEY",
    }
    assert "Authorization" not in headers


def test_a_key_that_does_not_exist_is_no_row() -> None:
    assert run(get, Member(ok())) == Listing(41, ())


def test_a_change_names_what_must_be_unchanged() -> None:
    member = Member(ok(succeeded=True, responses=[]))

    async def use(client: Client) -> int | None:
        return await client.commit({"log/9": 0, "active": 7}, {"log/9": b"x"}, ["log/1"])

    assert run(use, member) == 41
    ((path, body, _),) = member.asked
    assert path == "kv/txn"
    compare = {"target": "MOD", "result": "EQUAL"}
    assert body == {
        "compare": [
            {"key": b64(PREFIX + "log/9"), "mod_revision": "0", **compare},
            {"key": b64(PREFIX + "active"), "mod_revision": "7", **compare},
        ],
        "success": [
            {"request_put": {"key": b64(PREFIX + "log/9"), "value": b64("x")}},
            {"request_delete_range": {"key": b64(PREFIX + "log/1")}},
        ],
    }


def test_a_conflict_is_none() -> None:
    assert run(commit, Member(ok())) is None


def test_a_number_beyond_a_double_stays_exact() -> None:
    lease = 2**63 - 25
    member = Member(ok(ID=str(lease), TTL="15"), says({"result": {"header": HEADER, "TTL": "15"}}))

    async def use(client: Client) -> float:
        assert await client.grant(15) == lease
        return await client.keep_alive(lease)

    assert run(use, member) == 15.0
    assert member.asked[1][:2] == ("lease/keepalive", {"ID": str(lease)})


def test_an_answer_of_many_bytes_is_read_whole() -> None:
    rows = [kv(f"log/{number}", "x" * 100_000, number) for number in range(1, 11)]
    found = run(get, Member(ok(kvs=rows)))
    assert [len(row.value) for row in found.rows] == [100_000] * 10


# -- members


def test_a_member_where_nothing_listens_is_passed_over_also_by_a_commit() -> None:
    member = Member(ok(succeeded=True))

    async def use(client: Client) -> list[int | None]:
        return [await commit(client), await commit(client)]

    assert run(use, member, absent=2) == [41, 41]
    assert len(member.asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        hangs_up,
        breaks_off,
        says("<html><body>It works!</body></html>"),
        says("<html><h1>502 Bad Gateway</h1></html>", 502),
        says("404 page not found\n", 404),
        says('{"header":{"revision":"41"},"kvs":[{"key":'),
        says("[]"),
        says("null"),
        says('"etcd"'),
        says("{}"),
        says(b"\xff\xfe\x00"),
        says('{"a":' * 100_000),
        says({"header": "none"}),
        says({"error": "Not Found", "path": "/v3/kv/range"}, 404),
        ok(kvs=5),
        ok(kvs=[{"key": "not base64!", "mod_revision": "1"}]),
        ok(kvs=[{"key": b64("/elsewhere/x"), "mod_revision": "1"}]),
        ok(kvs=[{"key": b64(PREFIX), "mod_revision": "many"}]),
        ok(kvs=[{"key": b64(PREFIX)}]),
        says("", 302, Location="https://etcd.example.org/"),
        refuses(14, "etcdserver: request timed out", 503),
        refuses(4, "context deadline exceeded", 504),
        refuses(14, "etcdserver: no leader", 503),
    ],
)
def test_a_member_that_has_no_usable_answer_is_named_and_the_next_one_is_asked(
    answer: Answer,
) -> None:
    member, other = Member(answer), Member(ok(kvs=[kv("active", "x", 40)]))

    async def use(client: Client) -> None:
        for _ in range(2):  # the second time, the member that works is asked at once
            assert (await client.get("active")).rows == (Row("active", b"x", 40),)

    run(use, member, other)
    assert (len(member.asked), len(other.asked)) == (1, 2)
    alone = Member(answer)
    error = failure(get, alone, kind=StoreError)
    assert error.where == alone.url
    assert len(alone.asked) == 1


def test_each_member_is_asked_once_and_the_error_says_what_each_did() -> None:
    members = [Member(says("<html>")), Member(refuses(14, "etcdserver: no leader", 503))]
    error = failure(get, *members, kind=StoreError, first=1, absent=1)
    assert [len(member.asked) for member in members] == [1, 1]
    assert "connection refused" in error.message
    assert "etcd says: no leader" in error.message
    assert f"{members[0].url}: it answers, but not as etcd does" in error.message


def test_first_is_the_member_that_is_asked_first() -> None:
    members = [Member(ok()), Member(ok())]
    run(get, *members, first=1)
    run(get, *members, first=3)
    assert [len(member.asked) for member in members] == [0, 2]


@pytest.mark.usefixtures("impatience")
def test_a_member_that_hangs_is_passed_over() -> None:
    members = [Member(hangs), Member(ok())]
    assert run(get, *members) == Listing(41, ())


def test_a_member_that_hangs_and_has_no_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "ANSWER_S", 0.2)
    error = failure(get, Member(hangs), kind=StoreError)
    assert error.message == "no complete answer in time"


def test_the_time_limit_holds_for_all_members_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CALL_S", 0.2)
    members = [Member(hangs), Member(ok())]
    failure(get, *members, kind=StoreError)
    assert not members[1].asked


def test_a_connection_that_is_not_accepted_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CONNECT_S", 0.2)

    async def body() -> str:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            at = full.getsockname()
            with socket.create_connection(at):  # so the kernel answers no further SYN
                client = Client(Etcd(endpoints=(f"http://127.0.0.1:{at[1]}",)), PREFIX)
                with pytest.raises(StoreError) as caught:
                    await commit(client)  # not uncertain: nothing was sent
                await client.close()
                assert type(caught.value) is StoreError
                return caught.value.message

    assert asyncio.run(body()) == "no connection within 0.2 s"


def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "MOST_BYTES", 1 << 20)
    error = failure(get, Member(says(b" " * (2 << 20))), kind=StoreError)
    assert error.message == "the answer is longer than 1 MiB"


# -- changes whose fate is not known


@pytest.mark.parametrize(
    "answer",
    [
        hangs_up,
        breaks_off,
        says("<html>", 502),
        says("{"),
        refuses(14, "etcdserver: request timed out, possibly due to previous leader failure", 503),
        refuses(14, "etcdserver: leader changed", 503),
        refuses(4, "context deadline exceeded", 504),
    ],
)
def test_a_commit_that_may_have_been_received_is_not_repeated(answer: Answer) -> None:
    member, other = Member(answer), Member(ok(succeeded=True))
    error = failure(commit, member, other, kind=UncertainError)
    assert error.where == member.url
    assert error.message.startswith("it is not known whether the change was written: ")
    assert (len(member.asked), len(other.asked)) == (1, 0)


@pytest.mark.usefixtures("impatience")
def test_a_commit_without_an_answer_is_uncertain_and_the_next_request_goes_elsewhere() -> None:
    members = [Member(hangs), Member(ok(kvs=[kv("active", "x", 40)]))]

    async def use(client: Client) -> Listing:
        with pytest.raises(UncertainError):
            await commit(client)
        return await client.get("active")

    assert run(use, *members).rows == (Row("active", b"x", 40),)


def test_a_commit_that_no_leader_has_seen_is_tried_at_the_next_member() -> None:
    members = [Member(refuses(14, "etcdserver: no leader", 503)), Member(ok(succeeded=True))]
    assert run(commit, *members) == 41


# -- what etcd refuses


@pytest.mark.parametrize(
    ("answer", "message", "remedy"),
    [
        (refuses(7, "etcdserver: permission denied", 403), "permission denied", "grant-permission"),
        (
            refuses(8, "etcdserver: mvcc: database space exceeded", 429),
            "mvcc: database space exceeded",
            "etcdctl alarm disarm",
        ),
        (refuses(3, "etcdserver: request is too large"), "too large", "--max-request-bytes"),
        (refuses(3, "etcdserver: user name is empty"), "user name is empty", "'password_file'"),
        (
            says(
                "CommonName of client sending a request against gateway will be ignored and not"
                " used as expected\n",
                400,
            ),
            "CommonName",
            "without a CN, or use 'user' and 'password_file'",
        ),
        (says({"error": "etcdserver: x", "code": 3, "message": "etcdserver: x"}, 400), "x", "log"),
    ],
)
def test_what_etcd_refuses_is_asked_nowhere_else(answer: Answer, message: str, remedy: str) -> None:
    member, other = Member(answer), Member(ok(succeeded=True))
    error = failure(commit, member, other, kind=StoreError)
    assert message in error.message
    assert remedy in error.remedy
    assert not other.asked


def test_etcds_words_cannot_fill_a_screen() -> None:
    error = failure(get, Member(refuses(3, "etcdserver: \x1b[31m" + "x" * 10_000)), kind=StoreError)
    assert len(error.message) < 300
    assert error.message.isprintable()


def test_a_lease_that_has_ended_is_told_apart() -> None:
    gone = refuses(5, "etcdserver: requested lease not found", 404)
    member = Member(gone, says({"result": {"header": HEADER, "ID": "5"}}), gone)

    async def use(client: Client) -> None:
        with pytest.raises(LeaseLostError):
            await client.put("agents/lb1", b"{}", lease=5)
        with pytest.raises(LeaseLostError):
            await client.keep_alive(5)
        await client.revoke(5)

    run(use, member)
    assert member.asked[0][1]["lease"] == "5"


# -- users


@pytest.fixture
def user(tmp_path: Path) -> Etcd:
    password = tmp_path / "password"
    password.write_text("pass word\n")
    password.chmod(0o600)
    return Etcd(user="lb", password_file=password)


STALE = refuses(16, "etcdserver: invalid auth token", 401)


def test_a_token_is_asked_for_once_and_again_when_etcd_has_forgotten_it(user: Etcd) -> None:
    member = Member(ok(token="t1"), ok(), STALE, ok(token="t2"), ok(succeeded=True))

    async def use(client: Client) -> None:
        await get(client)
        assert await commit(client) == 41

    run(use, member, etcd=user)
    login = ("auth/authenticate", None)
    assert [(path, headers.get("Authorization")) for path, _, headers in member.asked] == [
        login, ("kv/range", "t1"), ("kv/txn", "t1"), login, ("kv/txn", "t2"),
    ]  # fmt: skip
    assert member.asked[0][1] == {"name": "lb", "password": "pass word"}


def test_a_token_that_is_refused_for_ever_is_an_error(user: Etcd) -> None:
    member = Member(ok(token="t1"), STALE, ok(token="t2"), STALE)
    error = failure(commit, member, etcd=user, kind=StoreError)
    assert "not the token" in error.message
    assert len(member.asked) == 4


def test_a_wrong_password_is_not_tried_at_every_member(user: Etcd) -> None:
    wrong = refuses(3, "etcdserver: authentication failed, invalid user ID or password")
    members = [Member(wrong), Member(wrong)]
    error = failure(get, *members, etcd=user, kind=StoreError)
    assert "'password_file'" in error.remedy
    assert not members[1].asked


def test_a_commit_is_certain_if_only_the_login_has_failed(user: Etcd) -> None:
    members = [Member(hangs_up), Member(ok(token="t"), ok(succeeded=True))]
    assert run(commit, *members, etcd=user) == 41


def test_a_password_does_not_go_where_a_member_redirects_to(user: Etcd) -> None:
    """With status 307, a client that follows sends the same body there."""
    member = Member(says("", 307, Location="/elsewhere"))
    error = failure(get, member, etcd=user, kind=StoreError)
    assert error.message == "it redirects to another address (HTTP status 307)"
    assert [path for path, _, _ in member.asked] == ["auth/authenticate"]


@pytest.mark.parametrize(
    ("mode", "content", "message"),
    [(0o644, "x", "mode 0644"), (0o600, "", "is empty"), (0, None, "cannot be read")],
)
def test_a_password_file_that_cannot_be_used(
    user: Etcd, mode: int, content: str | None, message: str
) -> None:
    assert user.password_file is not None
    if content is None:
        user.password_file.unlink()
    else:
        user.password_file.write_text(content)
        user.password_file.chmod(mode)
    error = failure(get, Member(ok()), etcd=user, kind=StoreError)
    assert message in error.message
    assert str(user.password_file) in error.message


# -- TLS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two self-signed certificates for localhost, each with its key."""
    folder: Path = tmp_path_factory.mktemp("tls")
    for name in ("etcd", "other"):
        self_signed(folder, name, "localhost", subject="/O=steelyard")
    return folder


@pytest.fixture(scope="module")
def server_tls(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "etcd.pem", folder / "etcd.key")
    return context


@pytest.fixture(scope="module")
def asking_tls(folder: Path) -> ssl.SSLContext:
    """A server's context that accepts one client certificate only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "etcd.pem", folder / "etcd.key")
    context.load_verify_locations(folder / "other.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_certificate_that_nobody_vouches_for_is_refused(
    folder: Path, server_tls: ssl.SSLContext
) -> None:
    etcd = Etcd(ca_file=folder / "other.pem")
    error = failure(commit, Member(ok()), etcd=etcd, tls=server_tls, kind=StoreError)
    assert "TLS certificate not accepted" in error.message
    assert "'ca_file'" in error.remedy


def test_files_are_read_again_when_they_change(
    tmp_path: Path, folder: Path, server_tls: ssl.SSLContext
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes((folder / "other.pem").read_bytes())

    async def use(client: Client) -> Listing:
        with pytest.raises(StoreError):
            await client.get("active")
        fresh = tmp_path / "fresh"
        fresh.write_bytes((folder / "etcd.pem").read_bytes())
        os.replace(fresh, ca)  # noqa: PTH105
        return await client.get("active")

    assert run(use, Member(ok()), etcd=Etcd(ca_file=ca), tls=server_tls) == Listing(41, ())


def test_a_client_certificate_is_presented(folder: Path, asking_tls: ssl.SSLContext) -> None:
    etcd = Etcd(ca_file=folder / "etcd.pem")
    named = replace(etcd, cert_file=folder / "other.pem", key_file=folder / "other.key")
    assert run(get, Member(ok()), etcd=named, tls=asking_tls) == Listing(41, ())
    failure(get, Member(ok()), etcd=etcd, tls=asking_tls, kind=StoreError)


@pytest.mark.parametrize(
    ("ca", "cert", "key", "message"),
    [
        ("absent.pem", None, None, "no such file"),
        ("etcd.key", None, None, "its content is not valid"),
        ("etcd.pem", "etcd.pem", "other.key", "do not belong together"),
        ("etcd.pem", "etcd.pem", "absent.key", "no such file"),
    ],
)
def test_tls_files_that_cannot_be_used(
    folder: Path, server_tls: ssl.SSLContext, ca: str, cert: str | None, key: str | None,
    message: str,
) -> None:  # fmt: skip
    etcd = Etcd(
        ca_file=folder / ca,
        cert_file=None if cert is None else folder / cert,
        key_file=None if key is None else folder / key,
    )
    members = [Member(ok()), Member(ok())]
    error = failure(get, *members, etcd=etcd, tls=server_tls, kind=StoreError)
    assert message in error.message
    assert not any(member.asked for member in members)


# -- watches


async def watched(client: Client, count: int) -> list[tuple[int, tuple[Change, ...]]]:
    async with aclosing(client.watch("log/", 30)) as changes:
        return [await anext(changes) for _ in range(count)]


def seen(revision: int, *events: Json) -> Json:
    return {"result": {"header": {**HEADER, "revision": str(revision)}, "events": list(events)}}


def test_a_watch_yields_changes_and_how_far_it_has_come() -> None:
    deleted = {"type": "DELETE", "kv": {"key": b64(PREFIX + "log/1"), "mod_revision": "32"}}
    member = Member(
        streams(
            CREATED,
            seen(90, {"kv": kv("log/1", "a", 31)}, deleted),  # the store is at 90 already
            seen(91),
            then=hangs,
        )
    )
    assert run(lambda client: watched(client, 2), member) == [
        (32, (Change("log/1", b"a", 31), Change("log/1", None, 32))),
        (91, ()),
    ]
    ((path, body, headers),) = member.asked
    assert path == "watch"
    assert body["create_request"] == {
        "key": b64(PREFIX + "log/"),
        "range_end": b64("/steelyard/prod/log0"),
        "start_revision": "30",
        "progress_notify": True,
    }
    assert headers["Grpc-Metadata-hasleader"] == "true"


def test_a_line_may_come_in_pieces_and_be_long() -> None:
    line = json.dumps(seen(31, {"kv": kv("log/1", "x" * 300_000, 31)})).encode() + b"\n"
    pieces = [line[at : at + 50_000] for at in range(0, len(line), 50_000)]
    ((_, (change,)),) = run(
        lambda client: watched(client, 1), Member(streams(CREATED, *pieces, then=hangs))
    )
    assert change.value == b"x" * 300_000


def test_a_line_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "MOST_BYTES", 1 << 20)
    member = Member(streams(CREATED, *[b" " * (1 << 19)] * 8, then=hangs))
    error = failure(lambda client: watched(client, 1), member, kind=StoreError)
    assert error.message == "a message of the watch is longer than 1 MiB"


def test_a_watch_from_before_the_compaction() -> None:
    gone = {"result": {"header": HEADER, "canceled": True, "compact_revision": "35"}}
    error = failure(
        lambda client: watched(client, 1), Member(streams(CREATED, gone)), kind=CompactedError
    )
    assert "35" in error.message


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (streams(CREATED), "it has ended the watch"),
        (streams(CREATED, then=hangs_up), "connection closed"),
        (streams(CREATED, b'{"result":{"hea'), "it has ended the watch"),
        (streams(CREATED, b'{"result":{"hea\n'), "not as etcd does"),
        (
            streams(CREATED, {"error": {"code": 14, "message": "etcdserver: no leader"}}),
            "no leader",
        ),
        (
            streams(
                CREATED, {"error": {"grpc_code": 14, "http_code": 503, "message": "etcd 3.4 stops"}}
            ),
            "etcd 3.4 stops",
        ),
        (streams(CREATED, {"result": {"header": HEADER, "canceled": True}}), "ended the watch"),
        (streams(CREATED, seen(31, {"kv": {}})), "not as etcd does"),
    ],
)
def test_the_end_of_a_watch_is_an_error(end: Answer, message: str) -> None:
    error = failure(lambda client: watched(client, 1), Member(end), kind=StoreError)
    assert message in error.message


def test_the_next_watch_goes_to_another_member() -> None:
    members = [Member(streams(CREATED)), Member(streams(CREATED, seen(31), then=hangs))]

    async def use(client: Client) -> list[Any]:
        with pytest.raises(StoreError):
            await watched(client, 1)
        return await watched(client, 1)

    assert run(use, *members) == [(31, ())]


def test_a_watch_begins_at_a_member_that_answers() -> None:
    members = [Member(says("<html>")), Member(streams(CREATED, seen(31), then=hangs))]
    assert run(lambda client: watched(client, 1), *members, absent=1) == [(31, ())]


def test_a_watch_that_etcd_refuses(user: Etcd) -> None:
    def refused(why: str) -> Answer:
        reason = f"rpc error: code = X desc = etcdserver: {why}"
        result = {"header": HEADER, "created": True, "canceled": True, "cancel_reason": reason}
        return streams({"result": result})

    stale = Member(
        ok(token="t1"),
        refused("invalid auth token"),
        ok(token="t2"),
        streams(CREATED, seen(31), then=hangs),
    )
    assert run(lambda client: watched(client, 1), stale, etcd=user) == [(31, ())]
    error = failure(
        lambda client: watched(client, 1), Member(refused("permission denied")), kind=StoreError
    )
    assert "grant-permission" in error.remedy


def test_a_watch_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def is_silent(client: Client) -> bool:
        """Whether it was created in time, and is silent for longer than that."""
        async with aclosing(client.watch("log/", 30)) as changes:
            try:
                await asyncio.wait_for(anext(changes), 3 * gateway.ANSWER_S)
            except TimeoutError:
                return True
            except StoreError:
                return False
        raise AssertionError

    for limit_s in (0.2, 2.0, 20.0):  # a slow host needs more
        monkeypatch.setattr(gateway, "ANSWER_S", limit_s)
        if run(is_silent, Member(streams(CREATED, then=hangs))):
            return
    pytest.fail("it is given up although it was created")


def test_a_watch_that_is_not_created_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "ANSWER_S", 0.2)
    error = failure(lambda client: watched(client, 1), Member(streams(then=hangs)), kind=StoreError)
    assert error.message == "no complete answer in time"
