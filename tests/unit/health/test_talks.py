"""Health checks of more than a connection, by real servers: gRPC's own, dnsmasq, commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiohttp import web

from agent.health import talks
from agent.health.exchange import payload
from agent.health.grpc import request, serving
from agent.health.patience import Patience
from agent.health.probe import probe
from agent.health.rules import ProbeResult
from agent.model import CheckKind, HealthCheck
from tests.unit.health.test_probe import babbling, http_server, raw_server, silent

LOOPBACK = ip_address("127.0.0.1")
COMPLETION = HealthCheck(CheckKind.COMPLETION, path="/v1/completions", answer_within_s=20.0)
GRPC = HealthCheck(CheckKind.GRPC, timeout_s=20.0)
UDP = HealthCheck(CheckKind.UDP, timeout_s=20.0)
DNS = HealthCheck(CheckKind.DNS, timeout_s=20.0, query="gpu.test", record="A")
EXEC = HealthCheck(CheckKind.EXEC, timeout_s=20.0)


def ask(check: HealthCheck, port: int) -> ProbeResult:
    return asyncio.run(probe(check, LOOPBACK, port, Patience()))


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


# -- an engine


class Engine:
    """Answers as engines do: ``status`` for completions, ``models`` listed."""

    def __init__(self, status: int = 200, body: object = None, models: object = None) -> None:
        self.status, self.body = status, {"choices": [{"text": "!"}]} if body is None else body
        self.models = {"data": [{"id": "tiny"}]} if models is None else models
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.hosts: list[str] = []

    async def __call__(self, asked: web.BaseRequest) -> web.StreamResponse:
        self.hosts.append(asked.headers["Host"])
        if asked.path == "/v1/models":
            return web.json_response(self.models)
        self.asked.append((asked.path, json.loads(await asked.read())))
        return web.json_response(self.body, status=self.status)

    def checked(
        self, check: HealthCheck = COMPLETION, tls: ssl.SSLContext | None = None
    ) -> ProbeResult:
        async def run() -> ProbeResult:
            async with http_server(self, tls) as port:
                return await probe(check, LOOPBACK, port, Patience())

        return asyncio.run(run())


def test_an_engine_that_gives_a_token_is_well():
    engine = Engine()
    result = engine.checked()
    assert result.ok, result
    assert result.detail.startswith("a token of tiny in ")
    assert result.latency_ms is None, "it is no round trip"
    ((path, body),) = engine.asked
    assert path == "/v1/completions"
    assert (body["model"], body["max_tokens"], body["prompt"]) == ("tiny", 1, "Hi")


def test_it_asks_for_the_model_and_by_the_path_that_are_given():
    engine = Engine(models="nonsense")
    assert engine.checked(replace(COMPLETION, model="m", path="/v1/chat/completions")).ok
    ((path, body),) = engine.asked
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert "prompt" not in body
    assert engine.checked().ok
    assert engine.asked[1][1]["model"] == "default"


@pytest.mark.parametrize(
    ("engine", "words", "busy"),
    [
        (Engine(500), "HTTP 500 in ", False),
        (Engine(404), "HTTP 404 in ", False),
        (Engine(429), "HTTP 429 in ", True),
        (Engine(503), "HTTP 503 in ", True),
        (Engine(200, {"choices": []}), "an answer without a completion in ", False),
        (Engine(200, ["no"]), "an answer without a completion in ", False),
    ],
)
def test_what_is_no_token_fails(engine: Engine, words: str, busy: bool):
    result = engine.checked()
    assert (result.ok, result.busy) == (False, busy)
    assert result.detail.startswith(words)


def test_an_engine_that_hangs_was_reached_and_is_busy():
    async def run() -> ProbeResult:
        async with raw_server(silent) as port:
            check = replace(COMPLETION, answer_within_s=0.3)
            return await probe(check, LOOPBACK, port, Patience())

    result = asyncio.run(run())
    assert (result.ok, result.busy, result.silent) == (False, True, False)
    assert result.detail == "no answer within 300 ms"


def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def context(_verify: bool, protocol: str = "") -> ssl.SSLContext:
        found = ssl.create_default_context(cafile=str(certificate))
        if protocol:
            found.set_alpn_protocols([protocol])
        return found

    monkeypatch.setattr(talks, "tls_context", context)


SECURE = replace(COMPLETION, tls=True, host="gpu.example")


def test_an_engine_over_tls_is_asked_by_its_name(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
):
    names: list[str | None] = []
    monkeypatch.setattr(tls, "sni_callback", lambda _socket, name, _context: names.append(name))
    engine = Engine()
    refused = engine.checked(SECURE, tls)
    assert not refused.ok
    assert refused.detail.startswith("TLS certificate not accepted: self-signed certificate")
    assert engine.checked(replace(SECURE, verify_tls=False), tls).ok
    trust(certificate, monkeypatch)
    result = engine.checked(SECURE, tls)
    assert result.ok, result
    assert result.detail.startswith("a token of tiny in ")
    assert "; its certificate expires in " in result.detail
    assert result.certificate_until is not None
    assert {*names} == {"gpu.example"}
    assert {*engine.hosts} == {"gpu.example"}
    assert not engine.checked(replace(SECURE, host="other.example"), tls).ok
    assert not engine.checked(SECURE).ok, "it does not speak TLS"


# -- gRPC


@pytest.fixture(scope="module")
def rpc() -> Iterator[int]:
    program = Path(__file__).with_name("grpc_server.py")
    with running("/usr/bin/python3", str(program)) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@pytest.mark.parametrize(
    ("service", "ok", "words"),
    [
        ("", True, "SERVING in "),
        ("chat.Chat", True, "SERVING in "),
        ("old.Chat", False, "NOT_SERVING in "),
        ("no.Chat", False, "it knows no service 'no.Chat' in "),
    ],
)
def test_a_grpc_server_says_whether_it_serves(rpc: int, service: str, ok: bool, words: str):
    result = ask(replace(GRPC, grpc_service=service), rpc)
    assert (result.ok, result.detail.startswith(words)) == (ok, True), result


def test_a_grpc_server_over_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch):
    program = Path(__file__).with_name("grpc_server.py")
    check = replace(GRPC, tls=True, host="gpu.example", grpc_service="chat.Chat")
    with running("/usr/bin/python3", str(program), str(certificate)) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        refused = ask(check, port)
        assert not refused.ok
        assert refused.detail.startswith("TLS certificate not accepted: self-signed certificate")
        assert ask(replace(check, verify_tls=False), port).detail.startswith("SERVING in ")
        plain = ask(replace(check, tls=False), port)
        assert not plain.ok
        trust(certificate, monkeypatch)
        result = ask(check, port)
        assert result.ok, result
        assert "; its certificate expires in " in result.detail
        assert result.certificate_until is not None


def test_a_grpc_server_without_a_health_service_says_so():
    program = Path(__file__).with_name("grpc_server.py")
    with running("/usr/bin/python3", str(program), "no-health") as process:
        assert process.stdout is not None
        result = ask(GRPC, int(process.stdout.readline()))
    assert (result.ok, "has no health service" in result.detail) == (False, True)


def test_what_does_not_speak_http2_is_no_grpc_server():
    async def run() -> ProbeResult:
        async with raw_server(babbling) as port:
            return await probe(GRPC, LOOPBACK, port, Patience())

    result = asyncio.run(run())
    assert not result.ok
    assert result.detail.startswith("the answer is not HTTP/2")


def test_a_grpc_port_where_nobody_listens_refuses():
    result = ask(GRPC, free_port(socket.SOCK_STREAM))
    assert (result.ok, result.detail) == (False, "connection refused")


@pytest.mark.parametrize("name", ["", "a", "x" * 127, "y" * 200])
def test_messages_of_grpc_health(name: str):
    message = request(name)
    length = int.from_bytes(message[1:5], "big")
    assert (message[0], length) == (0, len(message) - 5)
    assert message.endswith(name.encode())


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", "UNKNOWN"), (b"\0\0\0\0\0", "UNKNOWN"), (b"\0\0\0\0\2\x08\1", "SERVING"),
     (b"\0\0\0\0\2\x08\2", "NOT_SERVING"), (b"\0\0\0\0\1\x08", "UNKNOWN"),
     (b"\0\0\0\0\2\x08\x09", "an unknown status")],
)  # fmt: skip
def test_statuses_of_grpc_health(body: bytes, status: str):
    assert serving(body) == status


# -- UDP


class Echo(asyncio.DatagramProtocol):
    """Sends back what comes, behind ``got``."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert isinstance(self.transport, asyncio.DatagramTransport)
        self.transport.sendto(b"got " + data, addr)


def echoed(check: HealthCheck) -> ProbeResult:
    async def run() -> ProbeResult:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        try:
            port = transport.get_extra_info("sockname")[1]
            return await probe(check, LOOPBACK, port, Patience())
        finally:
            transport.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("send", "expect", "ok"),
    [("ping", "got ping", True), ("ping", "pong", False), ("hex:00ff", "hex:2000ff", True),
     ("", "got", True), ("ping", None, True)],
)  # fmt: skip
def test_a_reply_has_in_it_what_is_expected(send: str, expect: str | None, ok: bool):
    result = echoed(replace(UDP, send=send, expect=expect))
    assert result.ok is ok, result


def test_nobody_who_listens_refuses_a_datagram():
    port = free_port(socket.SOCK_DGRAM)
    for expect in (None, "pong"):
        result = ask(replace(UDP, expect=expect), port)
        assert (result.ok, result.detail) == (False, "connection refused")


def test_silence_passes_only_where_no_reply_is_expected():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        port = end.getsockname()[1]
        check = replace(UDP, timeout_s=0.3)
        silence = ask(check, port)
        assert (silence.ok, silence.vague, silence.detail) == (True, True, "nothing refuses it")
        result = ask(replace(check, expect="pong"), port)
    assert (result.ok, result.silent, result.detail) == (False, True, "no answer within 300 ms")


def test_payloads_are_text_or_hexadecimal():
    assert payload("é") == b"\xc3\xa9"
    assert payload("hex:00fF") == b"\x00\xff"


# -- DNS


@pytest.fixture(scope="module")
def resolver() -> Iterator[int]:
    command = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
               "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root", "--group=root",
               "--address=/gpu.test/192.0.2.7"]  # fmt: skip
    deadline = time.monotonic() + 60
    # It needs the port for TCP as well, and somebody else may take either before it does.
    while time.monotonic() < deadline:
        port = free_port(socket.SOCK_DGRAM)
        with running(*command, f"--port={port}") as process:
            while process.poll() is None and time.monotonic() < deadline:
                if ask(replace(DNS, timeout_s=1.0), port).ok:
                    yield port
                    return
                time.sleep(0.05)
    pytest.fail("dnsmasq does not answer")


def test_a_name_server_that_answers_is_well(resolver: int):
    result = ask(DNS, resolver)
    assert (result.ok, result.detail.startswith("NOERROR in ")) == (True, True), result


def test_a_name_server_that_refuses_or_does_not_know_is_not(resolver: int):
    result = ask(replace(DNS, query="elsewhere.example"), resolver)
    assert (result.ok, result.detail.split()[0]) == (False, "REFUSED"), result


def test_what_is_no_name_server_is_not():
    result = echoed(DNS)
    assert not result.ok
    assert result.detail.startswith("the answer is not DNS")


# -- commands


def test_a_command_tells_by_its_exit_status_and_its_first_line(tmp_path: Path):
    check = tmp_path / "check"
    check.write_text(
        '#!/bin/sh\necho "$STEELYARD_ADDRESS $STEELYARD_PORT $1"\necho more\nexit $2\n'
    )
    check.chmod(0o755)
    result = ask(replace(EXEC, command=(str(check), "word", "0")), 8000)
    assert result.ok
    assert result.detail.startswith("exit status 0 in ")
    assert result.detail.endswith(": 127.0.0.1 8000 word")
    result = ask(replace(EXEC, command=(str(check), "word", "3")), 8000)
    assert (result.ok, result.silent) == (False, False)
    assert result.detail.startswith("exit status 3 in ")


def test_a_command_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path):
    mark = tmp_path / "pid"
    command = ("/bin/sh", "-c", f"sleep 600 & echo $! > {mark}; wait")
    started, timeout_s = "", 0.5
    while not started and timeout_s < 60:  # a slow host needs more
        timeout_s *= 2
        result = ask(replace(EXEC, command=command, timeout_s=timeout_s), 8000)
        words = f"no answer within {timeout_s:g} s"
        assert (result.ok, result.silent, result.detail) == (False, False, words)
        started = mark.read_text().strip() if mark.exists() else ""
    assert started
    deadline = time.monotonic() + 60
    while Path(f"/proc/{started}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_command_that_leaves_something_behind_is_over_when_it_exits(tmp_path: Path):
    mark = tmp_path / "pid"
    command = ("/bin/sh", "-c", f"sleep 600 & echo $! > {mark}; exit 0")
    result = ask(replace(EXEC, command=command, timeout_s=60.0), 8000)
    assert (result.ok, result.detail.startswith("exit status 0 in ")) == (True, True), result


def test_a_command_that_writes_much_is_not_held_up():
    command = ("/bin/sh", "-c", "echo first; head -c 2000000 /dev/zero")
    result = ask(replace(EXEC, command=command, timeout_s=60.0), 8000)
    assert (result.ok, result.detail.endswith(": first")) == (True, True), result


def test_a_command_runs_as_the_user_that_is_named_and_is_ended(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("root's")
    command = ("/bin/sh", "-c", f"echo $(id -un) $(id -Gn) $HOME; cat {secret}")
    result = ask(replace(EXEC, command=command, run_as="nobody"), 8000)
    assert not result.ok
    assert result.detail.endswith(": nobody nogroup /nonexistent")
    # The check returns when the command has ended, which this one does not do by itself.
    endless = replace(EXEC, command=("/bin/sleep", "infinity"), run_as="nobody", timeout_s=0.5)
    assert not ask(endless, 8000).ok
    unknown = ask(replace(EXEC, command=("/bin/true",), run_as="no-such-user"), 8000)
    assert unknown.detail == "/bin/true as no-such-user: this host has no user 'no-such-user'"


def test_a_command_that_is_not_there_says_so():
    result = ask(replace(EXEC, command=("/no/such/check",)), 8000)
    assert (result.ok, result.detail) == (False, "/no/such/check: No such file or directory")


# -- tcp with something to say


def talked(said: bytes, check: HealthCheck) -> tuple[ProbeResult, bytes]:
    """A check of a server that waits for a line and says something; with what it heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100) if check.send else b"")
        for piece in (said[:3], said[3:]):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def run() -> ProbeResult:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await probe(check, LOOPBACK, port, Patience())

    result = asyncio.run(run())
    return result, heard[0]


TCP = HealthCheck(CheckKind.TCP, timeout_s=20.0)
PING = replace(TCP, send="PING\r\n", expect="+PONG")


@pytest.mark.parametrize(
    ("said", "check", "ok", "words"),
    [
        (b"+PONG\r\n", PING, True, "'+PONG' in "),
        (b"-LOADING\r\n", PING, False, "10 bytes in "),
        (b"", PING, False, "0 bytes in "),
        (b"220 mail ESMTP\r\n", replace(TCP, expect="hex:323230"), True, "'hex:323230' in "),
        (b"x" * (1 << 19), PING, False, " bytes in "),
        (b"whatever", replace(TCP, send="hello"), True, "connected in "),
    ],
)
def test_what_is_expected_on_a_connection_must_come(
    said: bytes, check: HealthCheck, ok: bool, words: str
) -> None:
    result, heard = talked(said, check)
    assert result.ok is ok, result
    assert words in result.detail
    assert heard == payload(check.send)
    assert ok or result.detail.endswith(f", without {check.expect!r}")


def test_a_server_that_takes_the_connection_and_says_nothing_is_down_and_not_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        check = replace(PING, timeout_s=0.2)
        result = ask(check, mute.getsockname()[1])
    assert not result.ok
    assert not result.silent, "its host lives"
    assert result.detail.startswith("no answer within 200 ms")
