"""All virtual routers of a node: how they start, and that groups move together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.failover.fitness import AgentHeartbeat
from agent.failover.model import OWNER, Authentication, Mode, Role, Track
from agent.failover.plan import FailoverPlan, VirtualRouter
from agent.failover.process import team as module
from agent.failover.process.links import Interface
from agent.failover.process.reading import Orders
from agent.failover.process.realtime import Standing
from agent.failover.process.router import Router
from agent.failover.process.team import Team
from agent.failover.times import PRESENT_S
from agent.model import Address
from agent.notify import Notifier
from tests.unit.failover.process.fakes import INSTANCE, OTHER, ROUTER, UP, VIP, Host, host, look

type Work = Callable[[Team, Host, dict[str, Interface]], None]
type AsyncWork = Callable[[Team, Host, dict[str, Interface]], Awaitable[None]]
ALONE = replace(ROUTER, instance=replace(INSTANCE, track=Track(dataplane=False, agent=0)))
DOWN = replace(UP, carrier=False)


def owners(*interfaces: str) -> tuple[VirtualRouter, ...]:
    """A group of owners, each on its interface."""
    owner = replace(ALONE.instance, priority=OWNER)
    return tuple(
        replace(ALONE, name=name, interface=name, instance=replace(owner, name=name))
        for name in interfaces
    )


def run(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    routers: tuple[VirtualRouter, ...],
    work: Work,
    *,
    left: frozenset[tuple[str, Address]] = frozenset(),
) -> None:
    async def at_once(team: Team, found: Host, interfaces: dict[str, Interface]) -> None:
        work(team, found, interfaces)

    run_async(monkeypatch, folder, routers, at_once, left=left)


def run_async(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    routers: tuple[VirtualRouter, ...],
    work: AsyncWork,
    *,
    left: frozenset[tuple[str, Address]] = frozenset(),
) -> None:
    interfaces = {"eth0": UP, "eth1": UP}

    async def started(found: Host) -> None:
        orders = Orders("lb", (), folder / "x", None, folder, FailoverPlan(routers))
        team = Team(folder / "x.yaml", orders, Standing(False, False), Notifier())
        monkeypatch.setattr(team.tracking, "interface", interfaces.get)
        monkeypatch.setattr(team.tracking, "_read", lambda names: {n: interfaces[n] for n in names})
        team.start()
        await work(team, found, interfaces)
        team.stop()

    monkeypatch.setattr(module, "remove_stale", lambda keep: ())
    monkeypatch.setattr(module, "left_behind", lambda places: left)
    with host(monkeypatch) as found:
        asyncio.run(started(found))


def roles(team: Team) -> list[Role]:
    return [member.role for member in team._members.values()]


@pytest.mark.parametrize("was_on", [True, False])
def test_only_who_was_master_a_moment_ago_waits_less(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, was_on: bool
) -> None:
    def work(team: Team, found: Host, _: dict[str, Interface]) -> None:
        (router,) = team._members.values()
        assert isinstance(router, Router)
        due_s, since_s = router.state.due_s, router.state.since
        assert due_s is not None
        assert (due_s - since_s > 3 * INSTANCE.interval_s) is not was_on

    left = frozenset({("eth0", VIP)} if was_on else ())
    run(monkeypatch, tmp_path, (ALONE,), work, left=left)


def test_a_group_of_owners_is_master_again_after_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(team: Team, _: Host, interfaces: dict[str, Interface]) -> None:
        assert roles(team) == [Role.MASTER] * 2
        for broken in (("eth0",), ("eth1",), ("eth0", "eth1")):
            interfaces |= dict.fromkeys(broken, DOWN)
            look(team.tracking)
            team.judge()
            assert roles(team) == [Role.FAULT] * 2
            interfaces |= dict.fromkeys(broken, UP)
            look(team.tracking)
            team.judge()
            assert roles(team) == [Role.MASTER] * 2

    run(monkeypatch, tmp_path, owners("eth0", "eth1"), work)


def test_none_of_a_group_moves_before_all_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(team: Team, found: Host, _: dict[str, Interface]) -> None:
        assert roles(team) == [Role.MASTER] * 2
        done = found.taken()
        assert done.index("take") > max(at for at, what in enumerate(done) if "open" in what)

    run(monkeypatch, tmp_path, owners("eth0", "eth1"), work)


def test_a_process_that_was_restarted_knows_the_last_counters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hmac = replace(ALONE, instance=replace(ALONE.instance, authentication=Authentication.HMAC))
    kept: list[Team] = []

    async def first(team: Team, found: Host, _: dict[str, Interface]) -> None:
        found.guard.accept(OTHER, 2**60)
        kept.append(team)

    def second(team: Team, found: Host, _: dict[str, Interface]) -> None:
        assert found.guard.refuses(OTHER, 2**60, in_ns=True)
        assert not found.guard.refuses(OTHER, 2**60 + 1)

    run_async(monkeypatch, tmp_path, (hmac,), first)
    asyncio.run(kept[0].save())  # as at its end
    run(monkeypatch, tmp_path, (hmac,), second)


def test_who_is_left_of_a_group_goes_on_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both = owners("eth0", "eth1")

    def work(team: Team, _: Host, interfaces: dict[str, Interface]) -> None:
        interfaces["eth1"] = DOWN
        look(team.tracking)
        team.judge()
        assert roles(team) == [Role.FAULT] * 2
        team.take(replace(team._orders, plan=FailoverPlan(both[:1])))
        assert roles(team) == [Role.MASTER]

    run(monkeypatch, tmp_path, both, work)


@pytest.mark.parametrize(
    ("word", "waits"),
    [
        (AgentHeartbeat(True, hands_over=True), True),
        (AgentHeartbeat(True), False),
        (None, False),
    ],
)
def test_who_is_told_to_stop_lets_its_agent_hand_over_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: AgentHeartbeat | None, waits: bool
) -> None:
    async def work(team: Team, found: Host, _: dict[str, Interface]) -> None:
        if word is not None:
            team.agent_says(word)
        (router,) = team._members.values()
        assert isinstance(router, Router)
        monkeypatch.setattr(router, "leave", lambda: asyncio.sleep(0, found.do("leave")))
        leaving = asyncio.create_task(team.leave())
        await asyncio.sleep(3 * module.EXCUSED_LOOK_S)
        async with asyncio.timeout(60):  # a busy host may take longer to leave
            while not waits and "leave" not in found.done:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert ("leave" not in found.done, team.status()["leaving"]) == (waits, True)
        # The agent's handover; what the operator wants is another thing, and is what is kept.
        await team.set_mode(Mode.HANDED_OVER, None)
        assert router.state.mode is Mode.HANDED_OVER
        assert not team._saved.modes
        team.excuse()
        await leaving
        assert "leave" in found.done

    run_async(monkeypatch, tmp_path, owners("eth0"), work)


def test_a_master_that_flow_sync_vouches_for_is_left_alone_and_what_was_inherited_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def work(team: Team, found: Host, _: dict[str, Interface]) -> None:
        (router,) = team._members.values()
        assert isinstance(router, Router)
        found.on = True  # as a former process has left it
        due_s = router.state.due_s
        assert due_s is not None
        monkeypatch.setattr(router._loop, "time", lambda: due_s)
        team.agent_says(AgentHeartbeat(True, vouchers={"web": due_s - 0.1, "gone": due_s}))
        router._fire()
        assert (router.role, found.on) == (Role.BACKUP, False)
        assert router.status().vouched
        assert "flow sync says that it is well" in router.status().why
        monkeypatch.setattr(router._loop, "time", lambda: due_s + 2)
        router._fire()
        assert (router.role, found.on) == (Role.MASTER, True)
        assert not router.status().vouched

    run(monkeypatch, tmp_path, (ALONE,), work, left=frozenset({("eth0", VIP)}))


def test_an_agent_that_has_gone_too_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "STOP_HANDOVER_S", 3600.0)  # it is no end of this wait

    async def work(team: Team, found: Host, _: dict[str, Interface]) -> None:
        (router,) = team._members.values()
        monkeypatch.setattr(router, "leave", lambda: asyncio.sleep(0, found.do("leave")))
        team.agent_says(AgentHeartbeat(True, hands_over=True))
        leaving = asyncio.create_task(team.leave())
        await asyncio.sleep(2 * module.EXCUSED_LOOK_S)
        assert not leaving.done()
        team.tracking._heard_s -= PRESENT_S  # it was heard so long ago
        await leaving
        assert "leave" in found.done

    run_async(monkeypatch, tmp_path, owners("eth0"), work)
