"""When passes run, whatever the last ones came to."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from agent.errors import DataplaneError
from agent.reconcile import passes
from agent.reconcile.passes import Passes

FULL = DataplaneError("a table is full", where="tables", remedy="make it larger")


class Work:
    """Passes that end as they are told to, one after the other; then all is well."""

    def __init__(self, *ends: Exception) -> None:
        self.ends, self.done, self.well = list(ends), 0, asyncio.Event()

    async def __call__(self, _scope: object) -> None:
        self.done += 1
        if self.ends:
            raise self.ends.pop(0)
        self.well.set()


async def ran(work: Work) -> Passes:
    """After as many passes as it takes."""
    found = Passes(work)
    task = asyncio.create_task(found.run())
    found.wake()
    await asyncio.wait_for(work.well.wait(), 60)
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    return found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "RETRY_S", (0.0, 0.0))


@pytest.mark.parametrize("defect", [ZeroDivisionError("by zero"), KeyError("x"), ValueError()])
@pytest.mark.usefixtures("at_once")
def test_a_defect_in_a_pass_is_logged_with_its_place_counted_and_tried_again(defect) -> None:
    async def story() -> None:
        work = Work(defect, defect)
        with capture_logs() as logs:
            found = await ran(work)
        assert (work.done, found.defects, found.problem) == (3, 2, "")
        assert [entry["exc_info"] for entry in logs] == [defect, defect]
        assert defect.__traceback__ is not None

    asyncio.run(story())


@pytest.mark.usefixtures("at_once")
def test_what_the_kernel_refuses_is_said_once_and_is_no_defect() -> None:
    async def story() -> None:
        with capture_logs() as logs:
            found = await ran(Work(FULL, FULL, OSError("no"), FULL))
        assert found.defects == 0
        assert [entry["problem"] for entry in logs] == [str(FULL), "no", str(FULL)]

    asyncio.run(story())


def test_however_many_passes_fail_one_retry_is_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        loop, timers = asyncio.get_running_loop(), []
        later = loop.call_later

        def noted(*arguments):
            timers.append(later(*arguments))
            return timers[-1]

        monkeypatch.setattr(loop, "call_later", noted)
        found = Passes(Work())
        for _ in range(300):
            found.failed(FULL)
        waiting = [timer for timer in timers if not timer.cancelled()]
        assert (len(timers), len(waiting)) == (300, 1)
        found.succeeded()
        assert all(timer.cancelled() for timer in timers)

    asyncio.run(story())


def test_the_pause_grows_with_every_failure_and_begins_anew_after_a_good_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        pauses: list[float] = []
        loop, later = asyncio.get_running_loop(), asyncio.get_running_loop().call_later
        monkeypatch.setattr(
            loop, "call_later", lambda s, *more: (pauses.append(s), later(s, *more))[1]
        )
        found = Passes(Work())
        for _ in range(4):
            found.failed(FULL)
        assert pauses == [*passes.RETRY_S, passes.RETRY_S[-1]]
        found.succeeded()
        found.failed(FULL)
        assert pauses[-1] == passes.RETRY_S[0]

    asyncio.run(story())


def test_many_wakes_are_one_pass() -> None:
    async def story() -> None:
        work = Work()
        found = Passes(work)
        for _ in range(300):
            found.wake()
        task = asyncio.create_task(found.run())
        await asyncio.wait_for(work.well.wait(), 60)
        for _ in range(10):
            await asyncio.sleep(0)
        assert work.done == 1
        task.cancel()

    asyncio.run(story())


def test_a_pass_is_about_all_that_was_said_since_the_last() -> None:
    async def story() -> None:
        found = Passes(Work())
        found.wake(("web",))
        found.wake(name for name in ("mail", "web"))
        assert await found.woken() == {"web", "mail"}
        found.wake(())
        assert await found.woken() == frozenset(), "the host has to be looked at, and no service"
        found.wake(("web",))
        found.wake()
        found.wake(("mail",))
        assert await found.woken() is None

    asyncio.run(story())
