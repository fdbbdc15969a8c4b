"""Follows the EndpointSlices of a Service in Kubernetes: lists them, and watches what changes.

The API server numbers every state (``resourceVersion``). A watch sends what has happened since the
state that was listed, so nothing is missed between the two, nor between one watch and the next.
What an answer means is decided by ``agent.discovery.slices``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

import aiohttp

from agent.discovery.answer import Answer, shown
from agent.discovery.kubeconfig import Access, in_cluster, load
from agent.discovery.kubelogin import Identity, Login
from agent.discovery.reading import http_session, http_words
from agent.discovery.slices import Slice, merged, read_slice
from agent.errors import DiscoveryError
from agent.health.outcome import duration
from agent.model import Discover

CHUNK = 500  # slices in one part of a list
MOST_LIST_BYTES = 64 << 20
MOST_LINE_BYTES = 4 << 20  # of a watch; by default etcd holds no object of more than 1.5 MiB
REQUEST_S = 30.0  # for one part of a list, and for the head of a watch
WATCH_S = 300.0  # after which the API server ends a watch
GRACE_S = 15.0  # for which a watch may be silent after its end is due
GATHER_S = 0.1  # in which events are gathered into one answer
PAUSE_S = 1.0  # before a watch is begun again if it has ended sooner than that
_LISTS = 3  # attempts at a list whose parts become too old
_PIECE = 1 << 16
_GONE = 410
_RBAC = "grant the rights of deploy/kubernetes/rbac.yaml to its account: kubectl auth can-i --list"
# Without keepalive, a vanished server would be noticed only after WATCH_S + GRACE_S.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))


class _GoneError(Exception):
    """The API server no longer knows the state from which to go on."""


@dataclass(frozen=True, slots=True)
class _Event:
    """A change of one slice, or only a newer state (a bookmark)."""

    version: str
    slice: Slice | None = None
    is_deleted: bool = False


async def answers(discover: Discover, family: int) -> AsyncGenerator[Answer]:
    """Yield what the Service's slices name for IP version ``family``, now and after each change.

    Raises DiscoveryError if the API server cannot be asked, or sends something that is not
    understood; the caller decides when to try again.
    """
    last: Answer | None = None
    async with _connected(discover) as api, aclosing(_states(api)) as states:
        async for slices in states:
            answer = await asyncio.to_thread(
                merged, slices, family, discover.port_name, discover.source
            )
            if answer != last:
                last = answer
                yield answer


async def _states(api: _Api) -> AsyncGenerator[tuple[Slice, ...]]:
    """Yield all slices, now and after each change."""
    loop = asyncio.get_running_loop()
    known, version = await api.listed()
    yield tuple(known.values())
    while True:
        started = loop.time()
        try:
            async with api.watching(version) as watch:
                while events := await watch.batch():
                    version = events[-1].version
                    _take(known, events)
                    yield tuple(known.values())
        except _GoneError:
            # The new list replaces what was known, so whatever was deleted meanwhile is gone, too.
            known, version = await api.listed()
            yield tuple(known.values())
        if loop.time() - started < PAUSE_S:
            await asyncio.sleep(PAUSE_S)


def _take(known: dict[str, Slice], events: list[_Event]) -> None:
    for event in events:
        if event.slice is not None:
            known.pop(event.slice.name, None)
            if not event.is_deleted:
                known[event.slice.name] = event.slice


# -- requests


@asynccontextmanager
async def _connected(discover: Discover) -> AsyncIterator[_Api]:
    where, path = discover.source, discover.kubeconfig
    if path is None:
        access = in_cluster(os.environ, where)
    else:
        access = await asyncio.to_thread(load, path, where)
    async with http_session() as session:
        yield _Api(discover, access, session)


class _Api:
    """Asks the API server for the slices of one Service."""

    def __init__(self, discover: Discover, access: Access, session: aiohttp.ClientSession) -> None:
        self._where = discover.source
        self._namespace, _, service = (discover.kubernetes or "").partition("/")
        path = f"apis/discovery.k8s.io/v1/namespaces/{self._namespace}/endpointslices"
        self._url = access.server / path
        self._query = {"labelSelector": f"kubernetes.io/service-name={service}"}
        self._access, self._session = access, session
        self._login = Login(access, self._where)

    async def listed(self) -> tuple[dict[str, Slice], str]:
        """Return all slices by name, and the version of this state."""
        for _ in range(_LISTS):
            with suppress(_GoneError):
                return await self._list()
        raise self._failed("the parts of the list become too old before the last one is read")

    async def _list(self) -> tuple[dict[str, Slice], str]:
        slices: dict[str, Slice] = {}
        size, token = 0, ""
        while True:
            query = {"limit": str(CHUNK)} | ({"continue": token} if token else {})
            body = await self._body(query, MOST_LIST_BYTES - size)
            size += len(body)
            part, version, token = await asyncio.to_thread(_part, body, self._where)
            slices |= {each.name: each for each in part}
            if not token:
                return slices, version

    async def _body(self, query: Mapping[str, str], most: int) -> bytes:
        """Return one part of a list, of at most ``most`` bytes."""
        body, identity = bytearray(), await self._login.identity()
        async with self._talking(), await self._get("list", query, identity) as response:
            async for piece in response.content.iter_chunked(_PIECE):
                body += piece
                if len(body) > most:
                    raise self._failed(f"the list is longer than {MOST_LIST_BYTES >> 20} MiB")
        return bytes(body)

    @asynccontextmanager
    async def watching(self, version: str) -> AsyncIterator[_Watch]:
        """Begin a watch of what happens after the state ``version``."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": f"{WATCH_S:.0f}",
        }
        identity = await self._login.identity()
        async with self._talking():
            response = await self._get("watch", query, identity)
        async with response:
            _keep_alive(response)
            yield _Watch(response.content, self._where)

    async def _get(
        self, verb: str, query: Mapping[str, str], identity: Identity
    ) -> aiohttp.ClientResponse:
        response = await self._session.get(
            self._url,
            params={**self._query, **query},
            headers=identity.headers,
            ssl=identity.tls,
            server_hostname=self._access.server_name,
            allow_redirects=False,
        )
        if response.status != 200:
            response.close()
            raise self._refused(response, verb)
        return response

    @asynccontextmanager
    async def _talking(self) -> AsyncIterator[None]:
        """Bound the time of a request, and turn its errors into DiscoveryError."""
        try:
            async with asyncio.timeout(REQUEST_S):
                yield
        except TimeoutError as error:
            raise self._failed(f"no complete answer within {duration(REQUEST_S)}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._failed(http_words(error)) from error

    def _failed(self, problem: str) -> DiscoveryError:
        return DiscoveryError(
            f"the API server {self._access.server}: {problem}",
            where=self._where,
            remedy="check that it can be reached from here: kubectl get endpointslices",
        )

    def _refused(self, response: aiohttp.ClientResponse, verb: str) -> Exception:
        match response.status:
            case 401:
                problem = "it does not accept our credentials"
                remedy = "renew the token or the certificate of the account"
            case 403:
                problem = (
                    f"our account may not {verb} endpointslices.discovery.k8s.io in the namespace "
                    f"{self._namespace}"
                )
                remedy = _RBAC
            case 404:
                problem = "it has no EndpointSlices of discovery.k8s.io/v1"
                remedy = "check its URL; Kubernetes must be 1.21 or newer"
            case 410:
                return _GoneError()
            case 429:
                wait = response.headers.get("Retry-After", "")
                problem = "it is overloaded"
                if wait.isascii() and wait.isdecimal() and len(wait) < 6:
                    problem = f"it is overloaded, and asks to wait {wait} s"
                remedy = "nothing, if it recovers; otherwise its priority levels: flowschemas"
            case _:
                problem, remedy = "it answers with an error", "the API server's own log says why"
        return DiscoveryError(
            f"the API server {self._access.server}: {problem} (HTTP status {response.status})",
            where=self._where,
            remedy=remedy,
        )


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    transport = response.connection.transport if response.connection else None
    end = transport.get_extra_info("socket") if transport else None
    if end is not None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            end.setsockopt(socket.IPPROTO_TCP, option, value)


def _part(body: bytes, where: str) -> tuple[list[Slice], str, str]:
    """Return the slices of one part of a list, its version, and the token for the next part.

    The token is empty if this is the last part.
    """
    data = _mapping(body, "list", where)
    items, metadata = data.get("items"), data.get("metadata")
    items = [] if items is None else items  # Go writes an empty list as null
    version, token = (
        metadata.get(key) if isinstance(metadata, dict) else None
        for key in ("resourceVersion", "continue")
    )
    if (
        data.get("kind") != "EndpointSliceList"
        or not isinstance(items, list)
        or not (isinstance(version, str) and version)
        or not isinstance(token, str | None)
    ):
        raise _strange("a list of EndpointSlices", where)
    return [read_slice(item, where) for item in items], version, token or ""


def _mapping(text: bytes, what: str, where: str) -> dict[str, object]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise _strange(f"a JSON mapping in a {what}", where)
    return data


def _strange(expected: str, where: str) -> DiscoveryError:
    return DiscoveryError(
        f"the API server sends something else than {expected}",
        where=where,
        remedy="check that the kubeconfig names an API server of Kubernetes",
    )


# -- a watch


class _Watch:
    """Reads the events of one watch."""

    def __init__(self, content: aiohttp.StreamReader, where: str) -> None:
        self._content, self._where = content, where
        self._rest = b""  # the beginning of a line
        self._has_ended = False

    async def batch(self) -> list[_Event]:
        """Return the next events, and those within GATHER_S after them; none: the watch has ended.

        Raises _GoneError if the state that the watch began with is too old.
        """
        events: list[_Event] = []
        with suppress(TimeoutError):
            while not events and not self._has_ended:
                async with asyncio.timeout(WATCH_S + GRACE_S):
                    events += await self._more()
            async with asyncio.timeout(GATHER_S):
                while not self._has_ended:
                    events += await self._more()
        return events

    async def _more(self) -> list[_Event]:
        """Return the events that have arrived; wait if none have.

        A cut connection counts as the end, too: if the API server is away, the next watch fails.
        An incomplete line is dropped, because the next watch sends its event again.
        """
        try:
            piece = await self._content.readany()
        except (aiohttp.ClientError, OSError):
            piece = b""
        if not piece:
            self._has_ended = True
            return []
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if max(map(len, (self._rest, *lines))) > MOST_LINE_BYTES:
            raise DiscoveryError(
                f"an event of the watch is longer than {MOST_LINE_BYTES >> 20} MiB",
                where=self._where,
                remedy="use smaller EndpointSlices: kubectl get endpointslices -o yaml",
            )
        return [_event(line, self._where) for line in lines if line.strip()]


def _event(line: bytes, where: str) -> _Event:
    data = _mapping(line, "watch", where)
    kind, body = data.get("type"), data.get("object")
    body = body if isinstance(body, dict) else {}
    if kind == "ERROR":
        raise _ended(body.get("code"), where)
    if body.get("kind") != "EndpointSlice":
        raise _strange(f"an EndpointSlice in a watch ({shown(body.get('kind'))})", where)
    metadata = body.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not version:
        raise _strange("an object with a resourceVersion", where)
    if kind == "BOOKMARK":
        return _Event(version)
    if kind not in ("ADDED", "MODIFIED", "DELETED"):
        raise _strange(f"an event of a known type ({shown(kind)})", where)
    return _Event(version, read_slice(body, where), kind == "DELETED")


def _ended(code: object, where: str) -> Exception:
    if code == _GONE:
        return _GoneError()
    return DiscoveryError(
        f"the API server ends the watch with the error {shown(code)}",
        where=where,
        remedy="the API server's own log says why",
    )
