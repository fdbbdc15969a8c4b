"""However a comparison ends, everything on the machines is undone, and only a whole one is kept."""

from __future__ import annotations

import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lbctl.lab.interrupt import Guard, Interrupted
from vagrant.peers import __main__ as main
from vagrant.smoke.children import VagrantError


class World:
    """Machines that write down what happens to them; ``on_round`` is what befalls a round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, on_round: Any) -> None:
        self.log: list[str] = []
        machines = SimpleNamespace(
            up=lambda: self.log.append("up"),
            leave=lambda: self.log.append("leave"),
            down=lambda: self.log.append("down"),
            found_running=True,
        )
        stage = SimpleNamespace(settle=lambda: self.log.append("settle"), virtualization="qemu")
        setting = SimpleNamespace(undone_by=self.undone_by, prepare=self.prepare)
        rounds = SimpleNamespace(run=lambda number: on_round())
        for name, made in (
            ("Machines", machines),
            ("Stage", stage),
            ("Setting", setting),
            ("Rounds", rounds),
            ("_describe", ("guests", "balancer")),
        ):
            monkeypatch.setattr(main, name, lambda *_, made=made: made)
        monkeypatch.setattr(main, "_write", self.write)
        monkeypatch.setattr(main, "require", lambda: None)

    def undone_by(self, undo: ExitStack) -> None:
        undo.callback(self.undo, "compare")
        undo.callback(self.undo, "units")
        undo.callback(self.undo, "contenders")

    def undo(self, what: str) -> None:
        # An impatient second Ctrl-C in the middle of it.
        signal.raise_signal(signal.SIGINT)
        self.log.append(what)
        if what == "contenders":
            raise VagrantError("detach failed")

    def write(self, _folder: Path, _kept: Any) -> str:
        self.log.append("kept")
        return "page"

    def prepare(self) -> None:
        self.log.append("prepare")

    def compare(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with Guard() as guard:
            main._compare(guard, 1, folder, False, False)


UNDONE = ["contenders", "units", "compare", "leave"]


def test_an_interrupted_comparison_is_undone_whole_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises((Interrupted, VagrantError)):
        world.compare(tmp_path, monkeypatch)
    assert world.log == ["up", "settle", "prepare", *UNDONE]


def test_a_comparison_that_fails_is_undone_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise VagrantError("nobody answers")

    world = World(monkeypatch, fail)
    monkeypatch.setattr(World, "undo", lambda self, what: self.log.append(what))
    with pytest.raises(VagrantError, match="nobody answers"):
        world.compare(tmp_path, monkeypatch)
    assert world.log == ["up", "settle", "prepare", *UNDONE]


def test_a_whole_comparison_is_kept_and_undone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(monkeypatch, list)
    monkeypatch.setattr(World, "undo", lambda self, what: self.log.append(what))
    world.compare(tmp_path, monkeypatch)
    assert world.log == ["up", "settle", "prepare", "kept", *UNDONE]
