"""Checks begin at their times, and only where there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agent.health.alarms import Alarm, Alarms
from agent.health.turns import TICK_S, Turns


def play(room: int, story: Callable[[Turns], Awaitable[None]]) -> None:
    async def run() -> None:
        turns = Turns(Alarms(), room)
        async with asyncio.timeout(30):
            await story(turns)
        assert turns.room == room
        assert not turns._early
        assert not turns._due

    asyncio.run(run())


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 (what is waited for tells nobody)
        await asyncio.sleep(0.005)


def test_none_begins_before_its_time_and_those_of_one_tick_begin_together() -> None:
    async def story(turns: Turns) -> None:
        at, planned = turns._alarms.at, list[float]()

        def noted(when_s: float, call: Callable[[], object]) -> Alarm:
            planned.append(when_s)
            return at(when_s, call)

        async def check(due_s: float) -> None:
            await turns.take(due_s)
            assert now_s() >= due_s
            turns.give_back()

        turns._alarms.at = noted  # type: ignore[method-assign]
        tick_s = (now_s() // TICK_S + 10) * TICK_S
        dues = [tick_s - TICK_S * (n + 0.5) / 10 for n in range(9)]
        tasks = [asyncio.create_task(check(due_s)) for due_s in dues]
        await asyncio.gather(*tasks)
        assert len(planned) == len(dues)
        assert len(set(planned)) == 1

    play(100, story)


def test_those_for_which_there_is_no_room_begin_in_the_order_in_which_they_were_due() -> None:
    async def story(turns: Turns) -> None:
        begun: list[int] = []
        start_s = now_s()

        async def check(number: int) -> None:
            await turns.take(start_s + number / 100)
            begun.append(number)

        tasks = [asyncio.create_task(check(number)) for number in range(5)]
        await until(lambda: len(turns._due) == 3)
        await settle()
        assert begun == [0, 1]
        for wanted in range(3, 6):
            turns.give_back()
            await settle()
            assert begun == list(range(wanted))
        turns.give_back()
        turns.give_back()
        await asyncio.gather(*tasks)

    play(2, story)


def test_one_that_is_removed_takes_no_room_whenever_that_happens() -> None:
    async def story(turns: Turns) -> None:
        early = asyncio.create_task(turns.take(now_s() + 3600.0))
        await turns.take(now_s())
        queued = asyncio.create_task(turns.take(now_s()))
        await until(lambda: turns._due)
        early.cancel()
        queued.cancel()
        await asyncio.wait([early, queued])
        turns.give_back()

    play(1, story)


def test_one_that_is_removed_just_when_its_turn_comes_makes_room_again() -> None:
    async def story(turns: Turns) -> None:
        await turns.take(now_s())
        second = asyncio.create_task(turns.take(now_s()))
        await until(lambda: turns._due)
        turns.give_back()  # it is told, and runs only after this function has paused
        second.cancel()
        await asyncio.wait([second])
        assert second.cancelled()

    play(1, story)


def test_hastened_checks_begin_once_and_those_that_are_due_sooner_keep_their_time() -> None:
    async def story(turns: Turns) -> None:
        begun: list[str] = []

        async def check(name: str, due_s: float) -> None:
            await turns.take(due_s)
            begun.append(name)
            turns.give_back()

        tasks = [
            asyncio.create_task(check("in an hour", now_s() + 3600.0)),
            asyncio.create_task(check("soon", now_s() + 0.01)),
        ]
        await settle()
        turns.hasten(lambda: 0.05)
        turns.hasten(lambda: 0.06)
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.05)
        assert begun == ["soon", "in an hour"]

    play(1, story)
