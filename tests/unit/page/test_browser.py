"""The page in a real browser, by its keyboard: Chromium, if it is installed (`make soak`)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.model import StatusPage
from agent.page.server import PageServer
from tests.unit.api.conftest import FakeControl
from tests.unit.page.test_server import HERE, TOKEN, certificate, until

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium"),
]


class Browser:
    """One tab, over the Chrome DevTools Protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.said: list[str] = []  # on the console, and by the policy

    async def call(self, method: str, **given: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": given})
        while True:
            told = await self._socket.receive_json(timeout=60)
            if told.get("id") == number:
                assert "error" not in told, told
                return dict(told["result"])
            if told.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.said.append(json.dumps(told["params"]))

    async def run(self, expression: str) -> Any:
        """The value of an expression, when it is there."""
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        found = await self.call("Runtime.evaluate", **given)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def sees(self, expression: str) -> None:
        for _ in range(600):
            if await self.run(expression):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{expression}: {await self.run('document.body.innerText')}")

    async def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            given = {"type": kind, "key": key, "windowsVirtualKeyCode": code, **text}
            await self.call("Input.dispatchKeyEvent", **given)


@contextlib.asynccontextmanager
async def opened(url: str, folder: Path, *more: str) -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
               f"--user-data-dir={folder}", "--window-size=1300,1500",
               *more, "about:blank"]  # fmt: skip
    nowhere = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *options, stdout=nowhere, stderr=nowhere
    )
    try:
        port = folder / "DevToolsActivePort"
        await until(lambda: port.exists() and len(port.read_text().split()) == 2)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{address}/json") as told:
                tab = next(one for one in await told.json() if one["type"] == "page")
            socket = tab["webSocketDebuggerUrl"]
            async with session.ws_connect(socket, max_msg_size=0) as connection:
                browser = Browser(connection)
                for part in ("Page", "Runtime", "Log"):
                    await browser.call(f"{part}.enable")
                await browser.call("Page.navigate", url=url)
                yield browser
    finally:
        process.terminate()
        await process.wait()


def test_it_is_read_and_used_by_the_keyboard_and_says_when_nobody_answers(tmp_path: Path):
    async def work() -> None:
        control = FakeControl()
        serving = PageServer(control, StatusPage(HERE))
        keeping = asyncio.create_task(serving.keep())
        await until(lambda: serving.address is not None)
        assert serving.address is not None
        url = f"http://127.0.0.1:{serving.address[1]}/"
        async with opened(url, tmp_path / "profile") as browser:
            await browser.sees("document.title === '(2) edge-1'")
            await browser.sees("document.querySelectorAll('#map button').length === 1")

            # Into a service: focus stays on its button though the table is drawn anew.
            await browser.run("document.querySelector('[data-key=\"service chat\"]').focus()")
            await browser.press("Enter", 13)
            await browser.sees("document.querySelector('#detail').innerText.includes('gpu-2')")
            await browser.sees("document.activeElement.dataset.key === 'service chat'")
            await browser.sees("document.activeElement.getAttribute('aria-expanded') === 'true'")

            await browser.run(
                "Object.assign(document.forms.ask.elements.client, {value: '192.0.2.7:4000'});"
                "Object.assign(document.forms.ask.elements.vip, {value: '10.0.0.10:80'});"
                "document.forms.ask.elements.client.focus()"
            )
            await browser.press("Enter", 13)
            await browser.sees("document.querySelector('#answer').innerText.includes('gpu-1')")

            # Everything that can be used has a name that a screen reader says.
            assert await browser.run(
                "[...document.querySelectorAll('button, input, select')].every((one) =>"
                " one.innerText.trim() || one.getAttribute('aria-label') || one.labels.length)"
            )

            picture = await browser.call("Page.captureScreenshot")
            (tmp_path / "page.png").write_bytes(base64.b64decode(picture["data"]))

            await serving.stop()
            await browser.sees("!document.querySelector('#stale').hidden")
            stale = await browser.run("document.querySelector('#stale').innerText")
            assert "The page shows the state of" in stale
            assert not [one for one in browser.said if "Content Security" in one], browser.said
        keeping.cancel()
        await serving.stop()

    asyncio.run(asyncio.wait_for(work(), 180))


def fingerprint(pem: Path) -> str:
    """The digest of a certificate's key, by which Chromium is told to accept it."""
    command = f"openssl x509 -in {pem} -pubkey -noout | openssl pkey -pubin -outform der"
    key = subprocess.run(command, shell=True, check=True, capture_output=True).stdout  # noqa: S602
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


def test_with_tls_and_the_token_in_the_address_as_in_a_bookmark(tmp_path: Path):
    async def work() -> None:
        pem, key = certificate(tmp_path)
        token = tmp_path / "token"
        token.write_text(f"{TOKEN}\n")
        token.chmod(0o600)
        serving = PageServer(FakeControl(), StatusPage(HERE, token, pem, key))
        keeping = asyncio.create_task(serving.keep())
        await until(lambda: serving.address is not None)
        assert serving.address is not None
        url = f"https://x:{TOKEN}@127.0.0.1:{serving.address[1]}/"
        accepts = f"--ignore-certificate-errors-spki-list={fingerprint(pem)}"
        async with opened(url, tmp_path / "profile", accepts) as browser:
            await browser.sees("document.title === '(2) edge-1'")
            assert TOKEN not in await browser.run("document.body.innerText + location.href")
            assert not [one for one in browser.said if "Content Security" in one], browser.said
        keeping.cancel()
        await serving.stop()

    asyncio.run(asyncio.wait_for(work(), 180))
