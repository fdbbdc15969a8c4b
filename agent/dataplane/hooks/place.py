"""What every hook can do: tell which program sits there, put one there, take it off."""

from __future__ import annotations

from typing import Protocol

from agent.dataplane.libbpf import ProgramType
from agent.model import Hook

PROGRAM_TYPES = {
    Hook.NATIVE: ProgramType.XDP,
    Hook.TC: ProgramType.SCHED_CLS,
    Hook.GENERIC: ProgramType.XDP,
    Hook.EXTERNAL: ProgramType.XDP,
}


class Place(Protocol):
    """One place for one program. Every failure is an OSError; ``why`` puts it into words."""

    def current(self) -> int:
        """The id of the program there; 0: none."""

    def put(self, fd: int, over: int) -> None:
        """Put a program there, atomically in the place of ``over``; 0: only if it is free."""

    def clear(self, ident: int) -> None:
        """Take the program with this id off."""

    def why(self, error: OSError) -> str:
        """Why the place refused, for people."""
