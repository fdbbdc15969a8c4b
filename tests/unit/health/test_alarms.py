"""Alarms ring in time and in order, and one that fails holds no other up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agent.health.alarms import Alarms


def play(story: Callable[[Alarms, list[str]], Awaitable[None]]) -> list[str]:
    rung: list[str] = []

    async def run() -> None:
        await story(Alarms(), rung)

    asyncio.run(run())
    return rung


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def until_rung(rung: list[str], count: int) -> None:
    async with asyncio.timeout(60):
        while len(rung) < count:  # noqa: ASYNC110 (an alarm tells nobody else)
            await asyncio.sleep(0.001)


def test_they_ring_in_the_order_of_their_times_and_not_before() -> None:
    async def story(alarms: Alarms, rung: list[str]) -> None:
        start_s = now_s()
        for name, after_s in (("third", 0.03), ("first", 0.01), ("second", 0.02)):
            alarms.at(start_s + after_s, lambda name=name: rung.append(name))  # type: ignore[misc]
        while len(rung) < 3:
            await asyncio.sleep(0.001)
            assert len(rung) <= (now_s() - start_s) / 0.01
        alarms.at(start_s, lambda: rung.append("overdue"))
        await asyncio.sleep(0.01)

    assert play(story) == ["first", "second", "third", "overdue"]


def test_what_is_cancelled_does_not_ring_even_by_another_that_is_due_with_it() -> None:
    async def story(alarms: Alarms, rung: list[str]) -> None:
        when_s = now_s() + 0.01
        alarms.at(when_s, lambda: victim.cancel())
        victim = alarms.at(when_s, lambda: rung.append("cancelled"))
        alarms.at(when_s, lambda: rung.append("last"))
        await asyncio.sleep(0.03)

    assert play(story) == ["last"]


def test_an_alarm_may_set_another() -> None:
    async def story(alarms: Alarms, rung: list[str]) -> None:
        def first() -> None:
            rung.append("first")
            alarms.at(now_s() + 0.01, lambda: rung.append("second"))

        alarms.at(now_s(), first)
        await until_rung(rung, 2)

    assert play(story) == ["first", "second"]


def test_one_that_fails_holds_no_other_up() -> None:
    async def story(alarms: Alarms, rung: list[str]) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: rung.append("failed"))
        alarms.at(now_s(), lambda: 1 // 0)
        alarms.at(now_s() + 0.001, lambda: rung.append("next"))
        await until_rung(rung, 2)

    assert play(story) == ["failed", "next"]


def test_waits_that_end_early_wake_nobody() -> None:
    """Thousands of time limits are set every second, and hardly any of them is reached."""
    woken = 0

    async def story(alarms: Alarms, _rung: list[str]) -> None:
        nonlocal woken
        ring: Any = alarms._ring

        def counted() -> None:
            nonlocal woken
            woken += 1
            ring()

        alarms._ring = counted  # type: ignore[method-assign]
        start_s = now_s()
        for number in range(1000):
            alarms.at(start_s + 0.01 + number / 1e5, lambda: 1 // 0).cancel()
        await asyncio.sleep(0.05)
        assert not alarms._heap

    play(story)
    assert woken == 1
