"""One virtual router between its state machine and the host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from agent.failover.fitness import Judgement
from agent.failover.model import Mode, Role
from agent.failover.process.listeners import Listeners
from agent.failover.process.router import Router
from agent.failover.vrrp import machine
from agent.failover.vrrp.advert import Reason, Refusal
from agent.failover.vrrp.states import Claim, Fitness
from tests.unit.failover.process.fakes import (
    FIT,
    INSTANCE,
    OTHER,
    OWN,
    ROUTER,
    THIRD,
    UP,
    Host,
    advert,
    host,
)

type Work = Callable[[Router, Host], Coroutine[Any, Any, None]]


def run(monkeypatch: pytest.MonkeyPatch, work: Work, *, inherited: bool = False) -> None:
    """A started router, backup; what its start did is forgotten."""

    async def started(found: Host) -> None:
        listeners, mode = Listeners(), Mode.NORMAL
        router = Router(ROUTER, None, listeners, grouped=False, mode=mode, group=lambda each: {})
        found.on = inherited
        router.start(UP, FIT, inherited=inherited)
        assert found.taken() == ["hold", f"open {OWN}"]
        await work(router, found)
        router.stop()
        assert not found.on

    with host(monkeypatch) as found:
        asyncio.run(started(found))


def hear(router: Router, found: Host, *heard: Any) -> None:
    found.incoming += heard
    router._drain()


def test_it_takes_over_and_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.handle(Claim())
        assert (router.role, found.on) == (Role.MASTER, True)
        found.taken()
        hear(router, found, advert(200))
        assert (router.role, found.on) == (Role.BACKUP, False)
        status = router.status()
        assert (status.master, status.master_priority) == (str(OTHER), 200)
        assert status.transitions == {"backup": 2, "master": 1}
        assert (status.adverts_sent, status.adverts_received) == (2, 1)

    run(monkeypatch, work)


def test_a_backlog_of_one_node_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.handle(Claim())
        found.taken()
        hear(router, found, *[advert(50)] * 300, *[advert(60, THIRD)] * 300)
        assert found.taken().count("send 100") == 2
        assert router.status().adverts_received == 600
        assert router.role is Role.MASTER

    run(monkeypatch, work)


def test_the_last_word_of_a_node_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.handle(Claim())
        hear(router, found, advert(200), advert(0))
        assert router.role is Role.MASTER

    run(monkeypatch, work)


def test_who_may_not_preempt_leaves_a_master_of_lower_priority_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(router: Router, found: Host) -> None:
        due_s = router.state.due_s
        router.observe(UP, replace(FIT, waits_for="the flows"))
        hear(router, found, advert(50))
        assert router.state.due_s is not None
        assert due_s is not None
        assert router.state.due_s > due_s, "it waits for that master to be silent"
        waits_s = router.state.due_s
        router.observe(UP, FIT)
        hear(router, found, advert(50))
        assert router.state.due_s == waits_s, "its adverts count no more"

    run(monkeypatch, work)


def test_inherited_vips_stay_until_another_master_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(router: Router, found: Host) -> None:
        hear(router, found, advert(0))
        assert found.on
        hear(router, found, advert(150))
        # The master hears of a lower one, and announces again.
        assert found.taken() == ["drop", "send 1"]
        hear(router, found, advert(150))
        assert found.taken() == []

    run(monkeypatch, work, inherited=True)


def test_a_master_of_the_lowest_priority_does_not_stop_for_who_lets_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(router: Router, found: Host) -> None:
        hear(router, found, advert(1))
        assert found.taken() == ["drop", "send 0"]

    run(monkeypatch, work, inherited=True)


def test_inherited_vips_go_with_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.observe(UP, Judgement(Fitness(100, "a fault"), ("a fault",)))
        assert not found.on

    run(monkeypatch, work, inherited=True)


def test_inherited_vips_are_kept_by_who_is_master_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.handle(Claim())
        assert "drop" not in found.taken()
        hear(router, found, advert(50))
        assert found.on

    run(monkeypatch, work, inherited=True)


def test_who_leaves_serves_until_another_is_master(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.handle(Claim())
        found.taken()
        leaving = asyncio.create_task(router.leave())
        await asyncio.sleep(0)
        assert found.taken() == ["send 0"]
        hear(router, found, advert(0))
        assert found.on
        hear(router, found, advert(50))
        assert not found.on
        await leaving

    run(monkeypatch, work)


def test_who_leaves_and_is_not_master_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        await router.leave()
        assert found.taken() == []

    run(monkeypatch, work)


def test_no_effect_that_fails_keeps_the_others_from_being_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(router: Router, found: Host) -> None:
        found.broken = {"send", "take"}
        router.handle(Claim())
        assert {"send 100", "take"} <= set(found.taken())
        assert router.role is Role.MASTER
        (problem,) = router.status().problems
        assert problem.kind == "send"
        found.broken = set()
        hear(router, found, advert(50))
        assert router.status().problems == ()
        found.broken = {"send"}
        hear(router, found, advert(200))
        assert router.role is Role.BACKUP
        assert router.status().problems == (), "a backup sends none"

    run(monkeypatch, work)


def test_no_packet_stops_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.handle(Claim())
        found.broken = {"read"}
        router._fire()
        assert router._timer is not None

    run(monkeypatch, work)


def test_another_channel_of_the_router_knows_the_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        found.guard.accept(OTHER, 7)
        router.observe(None, FIT)
        router.observe(UP, FIT)
        assert found.guard.heard == {OTHER: 7}

    run(monkeypatch, work)


def test_silence_in_a_flood_counts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        def silence() -> Role:
            router.state = replace(router.state, down_s=router._loop.time())
            router._fire()
            return router.role

        found.flooded = True
        assert {silence() for _ in range(20)} == {Role.BACKUP}
        hear(router, found, advert(200))
        assert {silence() for _ in range(20)} == {Role.BACKUP}, "it has come through"
        assert silence() is Role.MASTER, "but not for ever"

    run(monkeypatch, work)


def test_a_master_advertises_in_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.handle(Claim())
        found.flooded = True
        found.taken()
        router.state = replace(router.state, advert_s=router._loop.time())
        router._fire()
        assert "send 100" in found.taken()

    run(monkeypatch, work)


def test_silence_without_a_flood_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.state = replace(router.state, down_s=router._loop.time())
        router._fire()
        assert router.role is Role.MASTER

    run(monkeypatch, work)


def test_a_machine_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        def fails(*_: object) -> Any:
            raise ValueError("a bug")

        with monkeypatch.context() as broken:
            broken.setattr(machine, "step", fails)
            router.handle(Claim())
        assert router.role is Role.BACKUP
        router.handle(Claim())
        assert router.role is Role.MASTER

    run(monkeypatch, work)


def test_sockets_follow_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        router.observe(None, FIT)
        assert (router.role, found.taken()) == (Role.FAULT, ["close"])
        router.observe(UP, FIT)
        assert (router.role, found.taken()) == (Role.BACKUP, [f"open {OWN}"])
        router.observe(replace(UP, addresses=(THIRD,)), FIT)
        assert found.taken() == [f"open {THIRD}", "close"]
        router.observe(replace(UP, addresses=(THIRD, OWN)), FIT)
        assert found.taken() == []
        router.observe(replace(UP, ifindex=7, addresses=(THIRD,)), FIT)
        assert found.taken() == [f"open {THIRD}", "close"]
        router.observe(replace(UP, addresses=()), FIT)
        assert (router.role, found.taken()) == (Role.FAULT, ["close"])
        assert "no IPv4 address" in router.status().why

    run(monkeypatch, work)


def test_a_socket_that_cannot_be_opened_is_a_fault_until_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(router: Router, found: Host) -> None:
        found.broken = {"open"}
        router.observe(replace(UP, ifindex=7), FIT)
        assert router.role is Role.FAULT
        assert "cannot be used" in router.status().priority_reasons[0]
        found.broken = set()
        router.observe(replace(UP, ifindex=7), FIT)
        assert router.role is Role.BACKUP

    run(monkeypatch, work)


def test_other_settings_of_the_same_router_change_it_while_it_is_master(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(router: Router, found: Host) -> None:
        router.handle(Claim())
        found.taken()
        router.change(ROUTER, None, grouped=False)
        router.observe(UP, FIT)
        assert found.taken() == []
        other = replace(ROUTER, instance=replace(INSTANCE, priority=120))
        router.change(other, None, grouped=False)
        router.observe(UP, Judgement(Fitness(120), ()))
        assert found.taken() == ["change", f"open {OWN}", "close", "send 120", "announce"]
        assert router.status().transitions == {"backup": 1, "master": 1}

    run(monkeypatch, work)


def test_what_is_refused_is_counted_by_its_reason_and_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(router: Router, found: Host) -> None:
        hear(router, found, *[Refusal(Reason.CHECKSUM, "another variant", OTHER)] * 3)
        status = router.status()
        assert status.adverts_discarded == {"checksum": 3}
        assert [(each.kind, each.count) for each in status.problems] == [("checksum", 3)]

    run(monkeypatch, work)


def test_what_cannot_be_done_on_this_host_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(router: Router, found: Host) -> None:
        problems = (("addresses", ""), ("announcements", "the network is down"))
        monkeypatch.setattr(type(router._holding), "problems", problems)
        shown = [(each.kind, each.text) for each in router.status().problems]
        assert shown == [("announcements", "the network is down")]

    run(monkeypatch, work)
