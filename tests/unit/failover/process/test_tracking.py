"""What the priorities depend on, from what the kernel and the agent say."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.failover.fitness import AgentHeartbeat
from agent.failover.process import tracking as module
from agent.failover.process.links import Interface
from agent.failover.process.saved import Saved
from agent.failover.process.tracking import Tracking
from tests.unit.failover.process.fakes import ROUTER, UP, look

WITH_PROGRAM = replace(UP, program=7)
ATTACHED = AgentHeartbeat(True)


class Kernel:
    """Its interfaces, by name."""

    def __init__(self) -> None:
        self.interfaces: dict[str, Interface] = {"eth0": WITH_PROGRAM}
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def interface(self, name: str) -> Interface | None:
        return self.interfaces.get(name)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


def run(
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Tracking, Kernel], None],
    saved: Saved | None = None,
) -> None:
    async def started() -> None:
        kernel = Kernel()
        monkeypatch.setattr(module, "Links", lambda: kernel)
        tracking = Tracking(saved or Saved(), lambda: None)
        tracking.watch([ROUTER], ["eth0"])
        work(tracking, kernel)
        tracking.close()

    asyncio.run(started())


def fault(tracking: Tracking) -> str:
    return tracking.judge(ROUTER).fitness.fault


def test_a_node_whose_agent_was_never_heard_is_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tracking: Tracking, kernel: Kernel) -> None:
        assert "has not reported" in fault(tracking)
        assert tracking.heard(ATTACHED)
        assert not fault(tracking)
        assert not tracking.heard(ATTACHED)  # no news
        assert tracking.heard(AgentHeartbeat(False, "by hand"))
        assert "by hand" in fault(tracking)

    run(monkeypatch, work)


def test_a_node_that_is_not_ready_leaves_a_master_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tracking: Tracking, kernel: Kernel) -> None:
        assert not tracking.judge(ROUTER).may_preempt
        tracking.heard(ATTACHED)
        assert tracking.judge(ROUTER).may_preempt
        assert tracking.heard(replace(ATTACHED, ready=False, waits_for="the checks settle"))
        assert not tracking.judge(ROUTER).may_preempt
        assert tracking.judge(ROUTER).waits_for == "the checks settle"
        assert tracking.heard(replace(ATTACHED, ready=False)), "an agent of before"
        assert not tracking.judge(ROUTER).may_preempt

    run(monkeypatch, work)


def test_the_last_word_counts_over_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tracking: Tracking, kernel: Kernel) -> None:
        assert not fault(tracking)
        kernel.interfaces["eth0"] = UP
        assert look(tracking)
        assert "XDP program" in fault(tracking)

    run(monkeypatch, work, Saved({}, True, "", frozenset({"eth0"})))


def test_a_program_that_is_taken_off_is_missed_whatever_the_agent_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(tracking: Tracking, kernel: Kernel) -> None:
        tracking.heard(ATTACHED)
        assert tracking.to_save(Saved()).programs == {"eth0"}
        kernel.interfaces["eth0"] = UP
        look(tracking)
        tracking.heard(ATTACHED)
        assert "XDP program" in fault(tracking)
        kernel.interfaces["eth0"] = replace(UP, program=8)
        look(tracking)
        assert not fault(tracking)

    run(monkeypatch, work)


def test_an_agent_that_is_attached_by_tc_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tracking: Tracking, kernel: Kernel) -> None:
        kernel.interfaces["eth0"] = UP
        look(tracking)
        tracking.heard(ATTACHED)
        assert not fault(tracking)

    run(monkeypatch, work)


def test_one_that_attached_anew_may_be_attached_in_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(tracking: Tracking, kernel: Kernel) -> None:
        tracking.heard(ATTACHED)
        tracking.heard(AgentHeartbeat(False, "the hook is changed"))
        kernel.interfaces["eth0"] = UP
        look(tracking)
        tracking.heard(ATTACHED)
        assert not fault(tracking)

    run(monkeypatch, work)


def test_an_interface_that_is_not_there_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tracking: Tracking, kernel: Kernel) -> None:
        tracking.heard(ATTACHED)
        for found in (None, replace(WITH_PROGRAM, carrier=False), replace(WITH_PROGRAM, up=False)):
            kernel.interfaces.pop("eth0", None)
            if found is not None:
                kernel.interfaces["eth0"] = found
            assert look(tracking)
            assert "eth0" in fault(tracking)

    run(monkeypatch, work)
