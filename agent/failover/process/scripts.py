"""Keeps the states of the tracked scripts, from the results that the runner reports."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import IO

from agent.failover.fitness import ScriptState, judged
from agent.failover.model import TrackedScript
from agent.failover.process.realtime import start_child
from agent.failover.process.runner import MAX_LINE_BYTES
from agent.failover.times import TASK_AGAIN_S
from agent.logs import get_logger

log = get_logger()


class Scripts:
    """The scripts of all virtual routers; one that several of them track runs only once."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._wanted: tuple[TrackedScript, ...] = ()
        self._states: dict[TrackedScript, ScriptState] = {}
        # A number is never used twice, because the runner may still report on an earlier set.
        self._numbers: dict[int, TrackedScript] = {}
        self._next = itertools.count(1)
        self._news = asyncio.Event()

    def watch(self, scripts: Iterable[TrackedScript]) -> None:
        """Watch these scripts from now on; the states of those that stay are kept."""
        wanted = tuple(dict.fromkeys(scripts))
        if set(wanted) != set(self._wanted):
            self._wanted = wanted
            self._states = {each: self._states.get(each, ScriptState()) for each in wanted}
            before = {script: number for number, script in self._numbers.items()}
            self._numbers = {before.get(each) or next(self._next): each for each in wanted}
            self._news.set()

    def state(self, script: TrackedScript) -> ScriptState:
        """Return the state of a script."""
        return self._states.get(script, ScriptState())

    async def run(self) -> None:
        """Keep a runner process while there is any script."""
        while True:
            await self._news.wait()
            if not self._wanted:
                self._news.clear()
                continue
            try:
                await self._with_runner()
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("the runner of scripts failed", error=str(error))
            await asyncio.sleep(TASK_AGAIN_S)
            self._news.set()

    async def _with_runner(self) -> None:
        command = [sys.executable, "-P", "-m", "agent.failover.process.runner"]
        process = start_child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None  # noqa: S101 (both are pipes)
        assert process.stdout is not None  # noqa: S101
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(MAX_LINE_BYTES)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), process.stdout
        )
        asking = asyncio.create_task(self._ask(process.stdin), name="scripts ask")
        try:
            while line := await reader.readline():
                number, ok, detail = json.loads(line)
                self._take(number, ok, detail)
        finally:
            asking.cancel()
            transport.close()
            process.stdin.close()  # this makes the runner end
            process.poll()

    async def _ask(self, writer: IO[bytes]) -> None:
        """Send the runner the set of scripts, now and at every change."""
        while True:
            await self._news.wait()
            self._news.clear()
            sets = [
                (number, each.command, each.run_as, each.interval_s, each.timeout_s)
                for number, each in self._numbers.items()
            ]
            writer.write(json.dumps(sets).encode() + b"\n")
            writer.flush()

    def _take(self, number: int, ok: bool, detail: str) -> None:
        if (script := self._numbers.get(number)) is None:
            return
        before = self._states[script]
        after = self._states[script] = judged(script, before, ok, detail)
        if after.ok is not before.ok:
            log.info("script", script=script.name, ok=after.ok, detail=detail)
            self._changed()
