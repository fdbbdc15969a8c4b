"""Blocks that other balancers make: they are recorded before they are taken over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import cast
from unittest import mock

import pytest

from agent.dataplane.program import Dataplane
from agent.guarding import Guarding
from agent.model import Config
from agent.state.blocks import Block


def test_blocks_of_another_balancer_are_recorded_before_they_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config("edge", "eth0", state_dir=tmp_path)
    guarding = Guarding(config, cast("Dataplane", mock.MagicMock()))
    told: list[object] = []

    @contextlib.asynccontextmanager
    async def recording(by: str, what: str, effect: str) -> AsyncIterator[None]:
        told.append((by, what, effect))
        yield
        told.append("recorded what became of it")

    monkeypatch.setattr(guarding, "_place_blocks", lambda: told.append("placed"))
    guarding.recording = recording
    now = time.time()
    network = ip_network("192.0.2.7/32")
    blocked = {network: Block(network, "scans", now, now + 60)}
    undone = {network: Block(network, "scans", now + 1, now + 60, over=True)}

    async def story() -> None:
        assert await guarding.take_over(blocked)
        assert not await guarding.take_over(blocked)
        assert not await guarding.take_over(undone)

    asyncio.run(story())
    assert told == [
        ("another balancer", "blocks", "1 blocked, 0 served again"),
        "placed",
        "recorded what became of it",
        ("another balancer", "blocks", "0 blocked, 1 served again"),
        "placed",
        "recorded what became of it",
    ]
