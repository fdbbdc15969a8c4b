"""The order of a planned move of the VIPs, and what is left when it fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from agent.errors import ConflictError, NotFoundError
from agent.failover.model import Mode, Role
from agent.failover.status import FailoverStatus
from agent.failover.syncstatus import FlushResult
from agent.pair import handover
from agent.pair.handover import hand_over, take_over
from agent.pair.mastership import Mastership
from tests.unit.failover.samples import MASTER, STATUS

ONE = replace(MASTER, interval_s=0.01, master_priority=100)


class Node(Mastership):
    """A failover process of one virtual router; with ``taker``, the peer takes what it is given."""

    def __init__(self, steps: list[str], role: Role = Role.MASTER, *, taker: bool = True) -> None:
        super().__init__(lambda: None)
        self.steps, self.taker = steps, taker
        self.become(role, Mode.NORMAL)

    def become(self, role: Role = Role.MASTER, mode: Mode | None = None) -> None:
        self.mode = mode or self.mode
        master = "fe80::2" if role is Role.BACKUP else "fe80::1"
        router = replace(ONE, role=role, master=master, mode=self.mode)
        self.status = replace(STATUS, routers=(router,))

    async def order(self, request) -> FailoverStatus:
        if request["do"] == "mode":
            self.become(self.routers[0].role, Mode(request["mode"]))
            self.steps.append(f"mode {self.mode.value}")
        return self.status

    def taken(self) -> None:
        if self.taker and self.mode is Mode.HANDED_OVER:
            self.become(Role.BACKUP)


class Others:
    """The peers: they have the flows if ``know``, and take or give when asked."""

    def __init__(
        self, node: Node, *, know: bool = True, gives: bool = True, answers: bool = True
    ) -> None:
        self.node, self.know, self.gives, self.answers = node, know, gives, answers

    async def flush(self, timeout_s: float) -> FlushResult:
        self.node.steps.append("flush")
        return FlushResult(self.know, "no other balancer is connected", 7)

    async def ask_take(self, instance: str | None) -> str:
        self.node.steps.append("take")
        if not self.answers:
            await asyncio.Event().wait()
        self.node.taken()
        return "taken"

    async def ask_give(self, instance: str | None) -> str:
        self.node.steps.append("give")
        if not self.gives:
            raise ConflictError("busy", where="peer", remedy="wait")
        return "handed over"


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(handover, "HANDSHAKE_S", 0.0)
    monkeypatch.setattr(handover, "HELD_S", 0.02)
    monkeypatch.setattr(handover, "LONGEST_TAKER_S", 0.05)
    monkeypatch.setattr(handover, "LATE_S", 0.0)


class Held:
    """New flows are held back; with ``stands`` false they have come in again meanwhile."""

    def __init__(self, steps: list[str], stands: bool) -> None:
        self.steps, self.stands = steps, stands

    def renew(self) -> bool:
        return self.stands


def holding(steps: list[str], stands: bool = True):
    @contextlib.contextmanager
    def hold() -> Iterator[Held]:
        steps.append("hold")
        try:
            yield Held(steps, stands)
        finally:
            steps.append("let go")

    return hold


def give(node: Node, others: Others | None, **how: bool):
    return asyncio.run(hand_over(node, others, holding(node.steps), None, **how))


def test_the_peer_has_the_flows_before_it_is_asked_and_takes_before_new_flows_go_on() -> None:
    node = Node([])
    moved = give(node, Others(node))
    assert node.steps == ["flush", "hold", "flush", "mode handed-over", "take", "let go", "flush"]
    assert moved.lacking == ""
    assert (moved.flows, node.mode) == (14, Mode.HANDED_OVER)


def test_one_that_gives_is_as_it_was_afterwards() -> None:
    node = Node([])
    give(node, Others(node), stay=False)
    assert node.steps[-2:] == ["flush", "mode normal"]


def test_nothing_is_given_away_without_the_flows() -> None:
    node = Node([])
    with pytest.raises(ConflictError, match="does not have the flows"):
        give(node, Others(node, know=False))
    assert node.steps == ["flush"], "and nobody's new flow waits for it"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Mode.NORMAL, Mode.NORMAL),
        (Mode.PROMOTED, Mode.NORMAL),  # the other one was asked last
        (Mode.HANDED_OVER, Mode.HANDED_OVER),  # as the operator wants it: somebody works on it
    ],
)
def test_one_that_gives_stays_behind_by_the_operators_word_alone(before, after) -> None:
    node = Node([])
    node.become(mode=before)
    give(node, Others(node), stay=False)
    assert node.mode is after


def test_a_failed_handover_leaves_a_promoted_node_promoted() -> None:
    node = Node([], taker=False)
    node.become(mode=Mode.PROMOTED)
    with pytest.raises(ConflictError, match="nobody took"):
        give(node, Others(node))
    assert node.mode is Mode.PROMOTED


def test_one_that_is_cancelled_is_as_it_was() -> None:
    """The stream that asked for it has ended."""
    node = Node([])
    others = Others(node, answers=False)

    async def run() -> None:
        work = asyncio.create_task(hand_over(node, others, holding(node.steps), None, stay=False))
        async with asyncio.timeout(120):
            while "take" not in node.steps:  # noqa: ASYNC110 (there is nothing to wait for)
                await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(run())
    assert node.steps[-2:] == ["let go", "mode normal"]


def test_new_flows_do_not_wait_for_one_that_does_not_answer() -> None:
    node = Node([], taker=False)
    with pytest.raises(ConflictError, match="did not answer within"):
        give(node, Others(node, answers=False))
    assert "let go" in node.steps


@pytest.mark.parametrize("stay", [True, False], ids=["by an operator", "for who asked"])
def test_force_gives_without_the_flows_and_says_so(stay: bool) -> None:
    node = Node([])
    with capture_logs() as said:
        moved = give(node, Others(node, know=False), force=True, stay=stay)
    assert node.mode is (Mode.HANDED_OVER if stay else Mode.NORMAL)
    assert "no other balancer is connected" in moved.lacking
    assert moved.lacking in moved.text
    (warning,) = (line for line in said if line["log_level"] == "warning")
    assert warning["why"] == moved.lacking


def test_a_forced_move_in_which_new_flows_came_in_says_so() -> None:
    node = Node([])
    hold = holding(node.steps, stands=False)
    moved = asyncio.run(hand_over(node, Others(node), hold, None, force=True))
    assert "held up" in moved.lacking


def test_what_could_not_be_told_last_is_said() -> None:
    node = Node([])
    others = Others(node)

    async def ask_take(instance: str | None) -> str:
        others.know = False
        return await Others.ask_take(others, instance)

    others.ask_take = ask_take
    assert "the last flows" in give(node, others).lacking


def test_who_was_held_up_so_that_new_flows_came_in_gives_nothing_away() -> None:
    node = Node([])
    with pytest.raises(ConflictError, match="held up"):
        asyncio.run(hand_over(node, Others(node), holding(node.steps, stands=False), None))
    assert node.steps == ["flush", "hold", "flush", "let go", "mode normal"]


def test_a_node_that_nobody_relieves_is_master_as_before() -> None:
    node = Node([], taker=False)
    with pytest.raises(ConflictError, match="nobody took the VIPs"):
        give(node, Others(node))
    assert node.steps[-1] == "mode normal"
    assert "let go" in node.steps


def test_without_flow_sync_nothing_is_held_back() -> None:
    node = Node([])
    with pytest.raises(ConflictError, match="nobody took"):
        give(node, None)
    assert node.steps == ["mode handed-over", "mode normal"]


def test_a_backup_only_stays_behind() -> None:
    node = Node([], Role.BACKUP)
    assert "stays behind" in give(node, Others(node)).text
    assert node.steps == ["mode handed-over"]


def test_who_is_not_master_has_nothing_to_give() -> None:
    node = Node([], Role.BACKUP)
    with pytest.raises(ConflictError, match="not master"):
        give(node, Others(node), stay=False)
    assert node.steps == []


def test_an_unknown_instance_changes_nothing() -> None:
    node = Node([])
    with pytest.raises(NotFoundError, match="'dns'"):
        asyncio.run(hand_over(node, None, holding(node.steps), "dns"))
    assert node.steps == []


def test_promotion_is_a_handover_of_the_master() -> None:
    node = Node([], Role.BACKUP)
    moved = asyncio.run(take_over(node, Others(node), None, Mode.PROMOTED))
    assert node.steps == ["give", "mode promoted"]
    assert "handed over" in moved.text


def test_promotion_goes_on_without_the_master() -> None:
    node = Node([], Role.BACKUP)
    moved = asyncio.run(take_over(node, Others(node, gives=False), None, Mode.PROMOTED))
    assert node.steps == ["give", "mode promoted"]
    assert "did not hand over: busy" in moved.text


def test_a_promotion_in_fault_says_so() -> None:
    node = Node([], Role.FAULT)
    moved = asyncio.run(take_over(node, None, None, Mode.PROMOTED))
    assert "in fault here" in moved.text


def test_a_master_is_promoted_without_asking_anybody() -> None:
    node = Node([])
    asyncio.run(take_over(node, Others(node), None, Mode.PROMOTED))
    assert node.steps == ["mode promoted"]
