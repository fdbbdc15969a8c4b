"""What a browser gets of the status page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import shutil
import ssl
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from agent.model import StatusPage
from agent.page import server
from agent.page.server import MOST_TRACES, PageServer, page
from agent.state.events import Event, EventKind
from agent.state.queries import ListQuery, SortBy
from tests.pki import Pair, self_signed
from tests.unit.api.conftest import FakeControl

TOKEN = "0123456789abcdef"  # noqa: S105 (a test's)
HERE = ("127.0.0.1", 0)


class Site:
    """A page that is served, and a browser."""

    def __init__(self, control: FakeControl, serving: PageServer, tls: bool) -> None:
        self.control, self.serving = control, serving
        self._scheme = "https" if tls else "http"
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))

    def url(self, path: str) -> str:
        assert self.serving.address is not None
        return f"{self._scheme}://127.0.0.1:{self.serving.address[1]}{path}"

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(self.url(path), headers=given) as told:
            is_json = told.content_type == "application/json"
            return told.status, await (told.json() if is_json else told.text())


def visit(work: Callable[[Site], Awaitable[None]], asked: StatusPage | None = None) -> None:
    async def around() -> None:
        control = FakeControl()
        asks = asked or StatusPage(HERE)
        serving = PageServer(control, asks)
        keeping = asyncio.create_task(serving.keep())
        site = Site(control, serving, asks.certificate is not None)
        try:
            await until(lambda: serving.address is not None)
            await work(site)
        finally:
            await site.session.close()
            keeping.cancel()
            await serving.stop()

    asyncio.run(asyncio.wait_for(around(), 180))


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(9000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"


def certificate(folder: Path, name: str = "lb.example") -> Pair:
    made = self_signed(folder, "page", name)
    made.key.chmod(0o600)
    return made


def token_file(folder: Path) -> Path:
    file = folder / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    return file


def test_the_page_is_one_file_that_loads_nothing_from_elsewhere():
    text, policy = page()
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", text)
    assert "http:" not in text
    assert "https:" not in text
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    for part in (style, script):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    # The policy lets no attribute have code or style.
    assert not re.search(r"\s(?:on[a-z]+|style)=", text)


def test_a_browser_gets_the_page_and_what_holds_it_to_itself():
    async def work(site: Site) -> None:
        async with site.session.get(site.url("/")) as told:
            assert (told.status, told.content_type) == (200, "text/html")
            assert await told.text() == page()[0]
            assert told.headers["Content-Security-Policy"] == page()[1]
            assert told.headers["X-Frame-Options"] == "DENY"
            assert told.headers["Cache-Control"] == "no-store"

    visit(work)


def test_it_tells_all_that_it_shows():
    async def work(site: Site) -> None:
        status, told = await site.get("/v1/page")
        assert status == 200
        assert told["status"]["agent"]["name"] == "edge-1"
        assert told["problems"][0] == "eth0 has no carrier"
        (service,) = told["services"]
        assert (service["name"], told["services_total"]) == ("chat", 9)
        assert service["first_byte_last_minute"] == {"count": 3, "p50_ms": 12.346, "p99_ms": 250.0}
        assert service["handshakes"] == {"begun": 40, "established": 30, "span_s": 25.0}
        assert told["matrix"] == {
            "servers": [["gpu-1", "10.0.0.21"]],
            "services": ["chat"],
            "cells": [[0, 0, "gpu-1", "up", 0.25]],
        }
        assert told["events"][0]["at"].startswith("1970-01-12T13:46:43")  # the newest first
        assert told["events"][1]["about"] == "chat"
        assert told["failover"] is None

    visit(work)


def test_many_who_look_at_once_cost_what_one_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "FRESH_S", 3600.0)

    async def work(site: Site) -> None:
        answers = await asyncio.gather(*(site.get("/v1/page") for _ in range(6)))
        assert {status for status, _ in answers} == {200}
        assert site.control.asked.count(("snapshot",)) == 1

    visit(work)


def test_the_backends_of_a_service_and_where_a_client_would_go():
    async def work(site: Site) -> None:
        status, told = await site.get("/v1/backends?service=chat&sort=state&limit=5")
        assert (status, [row["name"] for row in told["backends"]]) == (200, ["gpu-1", "gpu-2"])
        query = ListQuery(SortBy.STATE, 5, service="chat")
        assert site.control.asked[-1] == ("page", "backends", query)
        asks = "protocol=tcp&client=192.0.2.7&client_port=4000&vip=10.0.0.10&port=80"
        status, told = await site.get(f"/v1/explain?{asks}")
        assert (status, told["verdict"], told["backend"]) == (200, "forward", "gpu-1")
        status, told = await site.get("/v1/scale/chat")
        assert (status, told["service"], told["wanted_backends"]) == (200, "chat", None)
        assert (await site.get("/v1/scale/none"))[0] == 404
        status, told = await site.get("/v1/explain?protocol=tcp")
        assert (status, told["error"]["where"]) == (400, "parameter client")

    visit(work)


@pytest.mark.parametrize(
    "path", ["/v1/edit", "/v1/reload", "/v1/guard/block", "/v1/flows", "/v1/config"]
)
def test_it_has_no_way_to_what_changes_anything(path: str):
    async def work(site: Site) -> None:
        async with site.session.post(site.url(path), json={}) as told:
            assert told.status == 404
        async with site.session.post(site.url("/v1/page"), json={}) as told:
            assert told.status == 405
        assert site.control.asked == []

    visit(work)


def test_other_sites_and_names_that_lead_here_are_refused():
    async def work(site: Site) -> None:
        status, told = await site.get("/v1/page", Sec_Fetch_Site="cross-site")
        assert (status, told["error"]["message"]) == (403, "another site's page asks for this")
        status, told = await site.get("/", Host="evil.example")
        assert (status, told["error"]["remedy"]) == (421, "open it by its address")
        assert site.control.asked == []

    visit(work)


def test_a_token_is_asked_for_and_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "WRONG_TOKEN_S", 0.01)

    async def work(site: Site) -> None:
        async with site.session.get(site.url("/")) as told:
            assert told.status == 401
            assert told.headers["WWW-Authenticate"].startswith('Basic realm="Steelyard"')
        with capture_logs() as logs:
            assert (await site.get("/v1/page", Authorization=basic("wrong")))[0] == 401
            for _ in range(5):  # a guesser fills no log
                await site.get("/v1/page", Authorization=basic("wrong"))
        assert [(log["log_level"], log["by"]) for log in logs] == [("warning", "127.0.0.1")]
        monkeypatch.setattr(server, "SAID_EVERY_S", 0.0)
        with capture_logs() as logs:
            await site.get("/v1/page", Authorization=basic("wrong"))
        assert [log["more_since"] for log in logs] == [5]
        assert (await site.get("/v1/page", Authorization=basic(TOKEN)))[0] == 200

    visit(work, StatusPage(HERE, token_file(tmp_path)))


def test_with_tls_a_certificate_that_was_renewed_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "AGAIN_S", 0.05)
    pem, key = certificate(tmp_path)

    async def work(site: Site) -> None:
        assert (await site.get("/v1/page", Authorization=basic(TOKEN)))[0] == 200
        before = ssl.PEM_cert_to_DER_cert(pem.read_text())
        assert await seen(site) == before
        (tmp_path / "new").mkdir()
        new, its_key = certificate(tmp_path / "new", "renewed.example")
        with capture_logs() as logs:
            pem.write_bytes(new.read_bytes())
            await until(lambda: any("cannot be used" in log.get("problem", "") for log in logs))
        assert await seen(site) == before, "its key is still to come"
        key.write_bytes(its_key.read_bytes())
        for _ in range(600):
            if await seen(site) != before:
                break
            await asyncio.sleep(0.05)
        assert await seen(site) == ssl.PEM_cert_to_DER_cert(pem.read_text())

    visit(work, StatusPage(HERE, token_file(tmp_path), pem, key))


async def seen(site: Site) -> bytes:
    """The certificate that a new connection is shown."""
    assert site.serving.address is not None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*site.serving.address, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return bytes(found)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "token").unlink(), "cannot be read"),
        (lambda folder: (folder / "token").write_text("short\n"), "needs at least 16"),
        (lambda folder: (folder / "token").chmod(0o644), "everybody on this host can read"),
        (lambda folder: (folder / "page.key").chmod(0o604), "everybody on this host can read"),
        (lambda folder: (folder / "page.pem").write_text("no\n"), "certificate cannot be used"),
    ],
)
def test_what_hinders_it_is_said_once_and_tried_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object],
    words: str,
):
    monkeypatch.setattr(server, "AGAIN_S", 0.02)
    good = tmp_path / "good"
    good.mkdir()
    for each in (*certificate(good), token_file(good)):
        shutil.copy2(each, tmp_path)
    asked = StatusPage(HERE, *(tmp_path / name for name in ("token", "page.pem", "page.key")))
    spoil(tmp_path)
    attempts, start = list[PageServer](), PageServer._start

    async def counted(serving: PageServer) -> None:
        attempts.append(serving)
        await start(serving)

    monkeypatch.setattr(PageServer, "_start", counted)

    async def work() -> None:
        serving = PageServer(FakeControl(), asked)
        keeping = asyncio.create_task(serving.keep())
        await until(lambda: len(attempts) >= 5)
        assert serving.address is None
        for each in sorted(good.iterdir()):
            each.replace(tmp_path / each.name)  # in one piece: an attempt may read it meanwhile
        await until(lambda: serving.address is not None)
        keeping.cancel()
        await serving.stop()

    with capture_logs() as logs:
        asyncio.run(asyncio.wait_for(work(), 180))
    problems = [log["problem"] for log in logs if log["log_level"] == "error"]
    assert len(problems) == 1
    assert words in problems[0]


DROP = Event(
    1_700_000_000.0,
    EventKind.DROP,
    6,
    ip_address("192.0.2.7"),
    4000,
    ip_address("10.0.0.10"),
    80,
    60,
)


def test_a_trace_is_told_in_words_and_ends_with_who_reads_it():
    async def work(site: Site) -> None:
        async with site.session.get(site.url("/v1/trace?kind=drop&service=chat")) as told:
            assert (await told.content.readline()).startswith(b'{"lost_in_ring"')
            (follower,) = site.control.followers
            follower.tell(DROP)
            line = (await told.content.readline()).decode()
            assert "192.0.2.7.4000 > 10.0.0.10.80 tcp" in line
        await asyncio.wait_for(follower.left.wait(), 90)

    visit(work)


def test_there_are_few_traces_at_once_and_stop_ends_them():
    async def work(site: Site) -> None:
        streams = [await site.session.get(site.url("/v1/trace")) for _ in range(MOST_TRACES)]
        for stream in streams:
            await stream.content.readline()
        status, told = await site.get("/v1/trace")
        assert (status, told["error"]["remedy"]) == (429, "end one of them, or use lbctl trace")
        await site.serving.stop()
        for follower in site.control.followers:
            assert follower.ended

    visit(work)


def test_it_is_off_unless_it_is_asked_for():
    serving = PageServer(FakeControl(), StatusPage())
    asyncio.run(asyncio.wait_for(serving.keep(), 60))
    assert serving.address is None
