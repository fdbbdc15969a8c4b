"""Owns the status page's server: a page for browsers, the data that it requests, and its access.

It is read-only: the API's requests that change something cannot be made here, because clients on
the network can reach it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from agent import guarded
from agent.api import listen, requests, scaleviews, trace, views
from agent.api.answers import Handler, as_json, errors_as_json, packed, parameters, refusal
from agent.api.control import Control, Following
from agent.api.eventlines import Stamps, line
from agent.errors import ConfigError, ListenError, NotFoundError
from agent.files import read_private
from agent.logs import get_logger
from agent.model import StatusPage
from agent.page import access
from agent.page.access import Answer
from agent.page.views import overview
from agent.state.journal import Query
from agent.state.queries import ListQuery, SortBy

log = get_logger()

FRESH_S = 1.0  # requests within it get the same answer, so many browsers cost as much as one
SHOWN_SERVICES = 500
SHOWN_EVENTS = 50
MOST_TRACES = 4
TRACE_S = 600.0  # a page that was left open must not slow the packet path for ever
WRONG_TOKEN_S = 1.0  # delay of the answer to a wrong token
SAID_EVERY_S = 60.0  # events that any client can cause are logged at most this often
AGAIN_S = 30.0  # until a failed start is tried again, and between checks for a new certificate
_JSON = "application/json"
_STYLE, _SCRIPT = "page.css", "page.js"
_ASKS = {"WWW-Authenticate": 'Basic realm="Steelyard", charset="UTF-8"'}
_OF_ALL = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class PageServer:
    """Serves the status page of one agent while ``keep`` runs, until ``stop``. If it is off,
    nowhere.
    """

    def __init__(self, control: Control, asked: StatusPage) -> None:
        self._control = control
        self._asked = asked
        self._token: bytes | None = None
        self._tls_files: tuple[float, ...] = ()  # modification times of the certificate and its key
        self._port: socket.socket | None = None
        self._listening: guarded.Listening | guarded.TlsListening | None = None
        self._logged_at: dict[str, float] = {}  # when each event was last logged
        self._suppressed: Counter[str] = Counter()  # how often it was suppressed since then
        self._page = self._policy = ""  # empty until started
        self._asking = asyncio.Lock()
        self._body, self._body_at = b"", float("-inf")
        self._following: set[Following] = set()
        self.address: tuple[str, int] | None = None

    async def keep(self) -> None:
        """Serve the page for ever.

        A problem such as a missing file is logged once, and the start is tried again, because a
        balancer must not stop because of its status page.
        """
        logged = ""
        while self._asked.listen is not None:
            try:
                if self._port is None:
                    await self._start()
                await self._renew()
                logged = ""
            except (ConfigError, ListenError) as error:
                if logged != (logged := str(error)):
                    log.error("the status page has a problem", problem=logged)
            except Exception:  # a bug of ours must not stop the balancer
                log.exception("the status page has failed")
            await asyncio.sleep(AGAIN_S)

    async def _start(self) -> None:
        asked = self._asked
        assert asked.listen is not None  # noqa: S101 (keep has checked it)
        self._page, self._policy = await asyncio.to_thread(page)
        if asked.token_file is not None:
            self._token = await asyncio.to_thread(read_token, asked.token_file)
        tls = None
        if asked.certificate is not None and asked.key_file is not None:
            tls, self._tls_files = await asyncio.to_thread(
                _context, asked.certificate, asked.key_file
            )
        self._port = listen.listen_tcp(asked.listen, "the status page", "status_page.listen")
        self.address = self._port.getsockname()[:2]
        if tls is None:
            self._listening = await guarded.serve(self._app(), self._port)
        else:
            self._listening = await guarded.serve_tls(self._app(), self._port, tls)
        log.info(
            "the status page is served",
            listening=self.address,
            tls=tls is not None,
            token=self._token is not None,
        )

    async def _renew(self) -> None:
        """Load a renewed certificate, which new connections get."""
        asked, listening = self._asked, self._listening
        if asked.certificate is None or asked.key_file is None:
            return
        assert isinstance(listening, guarded.TlsListening)  # noqa: S101 (as they are given)
        written = await asyncio.to_thread(_written, asked.certificate, asked.key_file)
        if written and written != self._tls_files:
            # Not loaded into the context that is used: until the new key is written too, the old
            # pair has to stay, and a handshake must not meet one without the other.
            tls, self._tls_files = await asyncio.to_thread(
                _context, asked.certificate, asked.key_file
            )
            listening.exchange(tls)
            log.info("the status page has a new certificate")

    async def stop(self) -> None:
        """Stop accepting requests, and end those in progress."""
        for following in tuple(self._following):
            following.close()
        if self._listening is not None:
            await self._listening.stop()
            self._listening = None
        if self._port is not None:
            self._port.close()
            self._port = None

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=1024, middlewares=[errors_as_json, self._let_in])
        app.add_routes(
            [
                web.get("/", self._html),
                web.get("/v1/page", self._overview),
                web.get("/v1/backends", self._backends),
                web.get("/v1/explain", self._explain),
                web.get("/v1/scale/{name}", self._scale),
                web.get("/v1/trace", self._trace),
            ]
        )
        app.on_response_prepare.append(self._add_headers)
        return app

    async def _add_headers(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_OF_ALL)
        response.headers["Content-Security-Policy"] = self._policy

    @web.middleware
    async def _let_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        match access.answer(request.headers, self._token):
            case Answer.ALLOWED:
                return await handler(request)
            case Answer.OTHER_SITE:
                why = "another site's page asks for this", "open the status page itself"
                status = 403
            case Answer.OTHER_HOST:
                why = "the page is not served under this name", "open it by its address"
                status = 421  # RFC 9110: Misdirected Request
            case wrong:
                if wrong is Answer.REJECTED:
                    self._say("a wrong token for the status page", "warning", by=request.remote)
                    await asyncio.sleep(WRONG_TOKEN_S)
                why = "the token is needed", "give it as the password, with any user name"
                status = 401
        refused = refusal(status, why[0], where=request.host, remedy=why[1])
        refused.headers.update(_ASKS if status == 401 else {})
        return refused

    async def _html(self, request: web.Request) -> web.Response:
        parameters(request)
        return web.Response(text=self._page, content_type="text/html")

    async def _overview(self, request: web.Request) -> web.Response:
        parameters(request)
        async with self._asking:
            if time.monotonic() - self._body_at >= FRESH_S:
                self._body = await self._look()
                self._body_at = time.monotonic()
        return await packed(request, self._body, _JSON)

    async def _look(self) -> bytes:
        control = self._control
        snapshot, wrong = await control.snapshot(()), control.troubles()
        services = await control.page("services", ListQuery(SortBy.STATE, SHOWN_SERVICES))
        servers = control.matrix()

        def render() -> bytes:
            events = control.events(Query(limit=SHOWN_EVENTS))
            body = overview(snapshot, wrong(), control.recent(), services, servers, events)
            return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()

        # In a thread, because thousands of backends take a while, and health checks must not wait.
        return await asyncio.to_thread(render)

    async def _backends(self, request: web.Request) -> web.Response:
        of, query = requests.list_query("backends", parameters(request, requests.LIST_PARAMETERS))
        found = await self._control.page(of, query)
        recent = await asyncio.to_thread(self._control.recent)
        body = await asyncio.to_thread(lambda: json.dumps(views.page(of, found, recent)).encode())
        return await packed(request, body, _JSON)

    async def _scale(self, request: web.Request) -> web.Response:
        """Answer a scaler that has the token; the metrics port has neither token nor TLS."""
        parameters(request)
        name = request.match_info["name"]
        async with self._asking:
            snapshot = await self._control.snapshot((name,))
        if not snapshot.services:
            raise NotFoundError(
                f"there is no service {name!r}", where="services", remedy="lbctl service list"
            )
        return as_json(scaleviews.scale(snapshot.services[0]))

    async def _explain(self, request: web.Request) -> web.Response:
        asked = requests.five_tuple(parameters(request, requests.EXPLAIN_PARAMETERS))
        return as_json(views.explanation(self._control.explain(asked)))

    async def _trace(self, request: web.Request) -> web.StreamResponse:
        given = parameters(request, requests.TRACE_PARAMETERS)
        query = requests.trace_query(given, self._control.config())
        if len(self._following) >= MOST_TRACES:
            return refusal(
                429,
                f"{MOST_TRACES} traces are already running",
                where="trace",
                remedy="end one of them, or use lbctl trace",
            )
        with self._control.follow(query) as following:
            # A trace costs time on the packet path, so the log says who asked for it.
            self._say("trace", "info", by=f"the status page, {request.remote}", **given)
            self._following.add(following)
            ends = asyncio.get_running_loop().call_later(TRACE_S, following.close)
            try:
                return await trace.stream(request, following, _in_words())
            finally:
                ends.cancel()
                self._following.discard(following)

    def _say(self, event: str, level: str, **fields: object) -> None:
        """Log an event, but not for every request, so that no client can fill the log and the
        journal.
        """
        now = time.monotonic()
        if now - self._logged_at.get(event, float("-inf")) < SAID_EVERY_S:
            self._suppressed[event] += 1
            return
        self._logged_at[event] = now
        if more := self._suppressed.pop(event, 0):
            fields["more_since"] = more
        getattr(log, level)(event, **fields)


def _in_words() -> Callable[[dict[str, object]], dict[str, object]]:
    stamps = Stamps(0)
    return lambda event: {"text": line(event, stamps, numeric=False), "event": event["event"]}


def page() -> tuple[str, str]:
    """Return the page as one self-contained document, and the policy that enforces that."""
    here = Path(__file__)
    style, script, text = (
        here.with_name(name).read_text() for name in (_STYLE, _SCRIPT, "page.html")
    )
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for part in (style, script)
    )
    policy = (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text.replace(f"/*{_STYLE}*/", style).replace(f"/*{_SCRIPT}*/", script), policy


def read_token(path: Path) -> bytes:
    """Return the token in a file, without the line end. Raises ConfigError if it is not usable."""
    make = f"`(umask 077; openssl rand -hex 16 > {path})`"
    token = read_private(path, "the status page's token", 4096, make=make).strip()
    if len(token) < access.LEAST_TOKEN_BYTES:
        raise ConfigError(
            f"the status page's token has {len(token)} characters, and needs at least "
            f"{access.LEAST_TOKEN_BYTES}",
            where=str(path),
            remedy=f"make a new one: {make}",
        )
    return token


def _context(certificate: Path, key: Path) -> tuple[ssl.SSLContext, tuple[float, ...]]:
    """Return what a server needs that has these, and when they were written.

    Raises ConfigError if they cannot be used.
    """
    make = "as `certbot` does, or ask the issuer of the certificate"
    written = _written(certificate, key)
    read_private(key, "the status page's key", 1 << 16, make=make)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_alpn_protocols(["http/1.1"])
    try:
        made.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"the status page's certificate cannot be used: {error}",
            where=str(certificate),
            remedy="give the certificate with its chain as `certificate` and its key, without a "
            "password, as `key_file`, both in PEM",
        ) from error
    return made, written


def _written(*files: Path) -> tuple[float, ...]:
    """Return when the files were written, or nothing while one is missing."""
    try:
        return tuple(file.stat().st_mtime for file in files)
    except OSError:
        return ()
