"""Recognises our programs among all others: they use the tables that this instance has pinned."""

from __future__ import annotations

import os
from pathlib import Path

from agent.dataplane import libbpf
from agent.dataplane.pins import Pins

_TABLE = "flows"  # every program of every ABI uses it


class Owned:
    """The programs of one instance, of any ABI, as of now."""

    def __init__(self, pins: Pins) -> None:
        paths = (one.table(_TABLE) for one in (pins, *pins.of_other_versions()))
        self._tables = frozenset(_map_id(path) for path in paths if path.exists())

    def __contains__(self, ident: int) -> bool:
        if not ident or not self._tables:
            return False
        try:
            fd = libbpf.program_fd(ident)
        except OSError:  # it was unloaded meanwhile
            return False
        try:
            return not self._tables.isdisjoint(libbpf.program_maps(fd))
        finally:
            os.close(fd)


def _map_id(path: Path) -> int:
    fd = libbpf.object_get(path)
    try:
        return libbpf.map_info(fd).id
    finally:
        os.close(fd)
