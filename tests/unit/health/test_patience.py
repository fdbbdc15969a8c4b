"""Servers are not blamed for a host without time; and dead ones are found all the same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

from agent.health import patience as module
from agent.health.patience import MOST, Patience, Wait

LIMIT_S = 0.1


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own: whatever the real host does, it is never late.

    Time passes when nothing is to be done, at once, and when a story says so.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(Sleepless(self))

    def time(self) -> float:
        return self.now_s


class Sleepless(selectors.PollSelector):
    """Waits for nobody."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if not (found := super().select(0)):
            assert timeout is not None, "nobody will ever have anything to do"
            self._loop.now_s += timeout
        return found


def play(story: Callable[[Patience], Awaitable[None]]) -> None:
    async def run() -> None:
        patience = Patience()
        with patience.watching():
            await story(patience)

    asyncio.run(run(), loop_factory=Loop)


def hold_up(seconds: float) -> None:
    """Nobody has the event loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    loop.now_s += seconds


async def overrun(seconds: float, turns: int = 1) -> None:
    """Nobody else has the event loop."""
    for _ in range(turns):
        hold_up(seconds)
        await asyncio.sleep(0)


def test_a_server_that_never_answers_is_given_up() -> None:
    async def story(patience: Patience) -> None:
        try:
            async with patience.timeout(LIMIT_S) as wait:
                await asyncio.Event().wait()
        except TimeoutError:
            return
        raise AssertionError(wait)

    play(story)


def test_an_answer_that_came_while_this_host_was_held_up_counts() -> None:
    async def story(patience: Patience) -> None:
        answer = asyncio.get_running_loop().create_future()
        async with patience.timeout(LIMIT_S) as wait:
            await overrun(2 * LIMIT_S)
            asyncio.get_running_loop().call_later(LIMIT_S / 2, answer.set_result, True)
            assert await answer
        assert wait.granted_s > 0

    play(story)


def test_without_anybody_who_watches_it_is_an_ordinary_limit() -> None:
    async def run() -> None:
        try:
            async with Patience().timeout(LIMIT_S) as wait:
                await overrun(2 * LIMIT_S)
                await asyncio.Event().wait()
        except TimeoutError:
            assert not wait.granted_s
            return
        raise AssertionError(wait)

    asyncio.run(run(), loop_factory=Loop)


def test_on_a_host_that_is_always_held_up_a_dead_server_is_found_too() -> None:
    async def story(patience: Patience) -> None:
        busy = asyncio.create_task(overrun(2 * module.LOOK_S, 1000))
        try:
            async with patience.timeout(LIMIT_S) as wait:
                await asyncio.Event().wait()
        except TimeoutError:
            assert 0 < wait.granted_s <= (MOST - 1) * LIMIT_S + 1e-9
        else:
            raise AssertionError(wait)
        finally:
            busy.cancel()

    play(story)


def test_what_was_held_up_before_the_wait_gives_it_nothing() -> None:
    async def story(patience: Patience) -> None:
        hold_up(5 * LIMIT_S)
        async with patience.timeout(LIMIT_S) as wait:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert wait.granted_s <= module.LOOK_S + 1e-9

    play(story)


def test_whoever_cancels_a_task_is_not_mistaken_for_its_time_limit() -> None:
    async def story(patience: Patience) -> None:
        async def wait() -> None:
            async with patience.timeout(60.0):
                await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    play(story)


def test_a_limit_within_a_limit_ends_alone() -> None:
    async def story(patience: Patience) -> None:
        async with patience.timeout(60.0):
            try:
                async with patience.timeout(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 0
                await asyncio.sleep(0.01)  # nothing is left of the cancellation
                return
        raise AssertionError

    play(story)


def test_a_wait_that_was_ended_does_not_expire_not_even_in_the_same_turn() -> None:
    expired: list[Wait] = []

    async def story(patience: Patience) -> None:
        loop = asyncio.get_running_loop()
        wait = patience.begin(0.02, expired.append)
        loop.call_at(wait.end_s, patience.end, wait)
        await asyncio.sleep(0.1)
        other = patience.begin(0.01, expired.append)
        await asyncio.sleep(0.1)
        assert expired == [other]

    play(story)
