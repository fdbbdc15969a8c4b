"""Owns the agent's HTTP server: the API on a Unix socket; metrics and scaling on a TCP port.

Handlers only translate: ``requests`` decides what a request asks for, the ``Control`` does it, and
``views`` decides how the answer is shown.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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
    roles,
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
from agent.api.fleetroutes import FleetRoutes
from agent.api.listen import UnixListener
from agent.api.routes import ROUTES, Route
from agent.auditlog import AuditLog
from agent.config.plan import Change
from agent.config.redact import redacted
from agent.config.render import document
from agent.config.versions import Author
from agent.errors import (
    ForbiddenError,
    ListenError,
    NotFoundError,
)
from agent.logs import get_logger
from agent.model import BackendMetrics, Role
from agent.state import auditlog
from agent.state.blocks import shown
from agent.state.snapshot import Snapshot

log = get_logger()

_SHUTDOWN_S = 5.0
# Connections to the socket, where there are roles. A trace may pause for as long as a pager does.
_LIMITS = guarded.Limits(most=512, of_a_source=64, read_s=None, awaits_head=False)
# The key of a request under which its ``roles.Caller`` is; older versions of aiohttp take texts.
_CALLER: Any = web.RequestKey("caller", roles.Caller) if hasattr(web, "RequestKey") else "caller"
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
        audit: AuditLog,
    ) -> None:
        self._control = control
        self._path = socket_path
        self._group = group
        self._metrics_listen = metrics_listen
        self._render_metrics = metrics
        self._audit = audit
        self._reading_audit = asyncio.Lock()
        self._rendering = asyncio.Lock()
        self._roles = roles.Roles(peer.access(None))
        self._unix: UnixListener | None = None
        self._let_in: frozenset[int] = frozenset()  # groups that the socket's file lets in
        self._port: socket.socket | None = None
        self._runners: list[web.AppRunner] = []
        self._accepting: asyncio.Server | None = None  # connections to the socket
        self._metrics_listening: guarded.Listening | None = None
        self._following: set[Following] = set()
        self._metrics_read_at: float | None = None  # time.monotonic()
        self.metrics_address: tuple[str, int] | None = None  # None until started

    def listen(self) -> None:
        """Open the socket and the port. If one fails, close both and raise ListenError.

        Clients that connect before ``start`` wait until it runs.
        """
        config = self._control.config()
        self._roles = roles.roles(self._group, config.socket_roles, config.api)
        self._unix = self._listen_unix()
        if self._metrics_listen is None:
            return
        try:
            self._port = listen.listen_tcp(self._metrics_listen)
        except ListenError:
            self._unix.close()
            self._unix = None
            raise
        self.metrics_address = self._port.getsockname()[:2]

    def _listen_unix(self) -> UnixListener:
        made = listen.listen_unix(self._path, self._roles.access.gid, self._roles.all_gids)
        self._let_in = self._roles.all_gids
        return made

    async def start(self) -> None:
        """Start to answer requests, after calling ``listen`` if that has not been done."""
        if self._unix is None:
            self.listen()
        try:
            if self._unix is not None:
                runner = web.AppRunner(self._api(), access_log=None, shutdown_timeout=_SHUTDOWN_S)
                self._runners.append(runner)
                await runner.setup()
                self._accepting = await self._accept(runner, self._unix.sock)
            if self._port is not None:
                # Any client that can reach this port could exhaust its connections.
                self._metrics_listening = await guarded.serve(self._metrics_only(), self._port)
        except BaseException:
            await self.stop()
            raise
        log.info("api_listening", socket=str(self._path), metrics=self.metrics_address)

    async def put_back(self) -> None:
        """Listen on the path again if the socket's file was removed. Raises ListenError.

        Also let in the groups that a reload has given a role.
        """
        lost, former = self._unix, self._accepting
        if lost is None or former is None:
            return
        gids = (await self._current_roles()).all_gids
        if not lost.is_gone():
            if gids != self._let_in:
                await asyncio.to_thread(listen.let_in, self._path, gids)
                self._let_in = gids
            return
        self._unix = await asyncio.to_thread(self._listen_unix)
        self._accepting = await self._accept(self._runners[0], self._unix.sock)
        former.close()  # existing connections stay open
        lost.close()
        log.warning("the API's socket was removed by somebody else, and is put back")

    async def stop(self) -> None:
        """Stop accepting requests, let those in progress end, and remove the socket."""
        runners, self._runners = self._runners, []
        if self._accepting is not None:
            self._accepting.close()
            self._accepting = None
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

    async def _accept(self, runner: web.AppRunner, sock: socket.socket) -> asyncio.Server:
        """Accept connections to the socket; with roles, not too many of a user.

        Whoever may only read must not be able to use up the agent's file descriptors.
        """
        make = runner.server
        assert make is not None  # noqa: S101 (setup created it)
        factory = guarded.Guarded(make, self._limited_user, _LIMITS)
        return await asyncio.get_running_loop().create_server(factory, sock=sock)

    def _limited_user(self, transport: asyncio.BaseTransport) -> str | None:
        """Return the user of a connection; None: it has no limits."""
        found = peer.peer_of(transport.get_extra_info("socket"))
        is_limited = self._roles.configured.are_used and found.uid not in self._roles.access.uids
        return f"user {found.uid}" if is_limited else None

    def _api(self) -> web.Application:
        app = web.Application(
            client_max_size=MAX_BODY_BYTES,
            middlewares=[errors_as_json, self._check_peer],
        )
        handlers = self._handlers()
        app.add_routes(
            web.route(each.method, each.path, self._permitted(each, handlers[each.name]))
            for each in ROUTES
        )
        app.on_shutdown.append(self._end_traces)
        return app

    def _metrics_only(self) -> web.Application:
        app = web.Application(client_max_size=1024, middlewares=[errors_as_json])
        handlers = self._handlers()
        app.add_routes(
            web.route(each.method, each.path, handlers[each.name])
            for each in ROUTES
            if each.is_on_metrics_port
        )
        return app

    def _handlers(self) -> dict[str, Handler]:
        """Return the handler of each route, by the route's name.

        A route that is not in ``ROUTES``, and so has no role, is not served.
        """
        return {
            "status": self._status,
            "list": self._list,
            "services": self._services,
            "service": self._service,
            "serviceOrigins": self._origins,
            "scales": self._scales,
            "scale": self._scale,
            "config": self._config,
            "flows": self._flows,
            "explain": self._explain,
            "trace": self._trace,
            "events": self._events,
            "history": self._history,
            "historyDiff": self._diff,
            "edit": self._edit,
            "rollback": self._rollback,
            "reload": self._reload,
            "reverts": self._reverts,
            "discovery": self._discovery,
            "discoveryAccept": self._discovery_accept,
            "guard": self._guard,
            "guardTest": self._guard_test,
            "guardTop": self._guard_top,
            "guardBlock": self._guard_block,
            "guardUnblock": self._guard_unblock,
            "failover": self._failover,
            "failoverMove": self._move,
            "whoami": self._whoami,
            "audit": self._audited,
            "remoteApi": self._remote_api,
            "metrics": self._metrics,
            "healthz": self._healthz,
            "openapi": self._openapi,
            **FleetRoutes(
                self._control, lambda request: _caller(request).name, self._made
            ).handlers(),
        }

    @web.middleware
    async def _check_peer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse callers without a role, and note the role of the others."""
        found, known = _peer(request), await self._current_roles()
        if found is not None and peer.CERTIFICATE in request.headers:
            request[_CALLER] = _certificate(request, found, known)
            return await handler(request)
        role = None if found is None else known.of(found)
        if found is None or role is None:
            who = f"user {found.uid}" if found is not None else "this connection"
            return refusal(
                403, f"{who} may not use the API", where=str(self._path), remedy=self._remedy()
            )
        request[_CALLER] = roles.Caller(found, role, known.groups_of(found))
        return await handler(request)

    def _remedy(self) -> str:
        if self._roles.configured.are_used:
            groups = sorted({name for each in self._roles.gids.values() for name in each.values()})
            return f"be root, or a member of one of the groups {', '.join(groups)}"
        if self._group:
            return f"be root, or a member of the group {self._group!r}"
        return "be root, or set 'socket_group' or 'socket_roles' to groups that you are in"

    async def _current_roles(self) -> roles.Roles:
        """Return the roles of the running configuration, which a reload may have changed."""
        config = self._control.config()
        if (config.socket_roles, config.api) != (self._roles.configured, self._roles.api):
            self._roles = await asyncio.to_thread(
                roles.roles, self._group, config.socket_roles, config.api
            )
        return self._roles

    def _permitted(self, route: Route, handler: Handler) -> Handler:
        """Return a handler that serves only callers whose role suffices, and records changes."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if route.role is Role.VIEWER:
                return await handler(request)
            parameters(request, tuple(each.name for each in route.parameters))
            caller = request[_CALLER] = await _named(_caller(request))
            raw = b"" if route.body is None else await request.read()
            roles.check_size(caller, route, len(raw))
            body = requests.json_object(raw) if raw else {}
            about = {
                "by": caller.name,
                "uid": caller.peer.uid,
                "pid": caller.peer.pid,
                "role": caller.role.value,
                "source": caller.source,
                "what": f"{request.method} {request.path}",
                "request": auditlog.request_of(body, raw),
            }
            try:
                roles.check(self._roles, caller, route, body)
            except ForbiddenError as error:
                error.where = f"{request.method} {request.path}"  # with the verb that was meant
                await self._audit.denied(**about)
                raise
            if not route.is_order(body):
                return await handler(request)
            return await self._recorded(request, handler, await self._audit.order(**about))

        return handle

    async def _recorded(
        self, request: web.Request, handler: Handler, change: str
    ) -> web.StreamResponse:
        """Carry out an order that was recorded, and record its outcome."""
        try:
            # Errors become answers here, and not in the outer middleware, to be recorded as well.
            answer = await errors_as_json(request, handler)
        except BaseException:
            self._audit.broken_off(change)
            raise
        # In a thread, because there may be thousands of changes.
        await self._audit.outcome(change, *await asyncio.to_thread(_effect, answer))
        return answer

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
        config = document(self._control.config())
        if _caller(request).role is not Role.ADMIN:
            config = redacted(config)
        return as_json(
            {
                "config": config,
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
            _log_use(request, "trace", **given)
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
        edits, how = requests.edit_request(requests.json_object(await request.read()))
        author = Author(_caller(request).name, how.message)
        made = await self._control.edit(
            *edits,
            dry_run=how.dry_run,
            confirmed=how.confirmed,
            for_s=how.for_s,
            trial=how.trial,
            author=author,
        )
        return self._made(made, not how.dry_run)

    async def _rollback(self, request: web.Request) -> web.Response:
        parameters(request)
        asked = requests.rollback_request(requests.json_object(await request.read()))
        how = asked.how
        author = Author(_caller(request).name, how.message)
        made = await self._control.rollback(
            asked.version, asked.service, how.dry_run, confirmed=how.confirmed, author=author
        )
        return self._made(made, not how.dry_run)

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
        await self._control.accept_answer(name)
        _log_use(request, "the held answer of a source is used", service=name)
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
        body = await request.read()
        how = requests.reload_request(requests.json_object(body) if body else {})
        author = Author(_caller(request).name, how.message)
        made = await self._control.reload(
            dry_run=how.dry_run, confirmed=how.confirmed, author=author
        )
        return self._made(made, not how.dry_run)

    def _made(self, changes: tuple[Change, ...], applied: bool) -> web.Response:
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
        order = requests.block_order(requests.json_object(await request.read()))
        done = await self._control.block(order)
        prefixes = [shown(prefix) for prefix in order.prefixes]
        _log_use(request, "block", prefixes=prefixes, for_s=order.for_s, why=order.why)
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
        prefixes = requests.unblock_order(requests.json_object(await request.read()))
        informed = await self._control.unblock(prefixes)
        named = [shown(prefix) for prefix in prefixes]
        _log_use(request, "unblock", prefixes=named)
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
        body = requests.json_object(await request.read())
        order = requests.move_order(request.match_info["verb"], body)
        moved = await self._control.move(order)
        if not order.dry_run:
            why = order.message or None
            _log_use(request, order.verb.value, instance=order.instance, message=why)
        return as_json(
            {"text": moved.text, "flows_sent": moved.flows, "applied": not order.dry_run}
        )

    async def _whoami(self, request: web.Request) -> web.Response:
        parameters(request)
        caller = _caller(request)
        return as_json(
            {
                "user": (await _named(caller)).name,
                "uid": caller.peer.uid,
                "role": caller.role.value,
                "groups": list(caller.groups),
                "address": caller.address or None,
                "roles": {
                    role.value: list(names)
                    for role, names in (
                        self._roles.api.roles if caller.address else self._roles.configured
                    ).by_role.items()
                },
            }
        )

    async def _remote_api(self, request: web.Request) -> web.Response:
        parameters(request)
        return as_json(views.remote_api(self._control.config().api))

    async def _audited(self, request: web.Request) -> web.Response:
        given = parameters(request, requests.AUDIT_PARAMETERS)
        since, limit = requests.audit_query(given, time.time())
        audit = self._audit

        def render() -> web.Response:
            return as_json(
                {
                    "file": str(audit.path),
                    "problem": audit.problem,
                    "head": {"number": audit.head.number, "hash": audit.head.hash},
                    "records": list(audit.read(since, limit)),
                }
            )

        async with self._reading_audit:  # one at a time, because the files may be large
            return await asyncio.to_thread(render)

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


def _effect(answer: web.StreamResponse) -> tuple[str, str]:
    """Return the outcome of a request, and its effect in a sentence."""
    told = json.loads(answer.text) if isinstance(answer, web.Response) and answer.text else {}
    return auditlog.effect_of(answer.status, told)


def _peer(request: web.Request) -> peer.Peer | None:
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    return None if sock is None else peer.peer_of(sock)


def _certificate(request: web.Request, found: peer.Peer, known: roles.Roles) -> roles.Caller:
    """Return the caller for whom `lb-agent api` sends a request. Raises ForbiddenError."""
    name = unquote(request.headers[peer.CERTIFICATE])
    if not known.speaks(found):
        raise ForbiddenError(
            f"user {found.uid} may not send requests for others",
            where=f"header {peer.CERTIFICATE}",
            remedy="leave it out; only the user `api.user` may name a certificate",
        )
    role = known.of_certificate(name)
    if role is None:
        raise ForbiddenError(
            f"the certificate {name} has no role",
            where="the API over TLS",
            remedy="have it named in api.roles of the configuration",
        )
    address = request.headers.get(peer.ADDRESS, "unknown")
    return roles.Caller(found, role, (), f"certificate {name}", address)


async def _named(caller: roles.Caller) -> roles.Caller:
    """Return a caller with its name.

    In a thread, because user names may come from a directory service, which may be slow.
    """
    if caller.name:
        return caller
    return replace(caller, name=await asyncio.to_thread(peer.name_of, caller.peer))


def _caller(request: web.Request) -> roles.Caller:
    caller: roles.Caller = request[_CALLER]
    return caller


def _log_use(request: web.Request, event: str, **what: object) -> None:
    """Log who changed something, or traces. Other reads are not logged."""
    caller = _caller(request)
    log.info(event, by=caller.name, pid=caller.peer.pid, **what)
