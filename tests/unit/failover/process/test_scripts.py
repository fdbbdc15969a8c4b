"""Tracked scripts: what the runner tells of them, and what is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from agent.failover.fitness import ScriptState
from agent.failover.model import TrackedScript
from agent.failover.process import runner
from agent.failover.process.scripts import Scripts

# However slow the host is, these end in time.
TRUE = TrackedScript("true", ("/bin/true",), interval_s=0.05, timeout_s=60.0)
FALSE = TrackedScript("false", ("/bin/false",), interval_s=0.05, timeout_s=60.0)
NONE = TrackedScript("none", ("/nonexistent/command",), interval_s=0.05, timeout_s=60.0)


async def until(so: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not so():  # noqa: ASYNC110 (the runner is another process)
            await asyncio.sleep(0.01)


def test_the_runner_tells_how_each_script_ended() -> None:
    changes: list[None] = []

    async def work() -> dict[str, ScriptState]:
        scripts = Scripts(lambda: changes.append(None))
        task = asyncio.create_task(scripts.run())
        scripts.watch([TRUE])
        await until(lambda: scripts.state(TRUE).ok is not None)
        scripts.watch([TRUE, FALSE, NONE, FALSE])
        assert scripts.state(TRUE).ok  # what is known stays known
        await until(lambda: None not in {scripts.state(each).ok for each in (FALSE, NONE)})
        task.cancel()
        return {each.name: scripts.state(each) for each in (TRUE, FALSE, NONE)}

    found = asyncio.run(work())
    assert found["true"] == ScriptState(True, 0, "")
    assert found["false"] == ScriptState(False, 0, "exit status 1")
    assert found["none"].ok is False
    assert "No such file" in found["none"].detail
    assert len(changes) == 3


def test_a_script_that_takes_too_long_has_failed() -> None:
    async def work() -> tuple[bool, str]:
        return await runner.result(["/bin/sh", "-c", "sleep 60 & sleep 60"], None, 0.01)

    assert asyncio.run(work()) == (False, "no answer within 0.01 s")


def test_a_script_runs_as_the_user_that_is_named() -> None:
    command = ("/bin/sh", "-c", 'test "$(id -un)" = nobody && test "$HOME" = /nonexistent')
    mine = TrackedScript("mine", command, interval_s=0.05, timeout_s=60.0)
    theirs = replace(mine, name="theirs", run_as="nobody")
    nobodys = replace(mine, name="nobodys", run_as="no-such-user")

    async def work() -> list[ScriptState]:
        scripts = Scripts(lambda: None)
        task = asyncio.create_task(scripts.run())
        tracked = [mine, theirs, nobodys]
        scripts.watch(tracked)
        await until(lambda: None not in {scripts.state(each).ok for each in tracked})
        task.cancel()
        return [scripts.state(each) for each in tracked]

    as_root, as_nobody, unknown = asyncio.run(work())
    assert (as_root.ok, as_root.detail) == (False, "exit status 1")
    assert as_nobody.ok
    assert not unknown.ok
    assert unknown.detail == "/bin/sh as no-such-user: this host has no user 'no-such-user'"


def test_a_late_word_of_a_former_set_is_of_none_of_the_new_one() -> None:
    async def work() -> None:
        scripts = Scripts(lambda: None)
        scripts.watch([NONE, TRUE])
        scripts._take(1, ok=False, detail="as it was")
        assert scripts.state(NONE).ok is False
        scripts.watch([TRUE, FALSE])
        scripts._take(1, ok=False, detail="of what is tracked no more")
        assert scripts.state(TRUE).ok is None
        scripts._take(2, ok=True, detail="")
        assert scripts.state(TRUE).ok

    asyncio.run(work())


def test_one_that_is_no_longer_tracked_is_not_known() -> None:
    async def work() -> ScriptState:
        scripts = Scripts(lambda: None)
        scripts.watch([TRUE])
        scripts.watch([])
        return scripts.state(TRUE)

    assert asyncio.run(work()) == ScriptState()
