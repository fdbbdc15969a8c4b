"""Defines what every hook can do: report which program is attached, attach one, detach one."""

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
        """Return the id of the program in this place; 0: none."""

    def put(self, fd: int, over: int) -> None:
        """Put a program here, atomically in the place of ``over``; 0: only if the place is free."""

    def clear(self, ident: int) -> None:
        """Take off the program with this id."""

    def why(self, error: OSError) -> str:
        """Return why the place refused, in words for people."""
