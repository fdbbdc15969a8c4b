"""The event loop of the failover process: what wakes it."""

from __future__ import annotations

import asyncio
import select
import socket

import pytest

from agent.failover.process.clockwork import new_loop


def test_what_can_be_read_ends_a_long_wait() -> None:
    async def wait() -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            loop.call_soon(theirs.send, b"x")
            async with asyncio.timeout(10):
                return await loop.sock_recv(ours, 1)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(wait()) == b"x"


def test_a_wait_is_not_rounded_up_to_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real = select.select

    def noted(*arguments: object) -> object:
        waits.append(arguments[3])  # type: ignore[arg-type]
        return real(*arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(select, "select", noted)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.sleep(0.0504))
    assert 0 < max(waits) <= 0.0504  # by select, to which fractions can be told
