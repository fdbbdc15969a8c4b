"""A master stays master, and serves, whatever its agent does or whatever befalls that agent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.model import Scheduler
from lbctl.lab import processes
from tests.netns.failover.fated import STEPS
from tests.netns.failover.pair import Pair, pair
from tests.netns.site import wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

SWAPS = 200
RUSH_PER_S = 2000
HOLD_S = 1.0


@pytest.fixture(scope="module")
def here() -> Iterator[Pair]:
    name = f"st-master-{os.getpid()}"
    with pair(name=name, backends=3, scheduler=Scheduler.ROUND_ROBIN) as built:
        start_fated(built)
        yield built


def folder(here: Pair) -> Path:
    return here.lab.run_dir / "fate"


def start_fated(here: Pair) -> None:
    """In the place of lb1's agent."""
    site, node = here.at(here.first), here.first
    folder(here).mkdir(exist_ok=True)
    if site.agent_pid() is not None:
        site.stop_agent(signal.SIGTERM)
    command = [sys.executable, "-m", "tests.netns.failover.fated", str(folder(here))]
    command += ["run", "--config", str(here.lab.config_path(node))]
    processes.start(here.lab.run_dir, node.name, node.namespace, command)
    wait_until("the agent answers", site._answers)


def transitions(here: Pair) -> list[object]:
    return [
        [row["transitions_total"] for row in here.at(node).get("/v1/failover")["instances"]]
        for node in (here.first, here.second)
    ]


def reweigh(here: Pair) -> None:
    """A pass of lb1's agent; it has ended when this returns."""
    document = here.at(here.first).config()
    backend = document["services"][0]["backends"][0]
    backend["weight"] = 150 - backend["weight"]
    here.at(here.first).reload(document)


def test_no_swap_of_the_program_moves_the_vips_or_costs_a_connection(here: Pair) -> None:
    here.settle()
    here.set_instances(advert_interval="10ms")
    (folder(here) / "swap").touch()
    try:
        here.settle()
        before, ids = transitions(here), set[int]()
        with here.rush(RUSH_PER_S) as rushed:
            for _ in range(SWAPS):
                reweigh(here)
                status = here.at(here.first).get("/v1/status")["dataplane"]
                assert status["attached"]
                ids.add(status["program_id"])
        assert transitions(here) == before
        assert len(ids) == 2
    finally:
        (folder(here) / "swap").unlink()
        here.set_instances(advert_interval="100ms")
    assert rushed.started > 0
    assert not rushed.failed, (len(rushed.failed), rushed.failed[:3])


@contextlib.contextmanager
def handover(here: Pair) -> Iterator[None]:
    """As an operator begins it, who has to see that the agent does not answer."""
    program = processes.program("lbctl", "lbctl.main")
    command = [*program, "--socket", str(here.lab.socket(here.first)), "failover", "handover"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def has_met(here: Pair, pid: int, number: signal.Signals) -> bool:
    """Whether the agent has stopped or ended."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == ("T" if number is signal.SIGSTOP else "Z")
    return number is signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("step", STEPS)
def test_an_agent_that_dies_or_is_stopped_in_a_handover_holds_nobody_for_long(
    here: Pair, step: str, number: signal.Signals
) -> None:
    here.settle()
    site = here.at(here.first)
    pid = site.agent_pid()
    assert pid is not None
    (folder(here) / "fate").write_text(f"{step} {number.name}")
    try:
        with here.rush(500) as rushed:
            begun_s = time.monotonic()
            with handover(here):
                wait_until("it meets its fate", lambda: has_met(here, pid, number))
                met_s = time.monotonic()
                time.sleep(HOLD_S + 2.0)  # of new connections that must not fail
        outside = rushed.failed_outside(begun_s, met_s + HOLD_S)
        assert rushed.started > 0
        assert not outside, (len(outside), len(rushed.failed), outside[:3])
    finally:
        if number is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        else:
            wait_until("the agent has ended", lambda: site.agent_pid() is None)
            start_fated(here)
        wait_until("nothing is moved any more", lambda: released(here))


def released(here: Pair) -> bool:
    with contextlib.suppress(AssertionError):  # a move is under way
        here.lbctl(here.first, "failover", "release")
        return True
    return False
