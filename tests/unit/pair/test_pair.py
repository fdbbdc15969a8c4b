"""What a node does for the others and for its operator, when both want something of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.dataplane import abi
from agent.dataplane.constants import Features
from agent.dataplane.pins import Pins
from agent.errors import ConflictError
from agent.failover.model import Failover, FlowSync, Instance, Mode, Role
from agent.failover.status import FailoverStatus
from agent.failover.syncstatus import LinkState
from agent.failover.times import STRAGGLERS_S
from agent.model import Config
from agent.pair.agentstatus import AgentStatus
from agent.pair.pair import Pair
from agent.state.moves import MoveOrder, MoveVerb
from tests.unit.failover.samples import PEER
from tests.unit.pair.test_handover import Node, Others


class Heard(Node):
    async def order(self, request) -> FailoverStatus:
        if request["do"] != "mode":
            self.steps.append(request["do"])
        return await super().order(request)

    def stop(self) -> None:
        """The failover process is told to stop."""
        assert self.status is not None
        self.status = replace(self.status, leaving=True)
        self.excused.clear()
        self.leaving.set()

    async def send_heartbeat(self, word: object = None) -> None:
        self.steps.append("say")


def made(role: Role = Role.BACKUP) -> tuple[Pair, Heard]:
    tables = SimpleNamespace(
        settings=np.zeros(1, dtype=abi.SETTINGS), sync_count=np.zeros(1, dtype=abi.SYNC_COUNTERS)
    )
    dataplane = SimpleNamespace(now_jiffies=None, pins=Pins(Path("/none")), tables=tables)
    dataplane.features = Features()
    pair = Pair(dataplane, lambda: AgentStatus(True, "", {}), lambda: None, lambda address: None)
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
        (peer,), problem = pair.view().sync, pair.view().sync_problem
        assert (peer.address, peer.state, peer.why) == (PEER.address, LinkState.REFUSED, problem)
        assert "secret cannot be read" in problem
        assert not pair._whole_status().ready, "it does not know the flows of a master that is well"
        await pair.aim(Config("lb1", "eth0"))
        assert (pair.view().sync, pair.view().sync_problem) == ((), "")
        assert pair._whole_status().ready

    asyncio.run(run())


def test_a_move_that_lacked_flows_is_counted_and_shown() -> None:
    async def run() -> Pair:
        pair, node = made(Role.MASTER)
        pair._peers = Others(node, know=False)
        await pair.move(MoveOrder(MoveVerb.HANDOVER, force=True))
        return pair

    lacking = asyncio.run(run())._lacking
    assert lacking.total == 1
    assert "no other balancer is connected" in lacking.why


def test_an_instance_of_another_name_elsewhere_is_a_mismatch() -> None:
    pair, node = made()
    elsewhere = replace(PEER, instances=("edge",))
    pair._unkeyed = (elsewhere,)  # instead of a stream
    node.instances = {"web": Instance("web")}
    with capture_logs() as said:
        pair._whole_status()
        pair._whole_status()
    assert [(line["event"], line["instance"]) for line in said] == [("mismatch", "web")]
    process = pair.view().process
    assert process is not None
    (problem,) = process.routers[0].problems
    assert (problem.kind, "10.0.0.2 has edge" in problem.text) == ("name", True)
    pair._unkeyed = (replace(elsewhere, instances=("edge", "web")),)
    pair._whole_status()
    process = pair.view().process
    assert process is not None
    assert process.routers[0].problems == ()


@pytest.mark.parametrize("on", [True, False])
def test_what_flow_sync_says_of_a_master_goes_to_the_failover_process(on: bool) -> None:
    async def run() -> tuple[dict[str, float], bool]:
        pair, node = made(Role.BACKUP)
        sync = FlowSync(peers=(PEER.address,), witness=on)
        await pair.aim(Config("lb1", "eth0", failover=Failover(sync=sync)))
        node.become(Role.BACKUP)
        (own,) = pair._presence().routers or ()
        theirs = replace(own, role=Role.MASTER, well=True)
        pair._unkeyed = (replace(PEER, routers=(theirs,), routers_s=7.0),)
        node._wake.clear()
        pair._heard()
        return dict(pair._whole_status().vouchers), node._wake.is_set()

    assert asyncio.run(run()) == (({"web/ipv6": 7.0}, True) if on else ({}, False))


def test_a_process_that_does_not_answer_says_nothing_of_its_routers() -> None:
    pair, node = made()
    node.instances = {"web": Instance("web")}
    node.status_s = 5.0
    told = pair._presence()
    assert (told.instances, len(told.routers or ()), told.routers_s) == (("web",), 1, 5.0)
    node.status = None
    assert (pair._presence().instances, pair._presence().routers) == (("web",), None)


def test_a_node_is_ready_once_its_tables_have_what_its_checks_found() -> None:
    pair, _ = made()
    complete = False
    pair._complete = lambda: complete
    assert pair._whole_status().waits_for == "the tables lack backends that the checks have found"
    complete = True
    assert pair._whole_status().ready
    complete = False
    assert pair._whole_status().ready, "a pass is always under way somewhere"


def test_who_serves_without_the_flows_of_the_others_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, _ = made()
    pair._unkeyed = (replace(PEER, state=LinkState.CONNECTING),)
    now_s = 100.0
    clock = SimpleNamespace(monotonic=lambda: now_s, time=time.time)
    monkeypatch.setattr("agent.pair.pair.time", clock)
    word = pair._whole_status()
    assert (word.ready, "10.0.0.2 is not connected" in word.waits_for) == (False, True)
    now_s += 60.0
    with capture_logs() as said:
        assert pair._whole_status().ready
        assert pair._whole_status().ready
    assert [line["event"] for line in said] == ["ready without all flows: the wait is over"]


def test_a_node_in_fault_does_not_say_that_it_has_taken() -> None:
    pair, _ = made(Role.FAULT)
    with pytest.raises(ConflictError, match="cannot be master of web"):
        asyncio.run(pair._take(None))


@pytest.mark.parametrize("know", [True, False])
def test_a_failover_process_that_leaves_is_let_go_after_a_handover_or_without_one(
    know: bool,
) -> None:
    async def run() -> list[str]:
        pair, node = made(Role.MASTER)
        pair._peers = Others(node, know=know)
        task = asyncio.create_task(pair._leave())
        node.leaving.set()
        async with asyncio.timeout(120):
            while "leave" not in node.steps:  # noqa: ASYNC110 (there is nothing to wait for)
                await asyncio.sleep(0.001)
        task.cancel()
        return node.steps

    steps = asyncio.run(run())
    moves = [step for step in steps if step == "take" or step.startswith("mode")]
    assert moves == (["mode handed-over", "take"] if know else [])
    assert steps[-1] == "leave"


@pytest.mark.parametrize("together", [True, False])
def test_an_agent_that_ends_with_its_failover_process_hands_over_first(together: bool) -> None:
    """As when a container is stopped; alone, it need not: what it leaves goes on. Handshakes that
    have not ended yet are ended here, so it stays for them.
    """

    async def run() -> tuple[list[str], float]:
        pair, node = made(Role.MASTER)
        pair._peers = Others(node)
        connected = replace(PEER, state=LinkState.CONNECTED)
        pair._sync = SimpleNamespace(status=lambda: (connected,))
        if together:
            asyncio.get_running_loop().call_later(0.05, node.stop)
        task = asyncio.create_task(pair._leave())
        async with asyncio.timeout(60):
            await pair.say_goodbye()
        task.cancel()
        since_s = time.monotonic() - pair._handed_s  # long ago, if never
        return [step for step in node.steps if step != "status"], since_s

    steps, since_s = asyncio.run(run())
    assert since_s >= STRAGGLERS_S
    assert steps[-1] == "say"
    assert ("take" in steps) is together
    assert not together or steps.index("take") < steps.index("say")


def test_an_agent_that_ends_hands_nothing_over_any_more() -> None:
    async def run() -> list[bool]:
        pair, node = made()
        words: list[bool] = []

        async def send_heartbeat(_: object = None) -> None:
            words.append(pair._whole_status().hands_over)

        node.send_heartbeat = send_heartbeat
        pair._status = lambda: AgentStatus(True, "", {})
        connected = replace(PEER, state=LinkState.CONNECTED)
        pair._sync = SimpleNamespace(status=lambda: (connected,))
        await node.send_heartbeat()
        await pair.say_goodbye()
        return words

    assert asyncio.run(run()) == [True, False]
