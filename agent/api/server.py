"""Owns the agent's HTTP server: the API on a Unix socket; metrics and scaling on a TCP port.

Handlers only translate: ``requests`` decides what a request asks for, the ``Control`` does it, and
``views`` decides how the answer is shown.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from agent import guarded
from agent.api import (
    discoveryviews,
    failoverviews,
    guardviews,
    listen,
    openapi,
    peer,
    requests,
    scaleviews,
    trace,
    views,
)
from agent.api.answers import (
    MAX_BODY_BYTES,
    Handler,
    as_json,
    errors_as_json,
    packed,
    parameters,
    refusal,
)
from agent.api.control import Control, Following
from agent.config.plan import Change
from agent.config.render import document
from agent.config.versions import Author
from agent.errors import (
    ListenError,
    NotFoundError,
)
from agent.logs import get_logger
from agent.model import BackendMetrics
from agent.state.blocks import shown
from agent.state.snapshot import Snapshot

log = get_logger()

_SHUTDOWN_S = 5.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ApiServer:
    """Serves the API and the metrics of one agent, from ``start`` to ``stop``.

    ``metrics`` renders a snapshot as Prometheus text, and is called in a thread.
    """

    def __init__(
        self,
        control: Control,
        socket_path: Path,
        group: str | None,
        metrics_listen: tuple[str, int] | None,
        *,
        metrics: Callable[[Snapshot, BackendMetrics], bytes],
    ) -> None:
        self._control = control
        self._path = socket_path
        self._group = group
        self._metrics_listen = metrics_listen
        self._render_metrics = metrics
        self._rendering = asyncio.Lock()
        self._access = peer.access(None)
        self._unix: listen.UnixListener | None = None
        self._port: socket.socket | None = None
        self._runners: list[web.AppRunner] = []
        self._api_site: web.SockSite | None = None
        self._metrics_listening: guarded.Listening | None = None
        self._following: set[Following] = set()
        self._metrics_read_at: float | None = None  # time.monotonic()
        self.metrics_address: tuple[str, int] | None = None  # None until started

    def listen(self) -> None:
        """Open the socket and the port. If one fails, close both and raise ListenError.

        Clients that connect before ``start`` wait until it runs.
        """
        gid = None if self._group is None else peer.group_id(self._group)
        self._access = peer.access(gid)
        self._unix = listen.listen_unix(self._path, gid)
        if self._metrics_listen is None:
            return
        try:
            self._port = listen.listen_tcp(self._metrics_listen)
        except ListenError:
            self._unix.close()
            self._unix = None
            raise
        self.metrics_address = self._port.getsockname()[:2]

    async def start(self) -> None:
        """Start to answer requests, after calling ``listen`` if that has not been done."""
        if self._unix is None:
            self.listen()
        try:
            if self._unix is not None:
                self._api_site = await self._serve(self._api(), self._unix.sock)
            if self._port is not None:
                # Any client that can reach this port could exhaust its connections.
                self._metrics_listening = await guarded.serve(self._metrics_only(), self._port)
        except BaseException:
            await self.stop()
            raise
        log.info("api_listening", socket=str(self._path), metrics=self.metrics_address)

    async def put_back(self) -> None:
        """Listen on the path again if the socket's file was removed. Raises ListenError."""
        lost, former = self._unix, self._api_site
        if lost is None or former is None or not lost.is_gone():
            return
        gid = None if self._group is None else peer.group_id(self._group)
        self._unix = await asyncio.to_thread(listen.listen_unix, self._path, gid)
        self._api_site = web.SockSite(self._runners[0], self._unix.sock)
        await self._api_site.start()
        await former.stop()  # existing connections stay open
        lost.close()
        log.warning("the API's socket was removed by somebody else, and is put back")

    async def stop(self) -> None:
        """Stop accepting requests, let those in progress end, and remove the socket."""
        runners, self._runners, self._api_site = self._runners, [], None
        if self._metrics_listening is not None:
            await self._metrics_listening.stop()
            self._metrics_listening = None
        for runner in reversed(runners):
            await runner.cleanup()
        if self._unix is not None:
            self._unix.close()
            self._unix = None
        if self._port is not None:
            self._port.close()
            self._port = None
        self.metrics_address = None

    async def _serve(self, app: web.Application, sock: socket.socket) -> web.SockSite:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        self._runners.append(runner)
        await runner.setup()
        site = web.SockSite(runner, sock)
        await site.start()
        return site

    def _api(self) -> web.Application:
        app = web.Application(
            client_max_size=MAX_BODY_BYTES,
            middlewares=[errors_as_json, self._check_peer],
        )
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/list/{of}", self._list),
                web.get("/v1/services", self._services),
                web.get("/v1/services/{name}", self._service),
                web.get("/v1/services/{name}/origins", self._origins),
                web.get("/v1/scale", self._scales),
                web.get("/v1/scale/{name}", self._scale),
                web.get("/v1/config", self._config),
                web.get("/v1/flows", self._flows),
                web.get("/v1/explain", self._explain),
                web.get("/v1/trace", self._trace),
                web.get("/v1/events", self._events),
                web.get("/v1/history", self._history),
                web.get("/v1/history/diff", self._diff),
                web.post("/v1/edit", self._edit),
                web.post("/v1/rollback", self._rollback),
                web.post("/v1/reload", self._reload),
                web.get("/v1/reverts", self._reverts),
                web.get("/v1/discovery", self._discovery),
                web.post("/v1/discovery/{name}/accept", self._discovery_accept),
                web.get("/v1/guard", self._guard),
                web.get("/v1/guard/test", self._guard_test),
                web.get("/v1/guard/top", self._guard_top),
                web.post("/v1/guard/block", self._guard_block),
                web.post("/v1/guard/unblock", self._guard_unblock),
                web.get("/v1/failover", self._failover),
                web.post("/v1/failover/{verb}", self._move),
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/v1/openapi.json", self._openapi),
            ]
        )
        app.on_shutdown.append(self._end_traces)
        return app

    def _metrics_only(self) -> web.Application:
        app = web.Application(client_max_size=1024, middlewares=[errors_as_json])
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/v1/scale", self._scales),
                web.get("/v1/scale/{name}", self._scale),
            ]
        )
        return app

    @web.middleware
    async def _check_peer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        caller = _peer(request)
        if caller is None or not self._access.allows(caller):
            who = f"user {caller.uid}" if caller is not None else "this connection"
            return refusal(
                403,
                f"{who} may not use the API",
                where=str(self._path),
                remedy=f"be root, or a member of the group {self._group!r}"
                if self._group
                else "be root, or set 'socket_group' to a group that you are in",
            )
        return await handler(request)

    async def _status(self, request: web.Request) -> web.Response:
        parameters(request)
        control, snapshot = self._control, await self._control.snapshot(())
        wrong = control.troubles()
        metrics = views.metrics_read(self.metrics_address, self._metrics_read_at, time.monotonic())
        # In a thread, because it takes a while with thousands of backends and events.
        return await asyncio.to_thread(
            lambda: as_json(views.status(snapshot, wrong(), control.recent()) | metrics)
        )

    async def _list(self, request: web.Request) -> web.Response:
        given = parameters(request, requests.LIST_PARAMETERS)
        of, query = requests.list_query(request.match_info["of"], given)
        page = await self._control.page(of, query)
        recent = await asyncio.to_thread(self._control.recent)
        return await asyncio.to_thread(lambda: as_json(views.page(of, page, recent)))

    async def _services(self, request: web.Request) -> web.Response:
        parameters(request)
        snapshot = await self._control.snapshot()

        def render() -> web.Response:
            recent = self._control.recent()
            found = [views.service(each, snapshot.at, recent) for each in snapshot.services]
            return as_json({"services": found})

        # In a thread, because thousands of backends take a while, and health checks must not wait.
        return await asyncio.to_thread(render)

    async def _service(self, request: web.Request) -> web.Response:
        parameters(request)
        snapshot = await self._only(request.match_info["name"])
        recent = await asyncio.to_thread(self._control.recent)
        return as_json(views.service(snapshot.services[0], snapshot.at, recent))

    async def _only(self, name: str) -> Snapshot:
        """Return a snapshot of one service. Raises NotFoundError."""
        snapshot = await self._control.snapshot((name,))
        if not snapshot.services:
            raise NotFoundError(
                f"there is no service {name!r}", where="services", remedy="lbctl service list"
            )
        return snapshot

    async def _scales(self, request: web.Request) -> web.Response:
        parameters(request)
        async with self._rendering:  # as for metrics: clients on the network can ask
            snapshot = await self._control.snapshot()
        return as_json({"services": [scaleviews.scale(each) for each in snapshot.services]})

    async def _scale(self, request: web.Request) -> web.Response:
        parameters(request)
        async with self._rendering:
            snapshot = await self._only(request.match_info["name"])
        return as_json(scaleviews.scale(snapshot.services[0]))

    async def _origins(self, request: web.Request) -> web.Response:
        parameters(request)
        name = request.match_info["name"]
        return as_json({"service": name, "settings": views.origins(self._control.origins(name))})

    async def _config(self, request: web.Request) -> web.Response:
        parameters(request)
        return as_json(
            {
                "config": document(self._control.config()),
                "changes_since_file": views.changes(self._control.file_changes()),
            }
        )

    async def _flows(self, request: web.Request) -> web.Response:
        given = parameters(request, requests.FLOW_PARAMETERS)
        query = requests.flow_query(given, self._control.config())
        page = await self._control.flows(query)
        return await asyncio.to_thread(lambda: as_json(views.flows(page)))  # there may be thousands

    async def _explain(self, request: web.Request) -> web.Response:
        asked = requests.five_tuple(parameters(request, requests.EXPLAIN_PARAMETERS))
        return as_json(views.explanation(self._control.explain(asked)))

    async def _trace(self, request: web.Request) -> web.StreamResponse:
        given = parameters(request, requests.TRACE_PARAMETERS)
        query = requests.trace_query(given, self._control.config())
        with self._control.follow(query) as following:
            # A trace costs time on the packet path, so the log says who asked for it.
            await _log_use(_peer(request), "trace", **given)
            self._following.add(following)
            try:
                return await trace.stream(request, following)
            finally:
                self._following.discard(following)

    async def _end_traces(self, _app: web.Application) -> None:
        """End all traces, which would not end by themselves."""
        for following in tuple(self._following):
            following.close()

    async def _edit(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _peer(
            request
        )  # looked up now, because the client may have left when the change is made
        edits, how = requests.edit_request(requests.json_object(await request.read()))
        author = await _author(caller, how)
        made = await self._control.edit(
            *edits,
            dry_run=how.dry_run,
            confirmed=how.confirmed,
            for_s=how.for_s,
            author=author,
        )
        return self._made(made, applied=not how.dry_run)

    async def _rollback(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _peer(request)
        asked = requests.rollback_request(requests.json_object(await request.read()))
        how = asked.how
        author = await _author(caller, how)
        made = await self._control.rollback(
            asked.version, asked.service, how.dry_run, confirmed=how.confirmed, author=author
        )
        return self._made(made, applied=not how.dry_run)

    async def _events(self, request: web.Request) -> web.Response:
        given = parameters(request, requests.EVENT_PARAMETERS)
        query = requests.event_query(given, time.time())
        events = self._control.events
        return await asyncio.to_thread(
            lambda: as_json(views.events(events(query)))
        )  # there may be many

    async def _reverts(self, request: web.Request) -> web.Response:
        parameters(request)
        return as_json({"reverts": views.reverts(self._control.reverts(), time.time())})

    async def _discovery(self, request: web.Request) -> web.Response:
        parameters(request)
        found, left_out = self._control.sources()
        return as_json(discoveryviews.sources(found, left_out, time.time()))

    async def _discovery_accept(self, request: web.Request) -> web.Response:
        parameters(request)
        name = request.match_info["name"]
        caller = _peer(request)
        await self._control.accept_answer(name)
        await _log_use(caller, "the held answer of a source is used", service=name)
        found, left_out = self._control.sources()
        found = tuple(each for each in found if each.service.name == name)
        return as_json(discoveryviews.sources(found, left_out, time.time()))

    async def _history(self, request: web.Request) -> web.Response:
        parameters(request)
        return as_json(views.versions(await self._control.versions()))

    async def _diff(self, request: web.Request) -> web.Response:
        given = parameters(request, requests.DIFF_PARAMETERS)
        changes = await self._control.diff(*requests.diff_request(given))
        return as_json({"changes": views.changes(changes)})

    async def _reload(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _peer(request)
        body = await request.read()
        how = requests.reload_request(requests.json_object(body) if body else {})
        author = await _author(caller, how)
        made = await self._control.reload(
            dry_run=how.dry_run, confirmed=how.confirmed, author=author
        )
        return self._made(made, applied=not how.dry_run)

    def _made(self, changes: tuple[Change, ...], *, applied: bool) -> web.Response:
        unsaved = self._control.unsaved() if applied else ""
        return as_json(
            {"changes": views.changes(changes), "applied": applied, "unsaved_problem": unsaved}
        )

    async def _guard(self, request: web.Request) -> web.Response:
        parameters(request)
        snapshot = await self._control.snapshot(())
        return await asyncio.to_thread(
            lambda: as_json(guardviews.guard(snapshot))
        )  # there may be many

    async def _guard_test(self, request: web.Request) -> web.Response:
        address = requests.tested_address(parameters(request, ("address",)))
        return as_json(guardviews.tested(self._control.guard_test(address)))

    async def _guard_top(self, request: web.Request) -> web.Response:
        given = parameters(request, requests.TOP_PARAMETERS)
        query = requests.top_query(given, self._control.config())
        return as_json(guardviews.top(await self._control.top_sources(query)))

    async def _guard_block(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _peer(request)
        order = requests.block_order(requests.json_object(await request.read()))
        done = await self._control.block(order)
        prefixes = [shown(prefix) for prefix in order.prefixes]
        await _log_use(caller, "block", prefixes=prefixes, for_s=order.for_s, why=order.why)
        unsaved = (await self._control.snapshot(())).guard.unsaved
        return as_json(
            {
                "blocked": prefixes,
                "flows_ended": done.flows,
                "told_balancers": done.told,
                "unsaved_problem": unsaved,
            }
        )

    async def _guard_unblock(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _peer(request)
        prefixes = requests.unblock_order(requests.json_object(await request.read()))
        informed = await self._control.unblock(prefixes)
        named = [shown(prefix) for prefix in prefixes]
        await _log_use(caller, "unblock", prefixes=named)
        return as_json(
            {
                "unblocked": named,
                "told_balancers": informed,
                "unsaved_problem": (await self._control.snapshot(())).guard.unsaved,
            }
        )

    async def _failover(self, request: web.Request) -> web.Response:
        parameters(request)
        snapshot = await self._control.snapshot(())
        return as_json(failoverviews.failover(snapshot.failover, snapshot.at))

    async def _move(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _peer(request)
        body = requests.json_object(await request.read())
        order = requests.move_order(request.match_info["verb"], body)
        moved = await self._control.move(order)
        if not order.dry_run:
            why = order.message or None
            await _log_use(caller, order.verb.value, instance=order.instance, message=why)
        return as_json(
            {"text": moved.text, "flows_sent": moved.flows, "applied": not order.dry_run}
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        parameters(request)
        self._metrics_read_at = time.monotonic()
        # Render one at a time, off the event loop, so that scrapers cannot slow the agent down.
        async with self._rendering:
            of_backends = self._control.config().metrics_backends
            snapshot = await self._control.snapshot()
            body = await asyncio.to_thread(self._render_metrics, snapshot, of_backends)
            return await packed(request, body, _METRICS_TYPE)

    async def _healthz(self, request: web.Request) -> web.Response:
        parameters(request)
        if self._control.is_attached():
            return web.Response(text="ok\n")
        interface = self._control.config().interface
        return web.Response(status=503, text=f"not attached to {interface}\n")

    async def _openapi(self, request: web.Request) -> web.Response:
        parameters(request)
        return await asyncio.to_thread(lambda: as_json(openapi.document()))


def _peer(request: web.Request) -> peer.Peer | None:
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    return None if sock is None else peer.peer_of(sock)


async def _author(caller: peer.Peer | None, how: requests.ChangeOptions) -> Author:
    """Return who makes a change, and why."""
    # In a thread, because user names may come from a directory service, which may be slow.
    return Author(await asyncio.to_thread(peer.name_of, caller), how.message)


async def _log_use(caller: peer.Peer | None, event: str, **what: object) -> None:
    """Log who changed something, or traces. Other reads are not logged."""
    who = await asyncio.to_thread(peer.name_of, caller)
    log.info(event, by=who, pid=caller and caller.pid, **what)
