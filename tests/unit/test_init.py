"""``lb-agent init``: what it finds by itself, what it asks, and what it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import init as module
from agent.config.advice import HostFacts
from agent.config.draft import Seen, Server
from agent.config.load import load_file
from agent.main import cli
from agent.model import CheckKind, Forward, TelemetryKind

PAGES = {"/metrics": b"# TYPE vllm:num_requests_running gauge\n", "/health": b""}


class Engine(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in PAGES else 404)
        self.end_headers()
        self.wfile.write(PAGES.get(self.path, b""))

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def engine() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    here = HostFacts(frozenset({"eth0", "lo"}), frozenset({ip_address("10.0.0.1")}), frozenset())
    monkeypatch.setattr(module, "look", lambda: here)
    monkeypatch.setattr(module, "default_interface", lambda: "eth0")
    monkeypatch.setattr(module, "neighbours", tuple)
    for limit in ("CONNECT_S", "ANSWER_S"):
        monkeypatch.setattr(module, limit, 60.0)  # whoever is asked here answers


def run(path: Path, *options: str, typed: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["init", "-o", str(path), *options], input=typed)
    return done.exit_code, done.output


def test_an_engine_is_found_by_its_port_and_pages(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "agent.yaml"
    with engine() as port:
        code, said = run(path, "--yes", "--vip", "10.0.0.10", "--server", f"a=127.0.0.1:{port}",
                         "--port", "8000", "--forward", "fullnat")  # fmt: skip
        assert asyncio.run(module.probe_all([Server(ip_address("127.0.0.1"), port)])) == [
            Seen(port, True, TelemetryKind.VLLM)
        ]
    assert code == 1, "127.0.0.1 is no server's address"
    assert f"port {port} answers: vllm, /health is good" in said
    assert not path.exists()


def test_with_options_it_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def seen(servers: object) -> list[Seen]:
        return [Seen(8000, True, TelemetryKind.SGLANG)] * 2

    monkeypatch.setattr(module, "probe_all", seen)
    path = tmp_path / "agent.yaml"
    code, said = run(path, "--yes", "--vip", "10.0.0.10", "--server", "10.0.0.21", "--server",
                     "big=10.0.0.22")  # fmt: skip
    assert code == 0, said
    (chat,) = load_file(path).services
    assert (chat.key.port, chat.forward) == (8000, Forward.FULLNAT)
    assert (chat.health.kind, chat.telemetry.kind) == (CheckKind.HTTP, TelemetryKind.SGLANG)
    assert [backend.name for backend in chat.backends] == ["gpu-1", "big"]
    assert path.stat().st_mode & 0o777 == 0o640
    assert "curl http://10.0.0.10:8000/" in said


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("mine")
    code, said = run(path, "--yes", "--vip", "10.0.0.10", "--server", "10.0.0.21")
    assert code == 1
    assert "there is a configuration already" in said
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--server", "10.0.0.21"], "nothing can be proposed for VIP\n  remedy: give --vip"),
        (["--vip", "10.0.0.10"], "nothing can be proposed for servers\n  remedy: give --server"),
        (["--vip", "x", "--server", "10.0.0.21"], "'x' is not an IP address"),
        (["--vip", "10.0.0.10", "--server", "gpu.example.org"], "is not a server"),
        (["--vip", "10.0.0.10", "--server", "10.0.0.21:0"], "'0' is not a port"),
        (["--vip", "10.0.0.1", "--server", "10.0.0.21"], "is an address of this host itself"),
        (["--vip", "10.0.0.10", "--server", "10.0.0.21", "--health", "x"], "neither tcp nor a"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    async def nothing(servers: list[Server]) -> list[Seen]:
        return [Seen() for _ in servers]

    monkeypatch.setattr(module, "probe_all", nothing)
    path = tmp_path / "agent.yaml"
    code, said = run(path, "--yes", *options)
    assert code == 1
    assert says in said
    assert not path.exists()


def test_a_wrong_answer_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(servers: list[Server]) -> list[Seen]:
        return [Seen() for _ in servers]

    monkeypatch.setattr(module, "probe_all", nothing)
    path = tmp_path / "agent.yaml"
    typed = ["eth9", "", "10.0.0.300", "10.0.0.10", "nobody", "10.0.0.21 [2001:db8::1]:80",
             "70000", "", "magic", "", "ping", "/up"]  # fmt: skip
    code, said = run(path, typed="\n".join(typed) + "\n")
    assert code == 0, said
    for wrong in ("eth9", "10.0.0.300", "nobody", "70000", "magic", "ping"):
        assert f"Error: '{wrong}'" in said
    assert "it has to be a tunnel" in said
    (chat,) = load_file(path).services
    assert (chat.forward, chat.health.path) == (Forward.IPIP, "/up")
    assert len(chat.backends) == 2


@pytest.mark.parametrize(
    ("words", "server"),
    [
        ("10.0.0.21", Server(ip_address("10.0.0.21"))),
        ("10.0.0.21:8000", Server(ip_address("10.0.0.21"), 8000)),
        ("a=10.0.0.21:8000", Server(ip_address("10.0.0.21"), 8000, "a")),
        ("2001:db8::21", Server(ip_address("2001:db8::21"))),
        ("a=2001:db8::21", Server(ip_address("2001:db8::21"), None, "a")),
        ("[2001:db8::21]:8000", Server(ip_address("2001:db8::21"), 8000)),
        ("a=[2001:db8::21]", Server(ip_address("2001:db8::21"), None, "a")),
    ],
)
def test_servers_are_read_as_people_write_them(words: str, server: Server) -> None:
    assert module._server(words) == server
