"""What a node does for the others and for its operator, when both want something of it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.errors import ConflictError
from agent.failover.model import Failover, FlowSync, Mode, Role
from agent.failover.status import FailoverStatus
from agent.model import Config
from agent.pair.pair import Pair
from agent.state.moves import MoveOrder, MoveVerb
from tests.unit.failover.samples import PEER
from tests.unit.pair.test_handover import Node


class Heard(Node):
    async def order(self, request) -> FailoverStatus:
        if request["do"] != "mode":
            self.steps.append(request["do"])
        return await super().order(request)

    async def say(self, word: object = None) -> None:
        self.steps.append("say")


def made(role: Role = Role.BACKUP) -> tuple[Pair, Heard]:
    tables = SimpleNamespace(now_jiffies=None)  # nobody looks at them
    pair = Pair(tables, lambda: None, lambda: None, contextlib.nullcontext)
    node = Heard([], role)
    pair.mastership = node
    return pair, node


def test_one_move_at_a_time_and_nobody_waits_for_another() -> None:
    """Two nodes that want something of each other would wait for ever."""

    async def run() -> None:
        pair, node = made(Role.MASTER)
        async with pair._alone():
            with pytest.raises(ConflictError, match="already"):
                await pair.move(MoveOrder(MoveVerb.HANDOVER))
            with pytest.raises(ConflictError, match="already"):
                await pair._give(None, asker=PEER.address)
            assert (await pair.move(MoveOrder(MoveVerb.HANDOVER, dry_run=True))).text
            assert await pair._take(None) == "taken", "that is what the other one waits for"
        assert node.mode is Mode.NORMAL
        await pair.move(MoveOrder(MoveVerb.PROMOTE))
        assert node.mode is Mode.PROMOTED

    asyncio.run(run())


def test_who_takes_what_it_asked_for_becomes_what_its_operator_wants() -> None:
    async def run(given: str | None) -> list[str]:
        pair, node = made()
        with pair._as(Mode.PROMOTED, "web"):
            await pair._take(given)
        return node.steps

    assert asyncio.run(run("web")) == ["mode promoted", "say", "claim"]
    assert asyncio.run(run(None)) == ["say", "claim"], "another move of somebody else"


def test_without_the_secret_nobody_knows_the_flows(tmp_path: Path) -> None:
    async def run() -> None:
        pair, node = made(Role.MASTER)
        sync = FlowSync(peers=(PEER.address,))
        failover = Failover(key_file=tmp_path / "none", sync=sync)
        await pair.aim(Config("lb1", "eth0", failover=failover))
        node.become()
        with pytest.raises(ConflictError, match="does not have the flows"):
            await pair.move(MoveOrder(MoveVerb.HANDOVER))
        assert node.mode is Mode.NORMAL

    asyncio.run(run())


def test_a_node_in_fault_does_not_say_that_it_has_taken() -> None:
    pair, _ = made(Role.FAULT)
    with pytest.raises(ConflictError, match="cannot be master of web"):
        asyncio.run(pair._take(None))
