"""A small API server of Kubernetes that answers each request as a test says, on loopback."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

type Json = dict[str, Any]
type Turn = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ApiServer:
    """Answers the first request by the first turn, and so on; after the last one, it is silent."""

    def __init__(self, *turns: Turn, tls: ssl.SSLContext | None = None) -> None:
        self._turns, self._tls = list(turns), tls
        self.asked: list[web.BaseRequest] = []
        self.port = 0
        self._news = asyncio.Event()

    async def __aenter__(self) -> ApiServer:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        self._news.set()
        turn = self._turns.pop(0) if self._turns else hang
        return await turn(request)

    async def until_asked(self, times: int) -> None:
        """Wait until that many requests have come."""
        while len(self.asked) < times:
            self._news.clear()
            await self._news.wait()

    @property
    def queries(self) -> list[dict[str, str]]:
        return [dict(request.query) for request in self.asked]

    @property
    def tokens(self) -> list[str | None]:
        return [request.headers.get("Authorization") for request in self.asked]

    def kubeconfig(self, folder: Path, user: Json | None = None, ca: Path | None = None) -> Path:
        """Write a kubeconfig for this server."""
        scheme = "http" if self._tls is None else "https"
        cluster: Json = {"server": f"{scheme}://127.0.0.1:{self.port}"}
        if ca is not None:
            cluster |= {"certificate-authority": str(ca), "tls-server-name": "localhost"}
        context = {"cluster": "c"} | ({"user": "u"} if user else {})
        path = folder / "config"
        path.write_text(
            yaml.safe_dump(
                {
                    "current-context": "x",
                    "contexts": [{"name": "x", "context": context}],
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": user or {}}],
                }
            )
        )
        return path


# -- objects


def piece(name: str, *addresses: str, version: str = "1") -> Json:
    """An EndpointSlice with ready endpoints."""
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": version},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [address], "conditions": {"ready": True}} for address in addresses
        ],
    }


def event(kind: str, body: Json) -> Json:
    return {"type": kind, "object": body}


def bookmark(version: str) -> Json:
    metadata = {"resourceVersion": version}
    return event("BOOKMARK", {"kind": "EndpointSlice", "metadata": metadata})


def error(code: int) -> Json:
    return event("ERROR", {"kind": "Status", "code": code, "reason": "Expired", "message": "old"})


# -- turns


def says(body: object, status: int = 200, **headers: str) -> Turn:
    async def turn(_request: web.BaseRequest) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, headers=headers)

    return turn


def lists(*pieces: Json, version: str = "10", more: str | None = None) -> Turn:
    metadata = {"resourceVersion": version} | ({"continue": more} if more else {})
    items = [{key: each[key] for key in each if key != "kind"} for each in pieces]
    return says({"kind": "EndpointSliceList", "metadata": metadata, "items": items or None})


def watches(*events: Json | str | asyncio.Event, end: str = "end") -> Turn:
    """Send events; a text as it is; an asyncio.Event is waited for. Then end, hang, or cut."""

    async def turn(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for each in events:
            if isinstance(each, asyncio.Event):
                await each.wait()
            else:
                line = each if isinstance(each, str) else json.dumps(each) + "\n"
                await response.write(line.encode())
        if end == "hang":
            await hang(request)
        elif end == "cut" and request.transport is not None:
            request.transport.close()
        return response

    return turn


async def hang(_request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError
