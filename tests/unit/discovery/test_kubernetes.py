"""Lists and watches against an API server with every awkward habit that real ones have."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from agent.discovery import kubernetes, sources
from agent.discovery.answer import Answer
from agent.discovery.kubernetes import answers
from agent.errors import DiscoveryError
from agent.model import Discover, Target
from tests.unit.discovery.apiserver import (
    ApiServer,
    Json,
    Turn,
    bookmark,
    error,
    event,
    hang,
    lists,
    piece,
    says,
    watches,
)

TOKEN = "e1tF.0-secret"  # noqa: S105
LIST = {"labelSelector": "kubernetes.io/service-name=vllm", "limit": "500"}

type Check = Callable[[ApiServer, AsyncIterator[Answer]], Any]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between watches, and a minute for whatever must succeed."""
    monkeypatch.setattr(kubernetes, "PAUSE_S", 0.0)
    monkeypatch.setattr(kubernetes, "REQUEST_S", 60.0)
    monkeypatch.setattr(kubernetes, "GATHER_S", 0.01)


def target(address: str) -> Target:
    return Target(ip_address(address), 8000)


def named(*addresses: str) -> Answer:
    return Answer(tuple(target(address) for address in addresses))


@asynccontextmanager
async def following(folder: Path, *turns: Turn) -> AsyncIterator[tuple[ApiServer, Any, Discover]]:
    async with ApiServer(*turns) as server:
        discover = Discover(kubernetes="default/vllm", kubeconfig=server.kubeconfig(folder))
        async with aclosing(answers(discover, 4)) as found:
            yield server, found, discover


def follow(folder: Path, *turns: Turn, count: int) -> tuple[list[Answer], list[dict[str, str]]]:
    """The first answers, and what was asked for them."""

    async def run() -> tuple[list[Answer], list[dict[str, str]]]:
        async with following(folder, *turns) as (server, found, _):
            return [await anext(found) for _ in range(count)], server.queries

    return asyncio.run(run())


def failure(folder: Path, *turns: Turn, after: int = 0) -> DiscoveryError:
    """What is wrong after the first answers."""

    async def run() -> DiscoveryError:
        async with following(folder, *turns) as (_, found, discover):
            for _number in range(after):
                await anext(found)
            with pytest.raises(DiscoveryError) as caught:
                await anext(found)
            assert caught.value.where == discover.source
            assert caught.value.remedy
            return caught.value

    return asyncio.run(run())


# -- lists


def test_the_slices_of_the_service_are_listed(tmp_path: Path):
    async def run() -> None:
        turns = lists(piece("a", "10.1.0.5"), piece("b", "10.1.0.6"))
        async with following(tmp_path, turns) as (server, found, _):
            assert await anext(found) == named("10.1.0.5", "10.1.0.6")
            (request,) = server.asked
            path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
            assert (request.path, dict(request.query)) == (path, LIST)
            assert request.headers["Accept"] == "application/json"
            assert "Authorization" not in request.headers

    asyncio.run(run())


def test_a_service_without_slices_is_an_empty_answer(tmp_path: Path):
    assert follow(tmp_path, lists(), count=1)[0] == [named()]


def test_a_long_list_comes_in_parts(tmp_path: Path):
    found, queries = follow(
        tmp_path,
        lists(piece("a", "10.1.0.5"), more="next", version="9"),
        lists(more="last", version="9"),
        lists(piece("b", "10.1.0.6"), version="9"),
        count=1,
    )
    assert found == [named("10.1.0.5", "10.1.0.6")]
    assert queries == [LIST, LIST | {"continue": "next"}, LIST | {"continue": "last"}]


def test_a_list_whose_parts_become_too_old_is_begun_anew(tmp_path: Path):
    first = lists(piece("a", "10.1.0.5"), more="next")
    found, queries = follow(tmp_path, first, says("", 410), lists(piece("b", "10.1.0.6")), count=1)
    assert found == [named("10.1.0.6")]
    assert queries == [LIST, LIST | {"continue": "next"}, LIST]
    message = failure(tmp_path, *[first, says("", 410)] * 3).message
    assert message.endswith("the parts of the list become too old before the last one is read")


def test_a_list_that_is_too_long_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = piece("a", "10.1.0.5")
    monkeypatch.setattr(kubernetes, "MOST_LIST_BYTES", 1000)
    assert follow(tmp_path, lists(one), count=1)[0] == [named("10.1.0.5")]
    parts = [lists(one, more="next") for _ in range(5)]
    assert failure(tmp_path, *parts).message.endswith("the list is longer than 0 MiB")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<html>", "the API server sends something else than a JSON mapping in a list"),
        ("[]", "the API server sends something else than a JSON mapping in a list"),
        ("[" * 100_000, "the API server sends something else than a JSON mapping in a list"),
        ({}, "the API server sends something else than a list of EndpointSlices"),
        (
            {"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": []},
            "the API server sends something else than a list of EndpointSlices",
        ),
        (
            {"kind": "EndpointSliceList", "metadata": {}, "items": []},
            "the API server sends something else than a list of EndpointSlices",
        ),
        (
            {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"}, "items": {}},
            "the API server sends something else than a list of EndpointSlices",
        ),
        (
            {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"}, "items": [5]},
            "the EndpointSlice  is not as the API promises: it is not a mapping",
        ),
    ],
)
def test_what_is_no_list_is_no_answer(tmp_path: Path, body: object, words: str):
    assert failure(tmp_path, says(body)).message == words


# -- statuses


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (says("", 401), "it does not accept our credentials (HTTP status 401)"),
        (
            says("", 403),
            "our account may not list endpointslices.discovery.k8s.io in the namespace default (",
        ),
        (says("", 404), "it has no EndpointSlices of discovery.k8s.io/v1 (HTTP status 404)"),
        (says("", 429, **{"Retry-After": "7"}), "it is overloaded, and asks to wait 7 s (HTTP"),
        (says("", 429, **{"Retry-After": "Wed"}), "it is overloaded (HTTP status 429)"),
        (says("", 500), "it answers with an error (HTTP status 500)"),
        (says("", 302, Location="/"), "it answers with an error (HTTP status 302)"),
    ],
)
def test_a_status_says_what_to_do(tmp_path: Path, turn: Turn, words: str):
    message = failure(tmp_path, turn).message
    assert message.startswith("the API server http://127.0.0.1:")
    assert words in message


def test_the_verb_that_is_missing_is_named(tmp_path: Path):
    refused = failure(tmp_path, lists(), says("", 403), after=1)
    assert "may not watch endpointslices.discovery.k8s.io in the namespace" in refused.message
    assert "deploy/kubernetes/rbac.yaml" in refused.remedy


def test_an_api_server_that_is_away_is_no_answer(tmp_path: Path):
    async def run(port: int) -> None:
        server = ApiServer()
        server.port = port
        path = server.kubeconfig(tmp_path)
        with pytest.raises(DiscoveryError, match="connection refused"):
            await anext(answers(Discover(kubernetes="default/vllm", kubeconfig=path), 4))

    with socket.socket() as held:  # nobody else gets the port, and nobody listens
        held.bind(("127.0.0.1", 0))
        asyncio.run(run(held.getsockname()[1]))


def test_an_api_server_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kubernetes, "REQUEST_S", 0.2)
    assert failure(tmp_path, hang).message.endswith("no complete answer within 200 ms")


def test_a_list_that_is_cut_is_no_answer(tmp_path: Path):
    message = failure(tmp_path, watches('{"kind":', end="cut")).message
    assert message.endswith("connection closed before the end of the answer")


# -- watches


def test_each_change_is_an_answer(tmp_path: Path):
    async def run() -> None:
        steps = [asyncio.Event() for _ in range(3)]
        turn = watches(
            steps[0],
            event("ADDED", piece("b", "10.1.0.6", version="11")),
            steps[1],
            event("MODIFIED", piece("a", "10.1.0.7", version="12")),
            steps[2],
            event("DELETED", piece("b", "10.1.0.6", version="13")),
            end="hang",
        )
        async with following(tmp_path, lists(piece("a", "10.1.0.5")), turn) as (server, found, _):
            assert await anext(found) == named("10.1.0.5")
            for step, answer in zip(
                steps,
                [named("10.1.0.5", "10.1.0.6"), named("10.1.0.6", "10.1.0.7"), named("10.1.0.7")],
                strict=True,
            ):
                step.set()
                assert await anext(found) == answer
            query = server.queries[1]
            assert query["watch"] == query["allowWatchBookmarks"] == "true"
            assert (query["resourceVersion"], query["timeoutSeconds"]) == ("10", "300")
            assert query["labelSelector"] == LIST["labelSelector"]

    asyncio.run(run())


def test_events_that_come_soon_after_each_other_are_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kubernetes, "GATHER_S", 60.0)  # until the watch ends

    async def run() -> None:
        later = asyncio.Event()
        first = [event("ADDED", piece(f"s{n}", f"10.1.1.{n}", version=f"{n}")) for n in (11, 12)]
        turn = watches(*first, later, event("ADDED", piece("s13", "10.1.1.13", version="13")))
        async with following(tmp_path, lists(), turn) as (server, found, _):
            assert await anext(found) == named()
            waiting = asyncio.ensure_future(anext(found))
            await server.until_asked(2)
            await asyncio.sleep(0.1)  # in which the first events come
            later.set()
            assert await waiting == named("10.1.1.11", "10.1.1.12", "10.1.1.13")

    asyncio.run(run())


def test_a_server_that_vanishes_is_noticed_by_keepalive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    set_on: list[tuple[int, int]] = []
    keep_alive = kubernetes._keep_alive

    def recorded(response: aiohttp.ClientResponse) -> None:
        keep_alive(response)
        assert response.connection is not None
        assert response.connection.transport is not None
        end = response.connection.transport.get_extra_info("socket")
        idle = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        set_on.append((end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), idle))

    monkeypatch.setattr(kubernetes, "_keep_alive", recorded)
    follow(tmp_path, lists(), watches(event("ADDED", piece("a", "10.1.0.5")), end="hang"), count=2)
    assert set_on == [(1, 20)]


def test_a_change_that_changes_no_target_is_no_answer(tmp_path: Path):
    again = event("MODIFIED", piece("a", "10.1.0.5", version="11"))
    other = event("MODIFIED", piece("a", "10.1.0.6", version="12"))
    found, queries = follow(
        tmp_path, lists(piece("a", "10.1.0.5")), watches(again), watches(other), count=2
    )
    assert found == [named("10.1.0.5"), named("10.1.0.6")]
    assert [query["resourceVersion"] for query in queries[1:]] == ["10", "11"]


@pytest.mark.parametrize("end", ["end", "cut"])
def test_a_watch_that_ends_is_begun_again_from_where_it_was(tmp_path: Path, end: str):
    first = watches(event("ADDED", piece("b", "10.1.0.6", version="11")), bookmark("20"), end=end)
    second = watches(event("ADDED", piece("c", "10.1.0.7", version="21")))
    found, queries = follow(tmp_path, lists(), first, second, count=3)
    assert found == [named(), named("10.1.0.6"), named("10.1.0.6", "10.1.0.7")]
    assert [query.get("resourceVersion") for query in queries] == [None, "10", "20"]


def test_half_a_line_is_forgotten(tmp_path: Path):
    first = watches(bookmark("20"), '{"type": "ADDED", "object": {"kind": "Endp', end="cut")
    second = watches(event("ADDED", piece("c", "10.1.0.7", version="21")))
    found, queries = follow(tmp_path, lists(), first, second, count=2)
    assert found == [named(), named("10.1.0.7")]
    assert queries[2]["resourceVersion"] == "20"


def test_a_line_may_come_in_pieces(tmp_path: Path):
    line = '{"type": "BOOKMARK", "object": {"kind": "EndpointSlice", "metadata": '
    turns = watches(line, '{"resourceVersion": "20"}}}\n\n', end="end")
    queries = follow(
        tmp_path, lists(), turns, watches(event("ADDED", piece("a", "10.1.0.5"))), count=2
    )[1]
    assert queries[2]["resourceVersion"] == "20"


@pytest.mark.parametrize("gone", [says("", 410), watches(error(410))])
def test_after_410_a_new_list_shows_what_was_deleted_meanwhile(tmp_path: Path, gone: Turn):
    before = lists(piece("a", "10.1.0.5"), piece("b", "10.1.0.6"))
    after = lists(piece("b", "10.1.0.6"), piece("c", "10.1.0.7"), version="90")
    more = watches(event("DELETED", piece("b", "10.1.0.6", version="91")))
    found, queries = follow(tmp_path, before, gone, after, more, count=3)
    assert found == [
        named("10.1.0.5", "10.1.0.6"),
        named("10.1.0.6", "10.1.0.7"),
        named("10.1.0.7"),
    ]
    assert [query.get("resourceVersion") for query in queries] == [None, "10", None, "90"]


def test_410_in_the_middle_of_a_watch_is_noticed(tmp_path: Path):
    async def run() -> None:
        later = asyncio.Event()
        turn = watches(event("ADDED", piece("b", "10.1.0.6", version="11")), later, error(410))
        turns = [lists(), turn, lists(piece("c", "10.1.0.7"))]
        async with following(tmp_path, *turns) as (_, found, _discover):
            assert [await anext(found), await anext(found)] == [named(), named("10.1.0.6")]
            later.set()
            assert await anext(found) == named("10.1.0.7")

    asyncio.run(run())


def test_a_watch_that_is_silent_for_too_long_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    take, speaks = kubernetes._take, event("ADDED", piece("c", "10.1.0.7", version="21"))

    def silence(seconds: float) -> None:
        monkeypatch.setattr(kubernetes, "WATCH_S", seconds)
        monkeypatch.setattr(kubernetes, "GRACE_S", seconds)

    def taken(known: Any, events: Any) -> None:
        take(known, events)
        silence(0.1)  # what the watch has to say was heard

    async def other(request: web.BaseRequest) -> web.StreamResponse:
        silence(60.0)
        return await watches(speaks, end="hang")(request)

    silence(60.0)
    monkeypatch.setattr(kubernetes, "_take", taken)
    silent = watches(bookmark("20"), end="hang")
    found, queries = follow(tmp_path, lists(), silent, other, count=2)
    assert found == [named(), named("10.1.0.7")]
    assert queries[2]["resourceVersion"] == "20"


def test_a_watch_that_always_ends_at_once_is_not_begun_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(delay: float) -> None:
        if delay:
            pauses.append(delay)
        await sleep(0)

    monkeypatch.setattr(kubernetes, "PAUSE_S", 3600.0)
    monkeypatch.setattr(kubernetes.asyncio, "sleep", pause)
    other = watches(event("ADDED", piece("c", "10.1.0.7")))
    follow(tmp_path, lists(), watches(), watches(), other, count=2)
    assert pauses == [3600.0, 3600.0]


STRANGE = "the API server sends something else than "


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("<html>\n", f"{STRANGE}a JSON mapping in a watch"),
        ("\xff\n", f"{STRANGE}a JSON mapping in a watch"),
        ("5\n", f"{STRANGE}a JSON mapping in a watch"),
        (
            event("ADDED", piece("a") | {"kind": "Pod"}),
            f"{STRANGE}an EndpointSlice in a watch (Pod)",
        ),
        (event("ADDED", []), f"{STRANGE}an EndpointSlice in a watch (null)"),  # type: ignore[arg-type]
        (event("RENAMED", piece("a")), f"{STRANGE}an event of a known type (RENAMED)"),
        (
            event("ADDED", {"kind": "EndpointSlice", "metadata": {"name": "a"}}),
            f"{STRANGE}an object with a resourceVersion",
        ),
        (
            event("ADDED", piece("a") | {"endpoints": 5}),
            "the EndpointSlice a is not as the API promises: endpoints is not a list",
        ),
        (error(500), "the API server ends the watch with the error 500"),
        (event("ERROR", {}), "the API server ends the watch with the error null"),
    ],
)
def test_an_event_that_is_not_understood_is_no_answer(tmp_path: Path, sent: Any, words: str):
    assert failure(tmp_path, lists(), watches(sent, end="hang"), after=1).message == words


def test_a_line_without_end_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kubernetes, "MOST_LINE_BYTES", 1 << 20)
    endless = watches(*["x" * 65_536] * 20, end="hang")
    message = failure(tmp_path, lists(), endless, after=1).message
    assert message == "an event of the watch is longer than 1 MiB"


def test_an_api_server_that_goes_away_is_no_answer(tmp_path: Path):
    async def run() -> None:
        async with following(tmp_path, lists(), watches(end="hang")) as (server, found, _):
            await anext(found)
            waiting = asyncio.ensure_future(anext(found))
            await server.until_asked(2)
            await server.__aexit__()
            with pytest.raises(DiscoveryError, match="connection refused"):
                await waiting

    asyncio.run(run())


# -- who asks


def test_a_token_is_read_for_each_request(tmp_path: Path, tls: ssl.SSLContext, certificate: Path):
    token = tmp_path / "token"
    token.write_text("old")

    async def run() -> None:
        step = asyncio.Event()
        turns = [lists(), watches(step), watches(event("ADDED", piece("a", "10.1.0.5")))]
        async with ApiServer(*turns, tls=tls) as server:
            path = server.kubeconfig(tmp_path, {"tokenFile": "token"}, certificate)
            async with aclosing(answers(Discover(kubernetes="a/b", kubeconfig=path), 4)) as found:
                assert await anext(found) == named()
                waiting = asyncio.ensure_future(anext(found))
                await server.until_asked(2)
                token.write_text("new")
                step.set()
                assert await waiting == named("10.1.0.5")
            assert server.tokens == ["Bearer old", "Bearer old", "Bearer new"]

    asyncio.run(run())


def test_after_401_another_token_helps(tmp_path: Path, tls: ssl.SSLContext, certificate: Path):
    token = tmp_path / "token"
    token.write_text(TOKEN)

    async def run() -> None:
        async with ApiServer(says("", 401), lists(), tls=tls) as server:
            path = server.kubeconfig(tmp_path, {"tokenFile": "token"}, certificate)
            discover = Discover(kubernetes="a/b", kubeconfig=path)
            with pytest.raises(DiscoveryError, match="does not accept our credentials") as caught:
                await sources.ask(discover, 4)
            assert TOKEN not in str(caught.value)
            token.write_text("new")
            assert await sources.ask(discover, 4) == named()
            assert server.tokens == [f"Bearer {TOKEN}", "Bearer new"]

    asyncio.run(run())


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path, tls: ssl.SSLContext):
    async def run() -> None:
        async with ApiServer(lists(), tls=tls) as server:
            path = server.kubeconfig(tmp_path, {"token": TOKEN})
            with pytest.raises(DiscoveryError, match="TLS certificate not accepted"):
                await sources.ask(Discover(kubernetes="a/b", kubeconfig=path), 4)
            assert server.asked == []

    asyncio.run(run())


def test_no_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert follow(tmp_path, lists(), count=1)[0] == [named()]


def test_a_question_is_the_first_answer(tmp_path: Path):
    async def run() -> None:
        async with ApiServer(lists(piece("a", "10.1.0.5"))) as server:
            path = server.kubeconfig(tmp_path)
            found = await sources.ask(Discover(kubernetes="default/vllm", kubeconfig=path), 4)
            assert found == named("10.1.0.5")
            assert len(server.asked) == 1

    asyncio.run(run())


# -- any history, with any habits

type Change = tuple[str, str | None]  # the slice's name, and its address; None: it is deleted
MOODS = ("end", "cut", "half a line", "status 410", "event 410", "bookmark")
changes = st.tuples(
    st.sampled_from("abc"), st.sampled_from([None, "10.1.0.1", "10.1.0.2", "10.1.0.3"])
)
moods = st.tuples(st.sampled_from(MOODS), st.integers(0, 3))


class Past:
    """What has happened to the slices, and how much of it each watch shows before its mood."""

    def __init__(self, history: list[Change], habits: list[tuple[str, int]]) -> None:
        self._habits = list(habits)
        self._now = 0  # so much has happened
        self.states: list[dict[str, str]] = [{}]
        self._events: list[Json] = []
        for name, address in history:
            state = dict(self.states[-1])
            known = state.pop(name, None)
            if address is not None:
                state[name] = address
            kind = "DELETED" if address is None else "ADDED" if known is None else "MODIFIED"
            body = piece(name, address or known or "10.1.0.1", version=str(len(self.states)))
            self._events.append(event(kind, body))
            self.states.append(state)

    async def turn(self, request: web.BaseRequest) -> web.StreamResponse:
        mood, steps = self._habits.pop(0) if self._habits else ("hang", len(self.states))
        start = int(request.query.get("resourceVersion", "0"))
        if "watch" not in request.query:
            state = self.states[self._now]
            pieces = [piece(name, address) for name, address in state.items()]
            return await lists(*pieces, version=str(self._now))(request)
        self._now = min(self._now + steps, len(self._events))
        if mood == "status 410":
            return await says("", 410)(request)
        shown: list[Any] = list(self._events[start : self._now])
        if mood == "event 410":
            shown = [*shown[:1], error(410)]
        if mood == "half a line" and shown:
            shown[-1] = json.dumps(shown[-1])[:-9]
        if mood == "bookmark":
            shown.append(bookmark(str(self._now)))
        end = {"hang": "hang", "cut": "cut", "half a line": "cut"}.get(mood, "end")
        return await watches(*shown, end=end)(request)


@given(st.lists(changes, max_size=8), st.lists(moods, max_size=6))
def test_each_answer_is_a_state_and_the_last_one_is_the_newest(
    history: list[Change], habits: list[tuple[str, int]]
):
    past = Past([*history, ("z", "10.1.0.9")], habits)
    meant = [named(*sorted(set(state.values()))) for state in past.states]

    async def run(folder: Path) -> list[Answer]:
        found: list[Answer] = []
        async with following(folder, *[past.turn] * 50) as (_, stream, _discover):
            while not found or found[-1] != meant[-1]:
                found.append(await anext(stream))
        return found

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes, "PAUSE_S", 0.0)
        patch.setattr(kubernetes, "GATHER_S", 0.001)
        found = asyncio.run(run(Path(folder)))
    place = 0
    for answer in found:
        place = meant.index(answer, place)


@given(st.binary(max_size=60) | st.sampled_from(["{}", '{"type":"ADDED","object":{}}']))
def test_arbitrary_bytes_are_no_answer(sent: bytes | str):
    body = sent.encode() if isinstance(sent, str) else sent
    with pytest.raises(DiscoveryError):
        kubernetes._part(body, "here")
    with pytest.raises(DiscoveryError):
        kubernetes._event(body, "here")
