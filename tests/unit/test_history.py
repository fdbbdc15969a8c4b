"""What was since when survives a restart, and nothing that happens to the file can hurt."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    history = History(tmp_path, "edge")
    history.save(PAST)
    (tmp_path / "edge.states.json").unlink()
    history.save(PAST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"backends": {"x": 1}}', '{"backends": []}'])
def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path: Path, text: str) -> None:
    (tmp_path / "edge.states.json").write_text(text)
    assert History(tmp_path, "edge").load() == Past({}, {})


def test_a_folder_that_cannot_be_written_hurts_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    History(tmp_path / "file", "edge").save(PAST)
