"""A tier on loopback for tests: its files, `lb-agent tier run`, and an engine that streams."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import yaml
from aiohttp import web

from agent.api.client import Client
from lbctl.lab import processes
from tests.netns.site import wait_until
from tests.pki import Authority, client_context

WAITING = 200  # requests that wait at one engine
EVENTS = 20  # of a streamed answer
HOST = "chat.example.org"


def free_port() -> int:
    """Return a port of loopback that nobody has, and that no client gets as its own meanwhile:
    those begin at 32,768 (net.ipv4.ip_local_port_range).
    """
    while True:
        port = random.randrange(16_384, 32_768)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Engine:
    """Answers with what it was asked; streams when it is asked to, for as long as it is told."""

    def __init__(self, name: str) -> None:
        self.name, self.port = name, 0
        self.release = threading.Event()  # lets answers to /wait go
        self.busy = 0
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(WAITING))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until("the engine listens", lambda: self.port)
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.add_routes([web.route("*", "/{path:.*}", self._answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        sock = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, sock).start()
        self.port = sock.getsockname()[1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path == "/stream":
            return await self._stream(request)
        if request.path == "/wait":
            self.busy += 1
            try:
                await asyncio.to_thread(self.release.wait)
            finally:
                self.busy -= 1
        return web.json_response(
            {
                "engine": self.name, "headers": dict(request.headers), "bytes": len(body),
                "client": request.remote,
            }
        )  # fmt: skip

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: 0\n\n")
        await asyncio.to_thread(self.release.wait)
        for number in range(1, EVENTS):
            await answer.write(b"data: %d\n\n" % number)
        await answer.write(b"data: [DONE]\n\n")
        return answer


class TierUnderTest:
    """One tier in a folder. ``document``: what is in its file.

    ``entering``: the command that takes what follows into a network namespace.
    """

    def __init__(self, at: Path, engines: str, entering: Sequence[str] = (), **more: Any) -> None:
        self.folder = folder = at  # of all files
        self.entering = entering
        self.port = free_port()
        self.file = folder / "tier.yaml"
        self.authority = Authority(folder / "authority")
        self.certificates = folder / "certificates"
        self.certificates.mkdir(mode=0o700)
        self.certify()
        self.document: dict[str, Any] = {
            "listen": [f"127.0.0.1:{self.port}"],
            "engines": engines,
            "certificates": str(self.certificates),
            "folder": str(folder / "run"),
            "metrics": f"127.0.0.1:{free_port()}",
            "max_connections": 2000,
            **more,
        }
        self.write()
        self.agent: subprocess.Popen[bytes] | None = None
        self.log = folder / "log"

    def certify(self, name: str = "chat", host: str = HOST) -> None:
        """Put a new certificate and key in the place of the one of that name."""
        pair = self.authority.issue(name, f"/CN={host}", f"subjectAltName=DNS:{host}")
        fresh = self.certificates / f".{name}"
        fresh.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
        fresh.chmod(0o600)
        fresh.rename(self.certificates / f"{name}.pem")

    def write(self, **changes: Any) -> None:
        """Write the file anew, with changes."""
        self.document |= changes
        self.file.write_text(yaml.safe_dump(self.document))

    def start(self) -> None:
        """Start `lb-agent tier run`, and wait until HAProxy answers."""
        self._begin()
        wait_until("the tier serves", self.serves)

    def _begin(self) -> None:
        program = processes.program("lb-agent", "agent.main")
        words = ("tier", "run", "--config", str(self.file), "--with-haproxy")
        command = [*self.entering, *program, *words]
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=processes.environment(),
            )  # fmt: skip

    def restart(self) -> None:
        """Kill the agent, and start another one; HAProxy goes on."""
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait()
        self._begin()
        wait_until("the next agent has looked", self._has_looked)

    def _has_looked(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self.status()["reloads_total"] == 1)
        return False

    def serves(self) -> bool:
        """Whether HAProxy answers, and nothing is wrong; an agent that has ended is a failure."""
        assert self.agent is not None
        assert self.agent.poll() is None, self.log.read_text()
        with contextlib.suppress(Exception):
            found = self.status()
            return bool(found["haproxy"] and not found["problems"])
        return False

    def status(self) -> Any:
        """What `lbctl tier status` shows."""
        return Client(self.socket, 60).get("/v1/tier")

    @property
    def run(self) -> Path:
        """The folder of the sockets and of what HAProxy reads."""
        return Path(self.document["folder"])

    @property
    def socket(self) -> Path:
        return self.run / "tier.sock"

    def reload(self) -> Any:
        return Client(self.socket, 60).post("/v1/reload")

    def lbctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `lbctl tier …`."""
        return subprocess.run(
            [*processes.program("lbctl", "lbctl.main"), "tier", *words],
            capture_output=True, text=True, check=False, timeout=120,
            env={**processes.environment(), "STEELYARD_TIER_SOCKET": str(self.socket)},
        )  # fmt: skip

    def haproxies(self) -> list[int]:
        """The processes of this tier's HAProxy."""
        found = subprocess.run(
            ["pgrep", "-f", f"haproxy.*{self.run}/haproxy.cfg"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return [int(pid) for pid in found.stdout.split()]

    def stop(self) -> None:
        """End all of it."""
        if self.agent is not None and self.agent.poll() is None:
            self.agent.send_signal(signal.SIGTERM)
            self.agent.wait(60)
        for pid in self.haproxies():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # -- clients

    def connect(
        self, context: ssl.SSLContext | None = None, host: str = HOST
    ) -> http.client.HTTPSConnection:
        """A client's connection."""
        context = context or client_context(self.authority)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60)
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sock = context.wrap_socket(sock, server_hostname=host)
        return connection

    def ask(
        self, path: str = "/", body: Any = None, key: str = "", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """The status, headers and JSON of an answer."""
        connection = self.connect()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        text = json.dumps(body) if body is not None else None
        try:
            connection.request("POST" if text else "GET", path, body=text, headers=sent)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, json.loads(content)

    def curl(self, *words: str) -> str:
        """The status that curl gets."""
        done = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "60",
             "--cacert", str(self.authority.certificate),
             "--resolve", f"{HOST}:{self.port}:127.0.0.1", f"https://{HOST}:{self.port}/", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout

    def add_key(self, name: str, *limits: str) -> str:
        """Make a key with lbctl, and wait until it is known."""
        made = self.lbctl("keys", "add", name, *limits)
        assert made.returncode == 0, made.stderr
        key = made.stdout.strip()
        wait_until(f"the key of {name} is known", lambda: self.ask("/known", key=key)[0] != 401)
        return key


@contextlib.contextmanager
def tier(
    at: Path, engines: str, entering: Sequence[str] = (), **more: Any
) -> Iterator[TierUnderTest]:
    """A tier that serves, with its files at ``at``; ``more``: what its file says."""
    made = TierUnderTest(at, engines, entering, **more)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.run, ignore_errors=True)


def serial(made: TierUnderTest, host: str = HOST) -> int:
    """The serial number of the certificate that is served for a host now."""
    connection = made.connect(host=host)
    try:
        found = connection.sock.getpeercert()
    finally:
        connection.close()
    return int(found["serialNumber"], 16)
