"""The two ports: HTTP for scrapes, one line for agent checks; and the command."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import aiohttp
import pytest
from click.testing import CliRunner

from agent.errors import ListenError
from agent.guarded import MOST_OF_A_SOURCE
from agent.main import cli
from agent.node.agentcheck import MOST_CONNECTIONS, AgentCheck
from agent.node.http import Pages

HERE = "127.0.0.1"
NO_LISTEN = "is not ADDRESS:PORT, as in 127.0.0.1:9118"


async def ask(port, send=b""):
    reader, writer = await asyncio.open_connection(HERE, port)
    writer.write(send)
    try:
        return await asyncio.wait_for(reader.read(), 120)
    finally:
        writer.close()


def with_check(work, line="up 75%\n", **more):
    async def run():
        server = AgentCheck(lambda: line, **more)
        port = await server.start(HERE, 0)
        try:
            return await work(port)
        finally:
            await server.stop()

    return asyncio.run(run())


def with_pages(work, health=(True, "up 100%")):
    async def run():
        pages = Pages(
            lambda engine: f"a {'+'.join(engine)}\n".encode(),
            "text/plain; version=0.0.4",
            lambda engine: health,
        )
        port = await pages.start(HERE, 0)
        try:
            return await work(port)
        finally:
            await pages.stop()

    return asyncio.run(run())


async def get(port, path):
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
        session.get(f"http://{HERE}:{port}{path}") as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.text()


def test_who_connects_is_told_one_line():
    assert with_check(ask) == b"up 75%\n"


@pytest.mark.parametrize("sent", [b"what?\n", b"x" * 300_000])
def test_what_a_client_says_does_not_cost_it_its_line(sent):
    assert with_check(lambda port: ask(port, sent)) == b"up 75%\n"


def test_clients_that_do_not_leave_are_few():
    async def work(port):
        idle = [await asyncio.open_connection(HERE, port) for _ in range(MOST_CONNECTIONS)]
        for reader, _ in idle:
            await asyncio.wait_for(reader.readline(), 120)
        reader, late = await asyncio.open_connection(HERE, port)
        refused = await all_of(reader)
        for _, writer in (*idle, (reader, late)):
            writer.close()
        return refused

    assert with_check(work, patience_s=60) == b""


def test_a_client_that_does_not_leave_is_cut_off():
    async def work(port):
        reader, writer = await asyncio.open_connection(HERE, port)
        writer.write(b"a")
        told = await all_of(reader)
        while not writer.transport.is_closing():  # until its own half is reset, too
            writer.write(b"a")
            await asyncio.sleep(0)
        return told

    assert with_check(work, patience_s=0.05) == b"up 75%\n"


async def all_of(reader):
    try:
        return await asyncio.wait_for(reader.read(), 120)
    except ConnectionResetError:
        return b""


def test_metrics_and_health():
    assert with_pages(lambda port: get(port, "/metrics")) == (
        200,
        "text/plain; version=0.0.4",
        "a \n",
    )
    status, _, text = with_pages(lambda port: get(port, "/health"))
    assert (status, text) == (200, "up 100%\n")


def test_the_gpus_of_one_engine():
    assert with_pages(lambda port: get(port, "/metrics?gpu=0,GPU-a&gpu=2"))[2] == "a 0+GPU-a+2\n"


@pytest.mark.parametrize(
    "query", ["gpus=1", "gpu=" + "x" * 65, "gpu=" + ",".join(str(n) for n in range(65))]
)
def test_other_questions_are_refused(query):
    assert with_pages(lambda port: get(port, f"/metrics?{query}"))[0] == 400


def test_health_says_what_is_wrong():
    status, _, text = with_pages(lambda port: get(port, "/health"), health=(False, "down # x"))
    assert (status, text) == (503, "down # x\n")


def test_idle_http_connections_are_few():
    async def work(port):
        idle = [await asyncio.open_connection(HERE, port) for _ in range(MOST_OF_A_SOURCE)]
        reader, writer = await asyncio.open_connection(HERE, port)
        refused = await all_of(reader)
        for _, other in (*idle, (reader, writer)):
            other.close()
        return refused

    assert with_pages(work) == b""


def test_a_port_that_is_taken_is_an_error_with_a_remedy():
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match="agent checks"):
            asyncio.run(AgentCheck(lambda: "").start(HERE, port))
        with pytest.raises(ListenError, match="scrapes"):
            asyncio.run(Pages(lambda _: b"", "", lambda _: (True, "")).start(HERE, port))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "somewhere:1"], f"'somewhere:1' {NO_LISTEN}"),
        (["--listen", "x"], f"'x' {NO_LISTEN}"),
        (["--listen", "127.0.0.1"], f"'127.0.0.1' {NO_LISTEN}"),
        (["--listen", "127.0.0.1:"], f"'127.0.0.1:' {NO_LISTEN}"),
        (["--listen", "[::1]"], f"'[::1]' {NO_LISTEN}"),
        (["--listen", "127.0.0.1:99999"], "'99999' is not a port"),
        (["--agent-check", "9119="], "no GPU is named"),
        (["--agent-check", "x"], "'x' is not a port"),
        (["--interval", "1h"], "not a duration from 100ms to 10s"),
    ],
)
def test_the_command_says_what_it_does_not_understand(arguments, message):
    result = CliRunner().invoke(cli, ["node", *arguments])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ([], ("0.0.0.0", 9118)),
        (["--listen", "127.0.0.1:9118"], ("127.0.0.1", 9118)),
        (["--listen", "[::1]:9118"], ("::1", 9118)),
    ],
)
def test_where_the_command_listens(arguments, where, monkeypatch):
    told = []

    async def run(settings):
        told.append((settings.host, settings.port))

    monkeypatch.setattr("agent.node.run.run", run)
    monkeypatch.setattr("agent.main.configure", lambda *_: None)
    assert CliRunner().invoke(cli, ["node", *arguments]).exit_code == 0
    assert told == [where]


def test_the_help_says_where_the_command_listens_as_it_is_written():
    result = CliRunner().invoke(cli, ["node", "--help"], terminal_width=200)
    assert "[default: 0.0.0.0:9118]" in result.output


def free_ports(count):
    taken = [socket.create_server((HERE, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


@contextlib.contextmanager
def running(folder, manager, page, check):
    """The command at these ports. What it says is in ``folder``, and beside a failure's text."""
    command = [sys.executable, "-m", "agent.main", "node", "--listen", f"{HERE}:{page}"]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--agent-check", str(check), "--interval", "100ms"],
            env={**os.environ, "NOTIFY_SOCKET": manager.getsockname()},
            stderr=stderr,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        print((folder / "stderr").read_text())


def is_ready(process, manager):
    """Wait until it says that it is ready; False: it has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in manager.recv(4096):
                return True
        assert time.monotonic() < deadline
    return False


def test_the_whole_command(tmp_path):
    """READY, both ports answer on a host with or without GPUs, SIGTERM ends it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(0.2)
        for _ in range(5):  # a port that is free now may be another's when it is taken
            page, check = free_ports(2)
            with running(tmp_path, manager, page, check) as process:
                if is_ready(process, manager):
                    answers_and_ends(process, page, check)
                    assert b"STOPPING=1" in b"".join(all_said(manager))
                    return
            assert "cannot listen" in (tmp_path / "stderr").read_text()
    pytest.fail("it does not begin")


def answers_and_ends(process, page, check):
    status, _, text = asyncio.run(get(page, "/metrics"))
    assert status == 200
    assert "steelyard_node_memory_total_bytes" in text
    assert asyncio.run(ask(check)).endswith(b"\n")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def all_said(manager):
    """What a process that has ended has said, and nobody has read."""
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            yield manager.recv(4096)
