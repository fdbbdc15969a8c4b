"""The external hook: another program calls ours by a tail call, through the one slot of a pinned
program array.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from agent.dataplane import libbpf

_FIRST = bytes(4)


@dataclass(frozen=True, slots=True)
class EntryPlace:
    """Slot 0 of the array at ``path``.

    The path and the array itself stay for the instance's life, because callers opened the array
    when they were loaded.
    """

    path: Path

    def current(self) -> int:
        if not self.path.exists():
            return 0
        fd = libbpf.object_get(self.path)
        try:
            value = libbpf.map_lookup(fd, _FIRST, 4)
        finally:
            os.close(fd)
        return int.from_bytes(value, "little") if value else 0

    def put(self, fd: int, over: int) -> None:  # noqa: ARG002 (the slot is ours by its name)
        self._make()
        entry = libbpf.object_get(self.path)
        try:
            libbpf.map_update(entry, _FIRST, fd.to_bytes(4, "little"))
        finally:
            os.close(entry)

    def clear(self, ident: int) -> None:
        if self.current() != ident:
            return
        entry = libbpf.object_get(self.path)
        try:
            libbpf.map_delete(entry, _FIRST)
        finally:
            os.close(entry)

    def why(self, error: OSError) -> str:
        return os.strerror(error.errno or 0)

    def _make(self) -> None:
        if self.path.exists():
            return
        fd = libbpf.program_array_create("entry", 1)
        try:
            with contextlib.suppress(FileExistsError):
                libbpf.object_pin(fd, self.path)
        finally:
            os.close(fd)
