"""Runs the tracked scripts in a process of its own, because starting a command blocks the caller.

``python -m agent.failover.process.runner`` reads one line of JSON from standard input for every new
set of scripts, ``[[id, command, user, interval_s, timeout_s], …]``, and writes ``[id, ok, detail]``
for each run. It ends when its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys

from agent import runas
from agent.failover.process.realtime import be_ordinary

MAX_LINE_BYTES = 1 << 20


async def result(command: list[str], user: str | None, timeout_s: float) -> tuple[bool, str]:
    """Run a command, and return whether it exits with 0 in time, and a detail if it does not.

    ``user``: of this host; None: that of this process. At the end the command and everything that
    it has started are killed.
    """
    null = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *runas.words(command, user),
            stdin=null,
            stdout=null,
            stderr=null,
            env=runas.environment(user, os.environ),
            start_new_session=True,
        )
    except (OSError, LookupError) as error:
        return False, runas.refusal(command[0], user, error)
    try:
        async with asyncio.timeout(timeout_s):
            status = await process.wait()
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return status == 0, f"exit status {status}" if status else ""


async def _repeat(
    number: int, command: list[str], user: str | None, interval_s: float, timeout_s: float
) -> None:
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while True:
        ok, detail = await result(command, user, timeout_s)
        sys.stdout.write(json.dumps([number, ok, detail]) + "\n")
        sys.stdout.flush()
        # Runs that were missed because one took long are not made up for.
        due_s = max(due_s + interval_s, loop.time())
        await asyncio.sleep(due_s - loop.time())


async def _run() -> None:
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks: list[asyncio.Task[None]] = []
    while line := await reader.readline():
        await _end(tasks)
        tasks = [asyncio.create_task(_repeat(*script)) for script in json.loads(line)]
    await _end(tasks)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    be_ordinary()
    # Signals of the terminal or the service manager are for the parent, which closes the input.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    asyncio.run(_run())
