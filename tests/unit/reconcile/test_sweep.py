"""A sweep of a full table leaves others their turn."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from agent.dataplane import survey
from agent.dataplane.abi import FlowState
from agent.reconcile.reconciler import Reconciler
from tests.unit.dataplane.fakes import FakeTables, word

LONG_AGO = 5000


@pytest.fixture
def tables() -> FakeTables:
    """Full of flows that are over, of a backend that is there and of one that is not."""
    tables = FakeTables()
    tables.backends["service"][3] = 1
    tables.backends["timeout_ticks"][3] = 10
    tables.flows[:] = word(3, FlowState.ESTABLISHED, 0)
    tables.flows[::2] = word(9, FlowState.ESTABLISHED, 0)
    return tables


def test_slots_are_freed_in_pieces_and_ids_looked_for_beside_the_loop(
    tables: FakeTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_CHUNK", 64)
    reconciler = Reconciler(tables, lambda: 1e6)  # type: ignore[arg-type]
    turns, threads, once = [0], [], survey.named_backends

    def named(flows: survey.Slots) -> frozenset[int]:
        threads.append(threading.get_ident())
        return once(flows)

    monkeypatch.setattr(survey, "named_backends", named)

    async def others() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def story() -> int:
        task = asyncio.create_task(others())
        freed = await reconciler.sweep(survey.survey(tables, LONG_AGO, 0))  # type: ignore[arg-type]
        task.cancel()
        return freed

    assert asyncio.run(story()) == len(tables.flows)
    assert not tables.flows.any()
    assert turns[0] >= len(tables.flows) // 64
    assert threading.get_ident() not in threads
    assert tables.backend_count["closed"][-1, 3] == len(tables.flows) // 2


def test_the_ids_in_a_table_are_found_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_CHUNK", 8)
    flows = np.zeros(64, dtype=np.uint64)
    flows[[0, 7, 8, 63]] = [word(n, FlowState.ESTABLISHED, 0) for n in (1, 2, 65_535, 1)]
    assert survey.named_backends(flows) == {1, 2, 65_535}
