"""``lbctl trace`` on real traffic: a connection from pick to close, over swaps and restarts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.dataplane import abi, libbpf, pins
from lbctl.lab import processes
from tests.netns.site import Site, site, wait_until

LATE_US = 50_000  # what comes before that is not taken for an answer


@pytest.fixture(scope="module")
def lab() -> Iterator[Site]:
    with site(name="st-trace", backends=2) as built:
        yield built


@dataclass
class Following:
    """A running ``lbctl trace -o json``."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        whole, _, _ = self.out.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def said(self, text: str) -> bool:
        return text in self.err.read_text()


@contextlib.contextmanager
def following(lab: Site, folder: Path, *arguments: str) -> Iterator[Following]:
    """Follow while the block runs."""
    command = [
        sys.executable,
        "-m",
        "lbctl.main",
        "--socket",
        str(lab.lab.socket(lab.balancer)),
        "trace",
    ]
    out, err = folder / "out", folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "-o", "json", *arguments],
            stdout=stdout,
            stderr=stderr,
            env=processes.environment(lab.lab.run_dir),
        )
    followed = Following(process, out, err)
    try:
        wait_until("it follows", lambda: followed.said("following"))
        yield followed
    finally:
        process.terminate()
        process.wait(60)


def fetch(lab: Site, path: str = "/") -> str:
    """A request to the first service; the backend that answered."""
    vip = next(str(vip) for vip in lab.lab.vips if vip.version == 4)
    done = lab.run("client", "curl", "-sS", "--max-time", "60", f"http://{vip}{path}")
    assert done.returncode == 0, done.stderr
    return str(done.stdout).split()[0]


def asked_for(lab: Site) -> int:
    """``trace_control.kinds`` of the running data plane."""
    fd = libbpf.object_get(pins.pins_of(str(lab.config()["name"])).table("trace"))
    try:
        ((_, value),) = libbpf.map_items(fd, 4, abi.TRACE_CONTROL.itemsize)
    finally:
        os.close(fd)
    return int.from_bytes(value[:4], sys.byteorder)


def test_a_connection_is_told_from_pick_to_close(lab: Site, tmp_path: Path) -> None:
    with following(lab, tmp_path, "service", "web", "and", "tcp") as trace:
        begun = time.monotonic()
        backend = fetch(lab, "/slow?seconds=0.4&chunks=2")  # the head at once, then it works
        wait_until("three events", lambda: len(trace.events) >= 3)
        most_us = 1e6 * (time.monotonic() - begun)
    pick, answer, close = trace.events
    assert [each["event"] for each in trace.events] == ["pick", "answer", "close"]
    assert {each["backend"] for each in trace.events} == {backend}
    assert {each["client_port"] for each in trace.events} == {pick["client_port"]}
    assert 40 < answer["waited_bytes"] < 400  # curl's request
    # A head that a busy server sends later than that is taken for the answer.
    assert LATE_US <= answer["waited_us"] <= most_us
    assert close["tcp_flags"] == "F."
    assert trace.process.returncode == 0
    assert trace.said("3 events, 0 lost")


def test_a_swap_and_restarts_are_followed_over(lab: Site, tmp_path: Path) -> None:
    with following(lab, tmp_path, "--picks", "service", "web") as trace:
        fetch(lab)
        wait_until("the first pick", lambda: len(trace.events) == 1)
        program = lab.xdp_program_id()
        vip = next(str(vip) for vip in lab.lab.vips if vip.version == 4)
        any_port = {"vip": vip, "port": "any", "health": {"type": "none"}}
        lab.edit("service.add", service="other", values=any_port)
        assert lab.xdp_program_id() != program
        fetch(lab)
        wait_until("the pick of the new program", lambda: len(trace.events) == 2)
        for number in (signal.SIGKILL, signal.SIGTERM):
            lab.stop_agent(number)
            lab.start_agent()
            before = len(trace.events)
            wait_until("it follows again", lambda: asked_for(lab) != 0)
            fetch(lab)
            wait_until("the next pick", lambda before=before: len(trace.events) == before + 1)
    lab.edit("service.remove", service="other")


def test_a_killed_follower_is_noticed(lab: Site, tmp_path: Path) -> None:
    wait_until("nobody follows", lambda: asked_for(lab) == 0)
    with following(lab, tmp_path) as trace:
        assert asked_for(lab) != 0
        trace.process.kill()
        wait_until("nobody follows any more", lambda: asked_for(lab) == 0)


def test_an_agent_that_was_killed_while_followed_leaves_nothing_on(
    lab: Site, tmp_path: Path
) -> None:
    with following(lab, tmp_path) as trace:
        lab.stop_agent(signal.SIGKILL)
        trace.process.kill()
        trace.process.wait()
        assert asked_for(lab) != 0
        lab.start_agent()
    assert asked_for(lab) == 0
