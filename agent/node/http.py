"""Owns the HTTP port of the node agent: ``/metrics`` and ``/health``.

``?gpu=0,1`` asks for the GPUs of one engine only.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from agent import guarded

_MOST_NAMES = 64
_LONGEST_NAME = 64

type Engine = tuple[str, ...]  # the GPUs asked for; empty: all


class Pages:
    """Serves ``metrics(engine)``, and ``health(engine)``: whether all is well, and one line."""

    def __init__(
        self,
        metrics: Callable[[Engine], bytes],
        content_type: str,
        health: Callable[[Engine], tuple[bool, str]],
    ) -> None:
        self._metrics = metrics
        self._content_type = content_type
        self._health = health
        self._listening: guarded.Listening | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; raises ListenError when it is taken."""
        app = web.Application(client_max_size=1024)
        app.add_routes([web.get("/metrics", self._page), web.get("/health", self._well)])
        self._listening = await guarded.listen(app, host, port)
        return self._listening.port

    async def stop(self) -> None:
        """Stop taking requests, and let those in progress end."""
        if self._listening is not None:
            await self._listening.stop()

    async def _page(self, request: web.Request) -> web.Response:
        body = self._metrics(_engine(request))
        return web.Response(body=body, headers={"Content-Type": self._content_type})

    async def _well(self, request: web.Request) -> web.Response:
        well, text = self._health(_engine(request))
        return web.Response(status=200 if well else 503, text=f"{text}\n")


def _engine(request: web.Request) -> Engine:
    if set(request.query) - {"gpu"}:
        raise web.HTTPBadRequest(text="the only parameter is gpu\n")
    names = tuple(filter(None, ",".join(request.query.getall("gpu", [])).split(",")))
    if len(names) > _MOST_NAMES or any(len(name) > _LONGEST_NAME for name in names):
        raise web.HTTPBadRequest(text="too many GPUs, or too long a name\n")
    return names
