"""An agent behind a Unix socket that tells what it was asked, certificates, and `lb-agent api`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from agent import guarded
from agent.api.client import Client, Server
from agent.remote import forward
from agent.remote import run as remotes
from agent.remote.run import Remote
from tests.pki import Authority, Pair


class FakeAgent:
    """What `lb-agent api` sees of an agent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.api: dict[str, Any] = dict.fromkeys(
            ("address", "port", "certificate", "key_file", "client_ca", "crl_file")
        )
        self.status = 200  # of GET /v1/api
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Callable[[web.Request], Any] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/api" and "Steelyard-Certificate" not in request.headers:
            return web.json_response(self.api, status=self.status)
        body = await request.read()
        self.asked.append((request.method, request.raw_path, dict(request.headers), body))
        if self.answer is not None:
            found: web.StreamResponse = await self.answer(request)
            return found
        return web.json_response({"path": request.path})


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def alice(authority: Authority) -> Pair:
    return authority.issue("alice", "/O=example/CN=alice")


@pytest.fixture(scope="session")
def server(authority: Authority) -> Pair:
    return authority.issue("server", "/CN=lb1", "subjectAltName=IP:127.0.0.1")


@pytest.fixture
def agent(tmp_path: Path, authority: Authority, server: Pair) -> FakeAgent:
    made = FakeAgent(tmp_path / "agent.sock")
    made.api |= {
        "address": "127.0.0.1",
        "port": 0,
        "certificate": str(server.certificate),
        "key_file": str(server.key),
        "client_ca": str(authority.certificate),
    }
    return made


@contextlib.asynccontextmanager
async def served(agent: FakeAgent, *, started: bool = True) -> AsyncGenerator[Remote]:
    """`lb-agent api` in front of an agent."""
    if started:
        await agent.start()
    remote = Remote(agent.path)
    try:
        await remote.look()
        yield remote
    finally:
        await remote.close()
        await agent.stop()


def client(remote: Remote, pair: Pair, authority: Authority | None) -> Client:
    """lbctl's client, with a certificate."""
    assert remote.port is not None
    trusted = None if authority is None else authority.certificate
    return Client(Server("127.0.0.1", remote.port, *pair, trusted), 60.0)


async def get(remote: Remote, pair: Pair, authority: Authority, path: str = "/v1/status") -> Any:
    """Return the answer to a GET, with a connection of its own."""
    return await asyncio.to_thread(client(remote, pair, authority).get, path)


def body_of(asked: tuple[str, str, dict[str, str], bytes]) -> Any:
    """Return the JSON that was sent."""
    return json.loads(asked[3])


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute for whatever answers, however slow the host is."""
    monkeypatch.setattr(remotes, "_ASK", aiohttp.ClientTimeout(total=60.0))
    monkeypatch.setattr(forward, "_CONNECT_S", 60.0)
    monkeypatch.setattr(guarded, "HEAD_S", 60.0)


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What was logged: the events and their details."""
    found: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def __getattr__(self, _level: str) -> Any:
            return lambda event, **details: found.append((event, details))

    monkeypatch.setattr(remotes, "log", Log())
    return found
