"""The load of a row, with this machine as client and a server of the lab as balancer."""

from __future__ import annotations

import itertools
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vagrant.smoke import bounds, load
from vagrant.smoke.bounds import Pace
from vagrant.smoke.children import VagrantError
from vagrant.smoke.load import Load

ROOT = Path(__file__).resolve().parents[3]


class Here:
    """Runs what is for the client on this machine."""

    def command(self, _machine: str, *words: str, root: bool) -> list[str]:
        assert not root
        return [sys.executable if word == "python3" else word for word in words]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(load, "TREE", str(ROOT))
    monkeypatch.setattr(bounds, "POLL_S", 0.05)
    return SimpleNamespace(ssh=Here(), client="client", scratch=tmp_path)


@pytest.fixture
def target() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lbctl.lab.server", "--name", "be1", "--host", "127.0.0.1"]
    with subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        yield f"127.0.0.1:{port}"
        server.terminate()


def test_the_load_tells_its_requests_held_connections_and_clock(machines: Any, target: str) -> None:
    with load.running(machines, "row", [target], Pace(50, 2, 0.2)) as running:
        before_s = running.now_s()
        running.await_requests(10)
        assert running.now_s() > before_s
        end_s = running.now_s()
    window = running.window(before_s, end_s)
    assert len(window.requests) >= 10
    assert {request.backend for request in window.requests} == {"be1"}
    assert window.failed == []
    assert [event.event for event in running.held()] == ["opened", "opened"]
    assert all(before_s <= request.started_s < end_s for request in window.requests)


def test_a_generator_that_dies_is_noticed(machines: Any, target: str) -> None:
    running = Load(machines, "row")
    running.start([target], Pace(50, 0, 1.0))
    assert running._process is not None
    running._process.kill()
    with pytest.raises(VagrantError, match="ended"):
        running.await_requests(1000)
    running.stop()
    with pytest.raises(VagrantError, match="ended"):
        running.window(0.0, time.monotonic())


def test_what_hinders_the_load_is_named(machines: Any) -> None:
    with (
        pytest.raises(VagrantError, match="not ADDRESS:PORT"),
        load.running(machines, "row", ["nowhere"], bounds.EMULATED),
    ):
        pass


def test_outages_do_not_stop_the_count() -> None:
    words = load.generator_words(["10.77.1.100:80"], Pace(12.0, 3, 1.0))
    options = dict(itertools.pairwise(words))
    assert float(options["--workers"]) >= 12 * bounds.REQUEST_TIMEOUT_S
    assert shlex.join(words).endswith("--keep-alive 3 --every 1 --timeout 15")
