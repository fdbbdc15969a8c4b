"""An agent to which that happens, at a moment that a test chooses, which is seldom hit by chance.

``python -m tests.netns.failover.fated FOLDER run --config FILE`` is ``lb-agent run``, except that

- while there is a file ``swap`` in the folder, each pass puts another program in the place of the
  last one. There are two, compiled once and never closed, so that a swap takes no longer than it
  has to;
- of a file ``fate``, ``STEP SIGNAL``, the agent sends itself that signal at that step of its next
  handover, once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent import main
from agent.dataplane import program
from agent.dataplane.constants import Features
from agent.dataplane.hold import Hold, new_flows_held
from agent.failover.model import Mode
from agent.pair import pair
from agent.pair.mastership import Mastership
from agent.pair.peers import SyncPeers

STEPS = ("held", "told", "behind", "taken")
_compile, _covers = program.load_program, Features.covers
_flush, _ask_take, _set_mode = SyncPeers.flush, SyncPeers.ask_take, Mastership.set_mode


class Fate:
    """What the files of a folder say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: list[Any] = []
        self._of: object = None  # for what the programs were compiled
        self._holds = False

    def swaps(self) -> bool:
        return (self._folder / "swap").exists()

    def meet(self, step: str) -> None:
        """Come to a step of a handover."""
        file = self._folder / "fate"
        if file.exists():
            at, name = file.read_text().split()
            if at == step:
                file.unlink()
                os.kill(os.getpid(), signal.Signals[name])

    def compile(self, text: str, function: str, constants: dict[str, str], *more: Any) -> Any:
        """The one of the two programs that was not used last. What runs is never taken over."""
        more = more[:2]
        if (constants, more) != self._of:
            self._of, self._programs = (constants, more), []
        if len(self._programs) == 2:
            self._programs.reverse()
        else:
            self._programs.insert(0, _compile(text, function, constants, *more))
        return self._programs[0]

    def covers(self, features: Features, needed: Features) -> bool:
        return not self.swaps() and _covers(features, needed)

    @contextlib.contextmanager
    def hold(self, settings: Any) -> Iterator[Hold]:
        with new_flows_held(settings) as held:
            self._holds = True
            self.meet("held")
            try:
                yield held
            finally:
                self._holds = False

    async def flush(self, peers: SyncPeers, timeout_s: float) -> Any:
        done = await _flush(peers, timeout_s)
        if self._holds:
            self.meet("told")
        return done

    async def set_mode(self, mastership: Mastership, mode: Mode, instance: str | None) -> Any:
        done = await _set_mode(mastership, mode, instance)
        if mode is Mode.HANDED_OVER:
            self.meet("behind")
        return done

    async def ask_take(self, peers: SyncPeers, instance: str | None) -> str:
        done = await _ask_take(peers, instance)
        self.meet("taken")
        return done


def run(fate: Fate) -> None:
    """The agent, with its steps led past its fate."""
    changes: list[tuple[object, str, Any]] = [
        (program, "load_program", fate.compile),
        (Features, "covers", lambda *given: fate.covers(*given)),
        (program.Dataplane, "release_replaced", lambda plane: plane.replaced.clear()),
        (pair, "new_flows_held", fate.hold),
        (SyncPeers, "flush", lambda *given: fate.flush(*given)),
        (SyncPeers, "ask_take", lambda *given: fate.ask_take(*given)),
        (Mastership, "set_mode", lambda *given: fate.set_mode(*given)),
    ]
    for owner, name, work in changes:
        setattr(owner, name, work)
    main.main()


if __name__ == "__main__":
    run(Fate(Path(sys.argv.pop(1))))
