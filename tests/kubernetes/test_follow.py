"""EndpointSlices in the real API machinery: rollouts, deletions, lost watches, rights.

make test-kubernetes builds the API server, and runs this.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import aiohttp
import pytest

from agent.discovery import kubernetes, sources
from agent.discovery.answer import Answer
from agent.discovery.kubernetes import answers
from agent.discovery.slices import from_slices
from agent.errors import DiscoveryError
from agent.model import AdminState, Discover
from tests.kubernetes.cluster import RBAC, Cluster, Json

pytestmark = pytest.mark.kubernetes

LIMIT_S = 60.0
READY = {"ready": True, "serving": True, "terminating": False}
STARTING = {"ready": False, "serving": False, "terminating": False}
TERMINATING = {"ready": False, "serving": True, "terminating": True}
TOKEN, NOBODY = "steelyard-token", "nobody-token"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        running.start_server()
        for name in ("default", "other"):
            metadata = {"name": name}
            running.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def _empty(cluster: Cluster) -> None:
    cluster.kubectl("delete", "endpointslices", "--all", "--all-namespaces")


def endpoint(number: int, conditions: Json = READY, pod: str = "vllm") -> Json:
    """An endpoint as the controller of Kubernetes writes it."""
    return {
        "addresses": [f"10.1.{number // 250}.{number % 250 + 1}"],
        "conditions": conditions,
        "nodeName": f"gpu-{number % 8}",
        "targetRef": {
            "kind": "Pod",
            "namespace": "default",
            "name": f"{pod}-{number}",
            "uid": f"00000000-0000-0000-0000-{number:012}",
        },
        "zone": f"zone-{number % 2}",
    }


def piece(name: str, *endpoints: Json, service: str = "vllm") -> Json:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [
            {"name": "http", "port": 8000, "protocol": "TCP"},
            {"name": "metrics", "port": 9000, "protocol": "TCP"},
        ],
    }


def means(*pieces: Json) -> Answer:
    return from_slices(pieces, 4, "http", "test")


def discover_of(cluster: Cluster, token: str = TOKEN, service: str = "default/vllm") -> Discover:
    path = cluster.kubeconfig(token)
    return Discover(kubernetes=service, kubeconfig=path, port_name="http")


class Follower:
    """Takes every answer, and asks again after an error, as the agent does."""

    def __init__(self, discover: Discover) -> None:
        self.answers: list[Answer] = []
        self.problems: list[str] = []
        self._discover, self._news = discover, asyncio.Event()

    async def run(self) -> None:
        while True:
            try:
                async with aclosing(answers(self._discover, 4)) as found:
                    async for answer in found:
                        self.answers.append(answer)
                        self._news.set()
            except DiscoveryError as error:
                self.problems.append(error.message)
                self._news.set()
                await asyncio.sleep(0.2)

    async def until(self, answer: Answer) -> None:
        await self.wait(lambda: self.answers[-1:] == [answer])

    async def wait(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not is_so():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def following(discover: Discover) -> AsyncIterator[Follower]:
    follower = Follower(discover)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_slices_become_targets_and_their_changes_too(cluster: Cluster):
    async def run() -> None:
        first = piece("vllm-abc", endpoint(1), endpoint(2))
        second = piece("vllm-def", endpoint(3))
        other = piece("chat-abc", endpoint(9), service="chat")
        await asyncio.to_thread(cluster.apply, first, second, other)
        async with following(discover_of(cluster)) as follower:
            await follower.until(means(first, second))
            changed = piece("vllm-abc", endpoint(1, TERMINATING), endpoint(4))
            await asyncio.to_thread(cluster.apply, changed)
            await follower.until(means(changed, second))
            assert follower.answers[-1].targets[0].admin is AdminState.DRAIN
            await asyncio.to_thread(cluster.kubectl, "delete", "endpointslices", "vllm-def")
            await follower.until(means(changed))
            await asyncio.to_thread(cluster.kubectl, "delete", "endpointslices", "vllm-abc")
            await follower.until(Answer(()))
            assert not follower.problems

    asyncio.run(run())


def test_a_rollout_of_100_endpoints_is_followed_step_by_step(cluster: Cluster):
    """Ten at a time: the old ones terminate, the new ones start, the new ones are ready."""

    async def run() -> None:
        states = [[endpoint(number, pod="old") for number in range(100)]]
        for done in range(0, 100, 10):
            for conditions in (TERMINATING, STARTING, READY):
                is_old = conditions is TERMINATING
                fresh = [
                    endpoint(
                        number if is_old else number + 500, conditions, "old" if is_old else "new"
                    )
                    for number in range(done, done + 10)
                ]
                states.append([*states[-1][:done], *fresh, *states[-1][done + 10 :]])
        meant = [means(piece("vllm-abc", *state)) for state in states]
        await asyncio.to_thread(cluster.apply, piece("vllm-abc", *states[0]))
        async with following(discover_of(cluster)) as follower:
            await follower.until(meant[0])
            for state in states[1:]:
                await asyncio.to_thread(cluster.apply, piece("vllm-abc", *state))
            await follower.until(meant[-1])
        places = [meant.index(answer) for answer in follower.answers]
        assert places == sorted(places)
        fewest = min(
            sum(each.admin is AdminState.ACTIVE for each in answer.targets)
            for answer in follower.answers
        )
        print(f"\n{len(states)} states, {len(follower.answers)} answers, {fewest} active at least")
        assert fewest >= 90
        assert not follower.problems

    asyncio.run(run())


def test_a_list_of_many_slices_comes_in_parts(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kubernetes, "CHUNK", 3)
    pieces = [piece(f"vllm-{number}", endpoint(number)) for number in range(10)]
    cluster.apply(*pieces)
    assert asyncio.run(sources.ask(discover_of(cluster), 4)) == means(*pieces)


def test_what_changes_while_the_watch_is_away_and_etcd_is_compacted_is_seen(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    """The next watch begins at a state that nobody knows any more: 410, and a new list."""
    lists = 0
    listed = kubernetes._Api.listed

    async def counted(api: kubernetes._Api) -> object:
        nonlocal lists
        lists += 1
        return await listed(api)

    monkeypatch.setattr(kubernetes._Api, "listed", counted)

    async def run() -> None:
        before = piece("vllm-abc", endpoint(1)), piece("vllm-def", endpoint(2))
        after = piece("vllm-def", endpoint(2), endpoint(3))
        await asyncio.to_thread(cluster.apply, *before)
        version = await _version(cluster)
        async with aclosing(answers(discover_of(cluster), 4)) as found:
            assert await anext(found) == means(*before)
            # It is asked for nothing more here, so it has not begun to watch.
            await asyncio.to_thread(cluster.kubectl, "delete", "endpointslices", "vllm-abc")
            await asyncio.to_thread(cluster.apply, after)
            await asyncio.to_thread(cluster.stop_server)
            await asyncio.to_thread(cluster.start_server)
            await asyncio.to_thread(cluster.compact)
            assert await _code_of_watch(cluster, version) == 410
            async with asyncio.timeout(LIMIT_S):
                assert await anext(found) == means(after)
            assert lists == 2
            # The watch after it works.
            await asyncio.to_thread(cluster.apply, before[0])
            async with asyncio.timeout(LIMIT_S):
                assert await anext(found) == means(before[0], after)
            assert lists == 2

    asyncio.run(run())


async def _ask(cluster: Cluster, query: str) -> Json:
    """The first line of an answer."""
    url = f"{cluster.url}/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?{query}"
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
        session.get(url, ssl=False) as response,
    ):
        found: Json = json.loads(await response.content.readline())
        return found


async def _version(cluster: Cluster) -> str:
    return str((await _ask(cluster, "limit=1"))["metadata"]["resourceVersion"])


async def _code_of_watch(cluster: Cluster, version: str) -> int:
    found = await _ask(cluster, f"watch=true&timeoutSeconds=20&resourceVersion={version}")
    return int(found.get("object", found)["code"])


def test_an_api_server_that_is_away_for_a_while_is_followed_again(cluster: Cluster):
    async def run() -> None:
        first, second = piece("vllm-abc", endpoint(1)), piece("vllm-abc", endpoint(2))
        await asyncio.to_thread(cluster.apply, first)
        async with following(discover_of(cluster)) as follower:
            await follower.until(means(first))
            await asyncio.to_thread(cluster.stop_server)
            await follower.wait(lambda: len(follower.problems) > 3)
            await asyncio.to_thread(cluster.start_server)
            await asyncio.to_thread(cluster.apply, second)
            await follower.until(means(second))
            assert all(answer.targets for answer in follower.answers)
            assert any("connection refused" in problem for problem in follower.problems)

    asyncio.run(run())


def test_the_rights_of_the_manifest_suffice_and_are_no_more(cluster: Cluster):
    cluster.kubectl("apply", "--validate=false", "-f", str(RBAC))
    only = piece("vllm-abc", endpoint(1))
    cluster.apply(only)
    assert asyncio.run(sources.ask(discover_of(cluster), 4)) == means(only)
    for words in (
        ("get", "endpointslices", "vllm-abc"),
        ("delete", "endpointslices", "vllm-abc"),
        ("get", "secrets"),
        ("get", "endpointslices", "--namespace", "other"),
    ):
        with pytest.raises(RuntimeError, match="Forbidden"):
            cluster.kubectl(*words, token=TOKEN)


@pytest.mark.parametrize(
    ("token", "service", "words"),
    [
        (NOBODY, "default/vllm",
         "may not list endpointslices.discovery.k8s.io in the namespace default"),
        (TOKEN, "other/vllm",
         "may not list endpointslices.discovery.k8s.io in the namespace other"),
        ("no-token", "default/vllm", "it does not accept our credentials"),
    ],
)  # fmt: skip
def test_without_rights_the_verb_is_named(cluster: Cluster, token: str, service: str, words: str):
    with pytest.raises(DiscoveryError) as caught:
        asyncio.run(sources.ask(discover_of(cluster, token, service), 4))
    assert words in caught.value.message
    assert token not in str(caught.value)
