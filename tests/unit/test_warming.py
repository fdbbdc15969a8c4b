"""Weights that grow by themselves ask for a pass over their services, and over no others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from agent import warming
from agent.model import BackendRef, Config, Health
from agent.state.identities import member_of
from agent.warming import Warming
from tests.unit.state.world import TABLES, A, B, surroundings, web

SLOW = web(A, B, slow_start_s=60.0)
FAST = web(A, B, name="fast", vip="203.0.113.11")
CONFIG = Config("test", "eth0", tables=TABLES, services=(SLOW, FAST))
WARM = [member_of(SLOW, A)]


def weights(
    of: Warming, now: float, config: Config = CONFIG, part: Config | None = None, **down: Health
) -> dict[str, int]:
    part = part or config
    found = surroundings(config, health=down).eligibility
    return {str(ref): one.weight for ref, one in of.take(config, part, found, now).items()}


def run(story: Callable[[Warming], Awaitable[None]]) -> None:
    async def play() -> None:
        await story(Warming(WARM, lambda: None))

    asyncio.run(play())


def test_a_newcomer_s_service_is_due_when_its_weight_grows():
    async def story(of: Warming) -> None:
        assert weights(of, 1000.0) == {"web/a": 100, "web/b": 30, "fast/a": 100, "fast/b": 300}
        assert of.due(1005.9) == frozenset()
        assert of.due(1006.0) == {"web"}
        part = replace(CONFIG, services=(SLOW,))
        found = surroundings(CONFIG).eligibility
        assert of.take(CONFIG, part, found, 1006.0)[BackendRef("web", "b")].weight == 60
        assert of.due(1006.0) == frozenset()
        of.take(CONFIG, part, found, 1060.0)
        assert of.due(1e9) == frozenset()

    run(story)


def test_what_is_not_looked_at_keeps_its_times():
    async def story(of: Warming) -> None:
        weights(of, 1000.0)
        weights(of, 1030.0, part=replace(CONFIG, services=(FAST,)))
        assert weights(of, 1030.0)["web/b"] == 180
        weights(of, 1031.0, b=Health.DOWN)
        assert weights(of, 1032.0)["web/b"] == 30, "it has been down"

    run(story)


def test_another_name_keeps_the_times_and_a_service_that_was_gone_begins_anew():
    async def story(of: Warming) -> None:
        weights(of, 1000.0)
        renamed = replace(CONFIG, services=(replace(SLOW, name="new"), FAST))
        part = replace(renamed, services=(renamed.services[0],))
        found = surroundings(renamed).eligibility
        assert of.take(renamed, part, found, 1030.0)[BackendRef("new", "b")].weight == 180
        without = replace(CONFIG, services=(FAST,))
        of.take(without, replace(without, services=()), {}, 1031.0)
        assert of.due(1e9) == frozenset()
        assert weights(of, 1032.0) == {"web/a": 100, "web/b": 300, "fast/a": 100, "fast/b": 300}, (
            "all of them start together"
        )

    run(story)


def test_it_asks_for_a_pass_when_a_step_is_due(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warming, "LEAST_S", 0.0)

    async def story(of: Warming) -> None:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        of._wake = woken.set
        weights(of, loop.time())
        assert not woken.is_set()
        of._steps = {"web": loop.time()}
        of._set_timer(loop.time())
        await asyncio.wait_for(woken.wait(), 60)

    run(story)
