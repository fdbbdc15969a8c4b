"""How the ends of flows are announced: all of them, some times, and few at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Self, cast

import numpy as np
import pytest

from agent import resetting
from agent.dataplane.ending import Ended, Flows
from agent.dataplane.program import Dataplane
from agent.errors import NetworkError
from agent.resetting import SEND_TIMES, SENT_AT_ONCE, Ownership, Resetter

FLOWS = 10 * SENT_AT_ONCE + 3
UNREACHABLE = 7  # this end cannot be reached


class FakeSender:
    """``sent``: by flow; ``in_turn``: in each turn of the event loop."""

    sent: Counter[int]
    in_turn: Counter[int]
    turn: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def packet(self, to: int, _data: bytes) -> None:
        kind = type(self)
        kind.sent[to] += 1
        kind.in_turn[kind.turn] += 1
        if to == UNREACHABLE:
            raise NetworkError("no route to host")


def segments(_tables: object, ended: Ended) -> Iterator[SimpleNamespace]:
    for slot in ended.flows.slots:
        yield SimpleNamespace(to=int(slot), packet=lambda: b"")


async def announce(ended: Ended) -> None:
    resetter = Resetter(cast("Dataplane", SimpleNamespace(tables=None)), cast("Ownership", None))
    running = asyncio.create_task(resetter.run())
    resetter.announce(ended)
    async with asyncio.timeout(60):
        while sum(FakeSender.sent.values()) < SEND_TIMES * FLOWS:
            FakeSender.turn += 1
            await asyncio.sleep(0)
    running.cancel()


def test_all_are_sent_some_times_and_the_loop_is_never_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resetting, "RawSender", FakeSender)
    monkeypatch.setattr(resetting.ending, "segments", segments)
    monkeypatch.setattr(resetting, "SEND_PAUSE_S", 0)
    monkeypatch.setattr(resetting, "SEND_AGAIN_S", 0)
    FakeSender.sent, FakeSender.in_turn, FakeSender.turn = Counter(), Counter(), 0
    slots = np.arange(FLOWS)
    words = np.zeros(FLOWS, dtype=np.uint64)
    asyncio.run(announce(Ended(Flows(slots, words), words, {})))
    assert FakeSender.sent == dict.fromkeys(range(FLOWS), SEND_TIMES)
    assert max(FakeSender.in_turn.values()) <= SENT_AT_ONCE
