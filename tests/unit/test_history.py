"""What was since when survives a restart, and nothing that happens to the file can hurt."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from agent import history
from agent.history import History
from agent.model import BackendRef, BackendState, ServiceState
from agent.state.assemble import Tracked
from agent.state.situation import Past

PAST = Past(
    {BackendRef("chat", "gpu-1"): Tracked(BackendState.DRAIN, 12.5)},
    {"chat": Tracked(ServiceState.UP, 3.0)},
)


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    History(tmp_path, "edge").save(PAST)
    assert History(tmp_path, "edge").load() == PAST


def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    kept = History(tmp_path, "edge")
    kept.save(PAST)
    (tmp_path / "edge.states.json").unlink()
    kept.save(PAST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"backends": {"x": 1}}', '{"backends": []}'])
def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path: Path, text: str) -> None:
    (tmp_path / "edge.states.json").write_text(text)
    assert History(tmp_path, "edge").load() == Past({}, {})


def test_a_folder_that_cannot_be_written_hurts_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    History(tmp_path / "file", "edge").save(PAST)


def test_states_are_kept_beside_the_loop_whatever_happens_and_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "KEEP_S", 0.0)
    kept, threads, now = History(tmp_path, "edge"), [], [PAST]
    saved = asyncio.Queue[None]()

    async def story() -> None:
        loop = asyncio.get_running_loop()

        def save(past: Past) -> None:
            threads.append(threading.get_ident())
            loop.call_soon_threadsafe(saved.put_nowait, None)
            if len(threads) == 1:
                raise ZeroDivisionError

        monkeypatch.setattr(kept, "save", save)
        task = asyncio.create_task(kept.keep(lambda: now[0]))
        for _ in range(3):
            await asyncio.wait_for(saved.get(), 60)
        assert threading.get_ident() not in threads
        monkeypatch.undo()
        now[0] = Past({}, PAST.services)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())
    assert History(tmp_path, "edge").load() == now[0]
