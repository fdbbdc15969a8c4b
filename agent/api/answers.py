"""Decides how the agent's HTTP servers answer.

Answers are JSON. An error has a fitting status, and a body that says what went wrong, where, and
how to fix it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from agent.api import requests, views
from agent.errors import (
    AuditError,
    ConfigError,
    ConflictError,
    DataplaneError,
    ForbiddenError,
    NetworkError,
    NotFoundError,
    OvertakenError,
    RequestError,
    SteelyardError,
    StoreError,
    UnconfirmedError,
)
from agent.logs import get_logger

log = get_logger()

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 4 * 1024 * 1024  # about 20,000 backends in one services.apply
_WORTH_GZIP = 1 << 16  # bytes; compressing a shorter page costs more than sending it
_GZIP_LEVEL = 1  # a seventh of the size, in a third of the time of the default level

# The first match counts, so the special classes come before the general ones.
_STATUS: tuple[tuple[type[SteelyardError], int], ...] = (
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (UnconfirmedError, 428),
    (ConflictError, 409),
    (ConfigError, 400),
    (RequestError, 400),
    (AuditError, 503),
    (DataplaneError, 503),
    (NetworkError, 503),
    (OvertakenError, 409),
    (StoreError, 503),
)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Handle every request, and turn any error into a JSON body with a fitting status."""
    try:
        return await handler(request)
    except SteelyardError as error:
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        return as_json(views.error(error), status)
    except web.HTTPException as error:
        return _http_refusal(request, error)
    except (ConnectionError, web.RequestPayloadError):
        # The client has gone.
        return refusal(
            400, "the request is incomplete", where=request.path, remedy="send the request again"
        )
    except Exception:
        log.exception("api_request_failed", method=request.method, path=request.path)
        return refusal(
            500,
            "the agent failed to answer because of an internal error",
            where=f"{request.method} {request.path}",
            remedy="look for api_request_failed in the agent's log, and report it",
        )


def _http_refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    where = f"{request.method} {request.path}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return refusal(
            405, "this path does not support the method", where=where, remedy=f"use {allowed}"
        )
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return refusal(
            413,
            f"the body is larger than {MAX_BODY_BYTES} bytes",
            where=where,
            remedy="split the change",
        )
    if isinstance(error, web.HTTPNotFound):
        return refusal(
            404, "there is no such path", where=where, remedy="check the version of the client"
        )
    return refusal(error.status, error.reason, where=where, remedy="")


def refusal(status: int, message: str, *, where: str, remedy: str) -> web.Response:
    """Return an answer that says what is wrong."""
    return as_json(views.error(SteelyardError(message, where=where, remedy=remedy)), status)


async def packed(request: web.Request, body: bytes, content_type: str) -> web.Response:
    """Return an answer with a body that may be large, compressed if the client accepts that.

    aiohttp is not asked to compress it, because it would do so on the event loop.
    """
    headers = {"Content-Type": content_type}
    if len(body) >= _WORTH_GZIP and _takes_gzip(request):
        body = await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL)
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return web.Response(body=body, headers=headers)


def _takes_gzip(request: web.Request) -> bool:
    """Return whether the client accepts gzip, written as Prometheus writes it.

    A client that gives weights (`gzip;q=0`) gets an uncompressed answer.
    """
    wanted = request.headers.get("Accept-Encoding", "").lower().split(",")
    return "gzip" in (one.strip() for one in wanted)


def as_json(body: views.Json, status: int = 200) -> web.Response:
    """Return an answer in JSON."""
    text = json.dumps(body, allow_nan=False)
    return web.Response(status=status, text=text + "\n", content_type="application/json")


def parameters(request: web.Request, known: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the query's parameters. Unknown ones are refused."""
    return requests.parameters(request.query.items(), known)
