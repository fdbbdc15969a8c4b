"""From which of several former tables flows are carried over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.dataplane import old
from agent.errors import DataplaneError


def found(monkeypatch: pytest.MonkeyPatch, broken: tuple[int, ...] = (), **ids: int | None) -> Any:
    """``ids``: of the last programs by folder; None: it never had one."""
    pins = [
        SimpleNamespace(folder=Path(name), last_program=None if ident is None else Path(name))
        for name, ident in ids.items()
    ]

    def opened(those: Any, size: object, nat: object) -> str:
        if ids[str(those.folder)] in broken:
            raise DataplaneError("its tables cannot be read")
        return str(those.folder)

    monkeypatch.setattr(old, "OldTables", opened)
    monkeypatch.setattr(old, "_program", lambda p: SimpleNamespace(id=ids[str(p.folder)]))
    around: Any = SimpleNamespace(of_other_versions=lambda: pins)
    nothing: Any = None
    return old.find(around, nothing, nothing)


def test_those_of_the_newest_program_are_taken(monkeypatch: pytest.MonkeyPatch):
    assert found(monkeypatch, abi7=12, abi8=90, abi6=40) == "abi8"


def test_tables_that_cannot_be_read_give_way_to_the_next_newest(monkeypatch: pytest.MonkeyPatch):
    assert found(monkeypatch, broken=(90,), abi7=12, abi8=90, abi6=40) == "abi6"


def test_tables_that_no_program_has_used_are_none(monkeypatch: pytest.MonkeyPatch):
    assert found(monkeypatch, abi8=None) is None
    assert found(monkeypatch, abi8=None, abi7=3) == "abi7"
