"""A fleet whose store is in memory."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent.fleet import store
from agent.model import Etcd, Fleet
from tests.unit.fleet.memory import Memory, MemoryClient

FLEET = Fleet("prod", "lb1", Etcd(("http://e1:2379",)), history=64, lease_s=3.0, report_s=0.5)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    made = Memory()
    monkeypatch.setattr(store, "Client", type("Client", (MemoryClient,), {"memory": made}))
    return made


def runs(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run
