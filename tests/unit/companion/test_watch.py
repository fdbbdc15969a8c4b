"""The watch over companions: real pages over HTTP, and what becomes of those that are missing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from aiohttp import web

from agent.companion import watch
from agent.companion.keys import read_keys
from agent.companion.page import PATH, Status, rendered
from agent.companion.watch import MISSES, Companions
from agent.dataplane import abi
from agent.dataplane.program import Dataplane
from agent.model import (
    Backend,
    BackendRef,
    Config,
    Protocol,
    Service,
    ServiceKey,
    SynProtection,
)

KEY = "ab" * 16
VIP = "10.0.0.10"


class Servers:
    """What answers at the companions' port of this host."""

    def __init__(self) -> None:
        self.told: Callable[[], Status | None] = lambda: None
        self.status = 200
        self.behind = b""
        self.elsewhere = ""
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.elsewhere:
            raise web.HTTPFound(self.elsewhere)
        told = self.told()
        body = b"<html>" if told is None else rendered(told) + self.behind
        return web.Response(body=body, status=self.status)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Servers, int]]:
    servers = Servers()
    app = web.Application()
    app.add_routes([web.get(PATH, servers.answer), web.get("/secret", servers.answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield servers, runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Watched:
    """The watch over one service of one server, which is this host."""

    def __init__(self, key_file: Path, port: int) -> None:
        member = Backend("be1", ip_address("127.0.0.1"))
        self.service = Service(
            "web",
            ServiceKey(ip_address(VIP), 80, Protocol.TCP),
            backends=(member,),
            syn_protection=SynProtection.ALWAYS,
            syn_cookies=True,
        )
        self.config = Config(
            "t", "lo", services=(self.service,), companion_key_file=key_file, companion_port=port
        )
        self.secret = np.zeros(1, dtype=abi.COOKIE_SECRET)
        tables = SimpleNamespace(cookie_secret=self.secret)
        self.wakes = 0
        dataplane = cast("Dataplane", SimpleNamespace(tables=tables))
        self.companions = Companions(dataplane, self._wake)
        self.companions.aim(self.config)

    def _wake(self) -> None:
        self.wakes += 1

    def found(self, *, usable: bool = True) -> Any:
        return {BackendRef("web", "be1"): SimpleNamespace(usable=usable)}

    def ready(self, *, usable: bool = True) -> bool:
        return "web" in self.companions.ready(self.config, self.found(usable=usable))

    @property
    def said(self) -> str:
        return self.companions.problem_of(self.service)

    @property
    def key_names(self) -> tuple[str, ...]:
        return self.companions.key_names(self.service)

    async def round(self) -> None:
        await self.companions._round()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY)
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute for whatever answers, however slow the host is."""
    monkeypatch.setattr(watch, "TIMEOUT_S", 60.0)


def names(path: Path) -> tuple[str, ...]:
    return read_keys(path).names


def test_a_service_gives_cookies_while_its_server_takes_them(key_file: Path):
    async def play() -> None:
        async with serving() as (servers, port):
            watched = Watched(key_file, port)
            assert not watched.ready()
            assert watched.said == "the key file has not been read yet"
            servers.told = lambda: Status(names(key_file), (VIP,), time.time())
            await watched.round()
            assert watched.wakes == 1
            assert watched.ready()
            assert watched.said == ""
            assert watched.secret["keys"] == 1
            assert watched.secret["key"].tobytes() == bytes.fromhex(KEY)
            assert watched.secret["mtu"] == 1500
            await watched.round()
            assert watched.wakes == 1, "nothing has changed"
            # A server that is down does not count; one that comes up has to have a companion.
            servers.told = lambda: Status(("other",), (VIP,), time.time())
            await watched.round()
            assert not watched.ready()
            assert watched.said == "be1: its companion has another key"
            assert watched.ready(usable=False)

    asyncio.run(play())


def test_a_key_that_all_servers_took_is_signed_with_without_a_break(key_file: Path):
    """It looked for a moment as if they lacked it, as their last answers were older than that."""
    other = "cd" * 16
    seen: list[bool] = []

    async def play() -> None:
        async with serving() as (servers, port):
            watched = Watched(key_file, port)
            old = names(key_file)
            servers.told = lambda: Status(old, (VIP,), time.time())
            await watched.round()
            key_file.write_text(f"{KEY}\n{other}\n")  # noqa: ASYNC240
            await watched.round()
            assert watched.ready(), "the server has not taken it yet, and need not"
            both = names(key_file)
            key_file.write_text(f"{other}\n{KEY}\n")  # noqa: ASYNC240

            def told() -> Status:
                seen.append(watched.ready())
                return Status(both, (VIP,), time.time())

            servers.told = told
            await watched.round()
            assert watched.key_names == both[::-1]
            assert watched.secret["key"].tobytes() == bytes.fromhex(other)
            assert watched.ready()

    asyncio.run(play())
    assert seen == [True]


def test_clocks_that_differ_are_named(key_file: Path, monkeypatch: Any):
    """They stand still here: how long the answer takes is not of interest."""
    clock = SimpleNamespace(time=lambda: 1_000_030.0, monotonic=time.monotonic)
    monkeypatch.setattr(watch, "time", clock)

    async def play() -> None:
        async with serving() as (servers, port):
            watched = Watched(key_file, port)
            servers.told = lambda: Status(names(key_file), (VIP,), 1_000_000.0)
            await watched.round()
            assert not watched.ready()
            assert watched.said == "be1: its clock is 30 s behind"

    asyncio.run(play())


def test_who_stands_still_while_the_answer_comes_has_no_other_clock(
    key_file: Path, monkeypatch: Any
):
    now = [1_000_000.0]
    monkeypatch.setattr(
        watch, "time", SimpleNamespace(time=lambda: now[0], monotonic=time.monotonic)
    )

    async def play() -> None:
        async with serving() as (servers, port):
            watched = Watched(key_file, port)

            def told(wrong_s: float) -> Status:
                status = Status(names(key_file), (VIP,), now[0] + wrong_s)
                now[0] += 30
                return status

            servers.told = lambda: told(0)
            await watched.round()
            assert watched.ready()
            servers.told = lambda: told(40)
            await watched.round()
            assert not watched.ready()
            assert watched.said == "be1: its clock is 10 s ahead"
            servers.told = lambda: told(-10)
            await watched.round()
            assert not watched.ready()
            assert watched.said == "be1: its clock is 10 s behind"

    asyncio.run(play())


def test_a_companion_that_misses_a_question_is_not_gone(key_file: Path):
    async def play() -> None:
        async with serving() as (servers, port):
            watched = Watched(key_file, port)
            servers.told = lambda: Status(names(key_file), (VIP,), time.time())
            await watched.round()
            assert watched.ready()
            servers.status = 500
            for _ in range(MISSES - 1):
                await watched.round()
                assert watched.ready()
            await watched.round()
            assert not watched.ready()
            assert f"port {port} answers 500" in watched.said
            servers.status = 200
            await watched.round()
            assert watched.ready()

    asyncio.run(play())


def test_what_is_no_companion_is_told_at_once(key_file: Path):
    async def play() -> None:
        async with serving() as (_, port):
            watched = Watched(key_file, port)
            await watched.round()
            assert not watched.ready()
            assert watched.said == f"be1: what answers at port {port} is not a companion"
        with socket.socket() as held:  # nobody else gets the port, and nobody listens
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
            watched = Watched(key_file, port)
            await watched.round()
        watched.ready()
        assert watched.said == f"be1: no companion answers at port {port}: connection refused"

    asyncio.run(play())


def test_a_stranger_at_that_port_sends_us_nowhere_and_fills_nothing(key_file: Path):
    async def play() -> None:
        async with serving() as (servers, port):
            watched = Watched(key_file, port)
            servers.told = lambda: Status(names(key_file), (VIP,), time.time())
            servers.elsewhere = "/secret"
            await watched.round()
            assert servers.asked == [PATH]
            assert not watched.ready()
            assert watched.said == f"be1: port {port} answers 302, so it is not a companion"
            servers.elsewhere, servers.behind = "", b" " * 100_000
            for _ in range(MISSES):
                await watched.round()
            assert not watched.ready()
            assert watched.said == f"be1: what answers at port {port} is not a companion"
            servers.behind = b" " * 50_000
            await watched.round()
            assert watched.ready()

    asyncio.run(play())


def test_dead_servers_do_not_make_the_others_wait_too_long(key_file: Path, monkeypatch: Any):
    """There are as many as are asked at once, and their answers never come."""

    async def play() -> None:
        async with serving() as (servers, port):
            servers.told = lambda: Status(names(key_file), (VIP,), time.time())
            watched = Watched(key_file, port)
            monkeypatch.setattr(watch, "AT_ONCE", 2)
            silent = [await asyncio.start_server(_listen, f"127.0.0.{n}", port) for n in (2, 3)]
            members = [Backend(f"dead{n}", ip_address(f"127.0.0.{n}")) for n in (2, 3)]
            members += watched.service.backends
            service = replace(watched.service, backends=tuple(members))
            watched.companions.aim(replace(watched.config, services=(service,)))
            found = cast(
                "Any",
                {BackendRef("web", each.name): SimpleNamespace(usable=True) for each in members},
            )
            for timeout_s in (0.5, 4.0, 30.0):  # a slow host needs more
                monkeypatch.setattr(watch, "TIMEOUT_S", timeout_s)
                await watched.round()
                why = watched.companions.problem(service, found)
                if "be1" not in why:
                    break
            for each in silent:
                each.close()
            assert "dead2: no companion answers" in why
            assert "dead3: no companion answers" in why
            assert "be1" not in why

    asyncio.run(play())


async def _listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes a connection, and says nothing until it ends."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    writer.close()


def test_a_key_file_that_breaks_ends_nothing_and_is_not_taken_anew(key_file: Path):
    async def play() -> None:
        async with serving() as (servers, port):
            watched = Watched(key_file, port)
            known = names(key_file)
            servers.told = lambda: Status(known, (VIP,), time.time())
            await watched.round()
            key_file.write_text("half")  # noqa: ASYNC240
            await watched.round()
            assert watched.ready()
            assert watched.secret["key"].tobytes() == bytes.fromhex(KEY)
            assert watched.key_names == known
            fresh = Watched(key_file, port)
            await fresh.round()
            assert not fresh.ready()
            assert fresh.key_names == ()
            assert "32 hexadecimal digits" in fresh.said

    asyncio.run(play())


def test_an_agent_that_starts_goes_on_until_it_knows(key_file: Path, monkeypatch: Any):
    async def play() -> None:
        async with serving() as (servers, port):
            watched = Watched(key_file, port)
            watched.companions.adopt(frozenset({"web"}))
            assert watched.ready()
            servers.told = lambda: Status(("other",), (VIP,), time.time())
            await watched.round()
            assert not watched.ready(), "it knows"
            late = Watched(key_file, port)
            late.companions.adopt(frozenset({"web"}))
            monkeypatch.setattr(watch.time, "monotonic", lambda: time.perf_counter() + 10**9)
            assert not late.ready(), "it has waited long enough"

    asyncio.run(play())


def test_services_without_cookies_are_not_asked_about(key_file: Path):
    async def play() -> None:
        async with serving() as (servers, port):
            asked = []
            servers.told = lambda: asked.append(1)  # type: ignore[func-returns-value]
            watched = Watched(key_file, port)
            plain = replace(watched.service, syn_protection=SynProtection.OFF)
            watched.companions.aim(replace(watched.config, services=(plain,)))
            await watched.round()
            assert not asked
            assert not watched.companions.ready(
                replace(watched.config, services=(plain,)), watched.found()
            )

    asyncio.run(play())
