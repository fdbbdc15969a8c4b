"""An instance without elections: when its VIPs come on, and when they go."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.failover.fitness import Judgement
from agent.failover.model import Method, Mode, Role
from agent.failover.process import announced as module
from agent.failover.process.announced import Announced
from agent.failover.vrrp.states import Fitness
from tests.unit.failover.process.fakes import INSTANCE, ROUTER

ANYCAST = replace(ROUTER, instance=replace(INSTANCE, method=Method.ANNOUNCE), interface="lo")
FIT = Judgement(Fitness(100), ())
WAITS = replace(FIT, waits_for="the flows of 10.0.0.2 are not known")
UNFIT = replace(WAITS, fitness=Fitness(100, "service web has no backend up"))


class Vips:
    """Instead of ``lo``."""

    problems = ()

    def __init__(self, router: object) -> None:
        self.on = True  # as a former process may have left them
        self.read, self.write = os.pipe()

    def fileno(self) -> int:
        return self.read

    def take(self) -> None:
        self.on = True

    def drop(self) -> None:
        self.on = False

    def again(self, in_thread: object) -> None:
        pass

    def close(self) -> None:
        self.on = False
        os.close(self.read)
        os.close(self.write)


def run(
    monkeypatch: pytest.MonkeyPatch,
    judgement: Judgement,
    work: Callable[[Announced, Any], None],
    *,
    inherited: bool = False,
    mode: Mode = Mode.NORMAL,
) -> None:
    async def started() -> None:
        member = Announced(ANYCAST, mode=mode)
        member.start(judgement, inherited=inherited)
        work(member, member._holding)
        member.stop()

    monkeypatch.setattr(module, "Holding", Vips)
    asyncio.run(started())


def test_a_node_that_comes_back_waits_for_flows_and_backends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(member: Announced, vips: Vips) -> None:
        assert (member.role, vips.on) == (Role.BACKUP, False)
        assert member.status().why.endswith("the flows of 10.0.0.2 are not known")
        member.observe(FIT)
        assert (member.role, vips.on) == (Role.MASTER, True)
        member.observe(UNFIT)
        assert (member.role, vips.on) == (Role.FAULT, False)
        member.observe(WAITS)
        assert (member.role, vips.on) == (Role.BACKUP, False), "the first backend is not enough"
        member.observe(FIT)
        assert (member.role, vips.on) == (Role.MASTER, True)

    run(monkeypatch, WAITS, work)


def test_who_serves_goes_on_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have died, and then it is alone."""

    def work(member: Announced, vips: Vips) -> None:
        member.observe(WAITS)
        assert (member.role, vips.on) == (Role.MASTER, True)

    run(monkeypatch, FIT, work)


def test_a_process_that_was_killed_goes_on_as_if_it_had_not_been_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(member: Announced, vips: Vips) -> None:
        assert (member.role, vips.on) == (Role.MASTER, True)

    run(monkeypatch, WAITS, work, inherited=True)
    with pytest.raises(AssertionError):
        run(monkeypatch, UNFIT, work, inherited=True)


def test_who_was_handed_over_waits_when_it_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(member: Announced, vips: Vips) -> None:
        assert (member.role, vips.on) == (Role.BACKUP, False)
        member.set_mode(Mode.NORMAL)
        assert (member.role, vips.on) == (Role.BACKUP, False)
        member.observe(FIT)
        assert (member.role, vips.on) == (Role.MASTER, True)
        member.set_mode(Mode.HANDED_OVER)
        member.observe(WAITS)
        member.set_mode(Mode.NORMAL)
        assert (member.role, vips.on) == (Role.BACKUP, False)

    run(monkeypatch, WAITS, work, mode=Mode.HANDED_OVER)
