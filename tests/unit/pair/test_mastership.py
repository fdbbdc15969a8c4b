"""What the agent tells the failover process, and when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from structlog.testing import capture_logs

from agent.failover.model import Failover, Instance, Role
from agent.failover.status import FailoverStatus, to_json
from agent.pair import mastership
from agent.pair.agentstatus import AgentStatus
from agent.pair.mastership import Mastership
from tests.unit.failover.samples import MASTER, STATUS

PATIENCE_S = 60.0


class Told(Mastership):
    """A failover process that only hears, as long as it is not ``busy``."""

    def __init__(self) -> None:
        self.word = AgentStatus(True, "", {"web": (2, 2)})
        super().__init__(lambda: self.word)
        self.heard: list[object] = []
        self.free = asyncio.Event()
        self.free.set()
        self.aim(Failover(instances=(Instance("web"),)), Path("/none"))

    async def order(self, request) -> FailoverStatus:
        self.heard.append(request["services"])
        await self.free.wait()
        return STATUS

    async def hears(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.heard) < number:  # noqa: ASYNC110 (there is nothing to wait for)
                await asyncio.sleep(0.001)


def run(work) -> None:
    async def main() -> None:
        told = Told()
        task = asyncio.create_task(told.run())
        try:
            await work(told)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_the_heartbeat_goes_on_while_one_pass_follows_the_other(monkeypatch) -> None:
    monkeypatch.setattr(mastership, "AGENT_HEARTBEAT_S", 0.05)

    async def work(told: Told) -> None:
        async def passes() -> None:
            while True:
                told.wake()
                await asyncio.sleep(0.002)

        busy = asyncio.create_task(passes())
        await told.hears(3)
        busy.cancel()

    run(work)


def test_a_change_while_the_process_is_told_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mastership, "AGENT_HEARTBEAT_S", 10 * PATIENCE_S)

    async def work(told: Told) -> None:
        told.free.clear()
        await told.hears(1)
        told.word = AgentStatus(True, "", {"web": (0, 2)})
        told.wake()
        told.free.set()
        await told.hears(2)
        assert told.heard == [{"web": [2, 2]}, {"web": [0, 2]}]

    run(work)


def test_passes_that_change_nothing_are_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mastership, "AGENT_HEARTBEAT_S", 10 * PATIENCE_S)

    async def work(told: Told) -> None:
        await told.hears(1)
        for _ in range(20):
            told.wake()
            await asyncio.sleep(0)
        assert len(told.heard) == 1

    run(work)


def test_a_process_that_leaves_is_heard_of_once() -> None:
    """Its answers say so until it is gone."""

    async def answer(_: object, request: dict[str, object], __: float) -> dict[str, object]:
        asked.append(request["do"])
        return to_json(replace(STATUS, pid=pid, leaving=True))

    async def work() -> None:
        nonlocal pid
        told = Mastership(lambda: AgentStatus(True, "", {}))
        told.aim(Failover(instances=(Instance("web"),)), Path("/none"))
        await told.send_heartbeat()
        assert told.leaving.is_set()
        told.leaving.clear()
        assert not told.excused.is_set()
        await told.excuse()
        assert (asked, told.leaving.is_set()) == (["agent", "leave"], False)
        assert told.excused.is_set()
        pid = 2  # the next one, much later
        await told.send_heartbeat()
        assert told.leaving.is_set()
        assert not told.excused.is_set(), "that was the one before"

    asked: list[object] = []
    pid = 1
    with mock.patch.object(mastership, "ask_async", answer):
        asyncio.run(work())


def test_other_roles_are_said_also_those_of_a_process_that_was_away() -> None:
    """The journal of the agent has them; the first that are heard of are no news."""

    async def answer(_: object, __: object, ___: float) -> dict[str, object]:
        if answers[0] is None:
            answers.pop(0)
            raise ConnectionRefusedError
        return to_json(replace(STATUS, routers=(replace(MASTER, role=answers.pop(0), why="so"),)))

    async def work() -> None:
        told = Mastership(lambda: AgentStatus(True, "", {}))
        told.aim(Failover(instances=(Instance("web"),)), Path("/none"))
        while answers:
            await told._send(AgentStatus(True, "", {}))

    answers = [Role.BACKUP, Role.BACKUP, Role.MASTER, None, Role.FAULT, Role.BACKUP]
    with mock.patch.object(mastership, "ask_async", answer), capture_logs() as said:
        asyncio.run(work())
    lines = [line for line in said if line["event"] == "role"]
    assert [(line["log_level"], line["old"], line["new"]) for line in lines] == [
        ("warning", "backup", "master"),
        ("error", "master", "fault"),
        ("info", "fault", "backup"),
    ]
    assert {(line["router"], line["why"]) for line in lines} == {(MASTER.name, "so")}
