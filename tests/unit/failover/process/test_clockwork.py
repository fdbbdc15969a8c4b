"""The event loop of the failover process: what wakes it."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import subprocess
import sys

from agent.failover.process.clockwork import new_loop


def test_what_can_be_read_ends_a_long_wait() -> None:
    async def wait() -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.call_soon(theirs.send, b"x")
            async with asyncio.timeout(120):
                return await loop.sock_recv(ours, 1)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(wait()) == b"x"


# In a process of its own: with more than a thousand descriptors open, select cannot be used.
_WAITS = """
import asyncio, select
from agent.failover.process.clockwork import new_loop
waits, real = [], select.select
def noted(*arguments):
    waits.append(arguments[3])
    return real(*arguments)
select.select = noted
with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(asyncio.sleep(0.0504))
print(max(waits))
"""


def test_a_wait_is_not_rounded_up_to_milliseconds() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WAITS], capture_output=True, text=True, check=True
    )
    assert 0 < float(done.stdout) <= 0.0504  # by select, to which fractions can be told


def test_many_open_descriptors_only_make_it_coarse() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[0] < 2048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, before[1]), before[1]))
    with contextlib.ExitStack() as opened:
        while (it := opened.enter_context(socket.socket())).fileno() < 1024:
            pass
        assert it.fileno() >= 1024
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(asyncio.sleep(0.001))
