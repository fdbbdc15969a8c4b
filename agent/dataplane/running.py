"""Takes over the running program, if it is what would be loaded: a restart with nothing changed
compiles nothing, loads nothing and swaps nothing.

A note beside the tables says what the program was made of (``objects.key_of``).
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Collection

from agent.dataplane import btf, libbpf
from agent.dataplane.compile import Compiled, Origin
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.pins import Pins

TABLE = "made_of"
_NOTE = struct.Struct("=I64s")  # the program's id; the key
_FIRST = bytes(4)


def note(pins: Pins, ident: int, key: str) -> None:
    """Note what the pinned program is made of."""
    path = pins.table(TABLE)
    if path.exists():
        fd = libbpf.object_get(path)
    else:
        fd = libbpf.array_create(TABLE, _NOTE.size, 1, 0)
        libbpf.object_pin(fd, path)
    try:
        libbpf.map_update(fd, _FIRST, _NOTE.pack(ident, key.encode()))
    finally:
        os.close(fd)


def adopt(pins: Pins, key: str, kind: ProgramType, wanted: Collection[str]) -> Compiled | None:
    """Return the pinned program if it is made of what ``key`` names.

    All ``wanted`` tables must be pinned, and what is pinned must be the tables that it uses.
    """
    started = time.monotonic()
    if not all(pins.table(name).exists() for name in wanted):
        return None
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:

        def keep(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        fd = keep(libbpf.object_get(pins.program))
        info = libbpf.program_info(fd)
        if _noted(pins) != (info.id, key) or info.type != kind:
            return None
        descriptors = [keep(libbpf.map_fd(number)) for number in libbpf.program_maps(fd)]
        tables = {libbpf.map_info(table).name: table for table in descriptors}
        if not _pinned(pins, tables):
            return None
        layout = btf.parse(libbpf.btf_data(info.btf_id))
        seconds = time.monotonic() - started
        release = opened.pop_all().close
        return Compiled(fd, tables, info, layout, seconds, kind, release, Origin.RUNNING, key=key)
    return None


def _noted(pins: Pins) -> tuple[int, str] | None:
    path = pins.table(TABLE)
    if not path.exists():
        return None
    fd = libbpf.object_get(path)
    try:
        value = libbpf.map_lookup(fd, _FIRST, _NOTE.size)
    finally:
        os.close(fd)
    if value is None:
        return None
    ident, key = _NOTE.unpack(value)
    return ident, key.decode()


def _pinned(pins: Pins, tables: dict[str, int]) -> bool:
    """Return whether the maps that are pinned under the tables' names are these tables."""
    for name, table in tables.items():
        path = pins.table(name)
        if not path.exists():
            continue
        fd = libbpf.object_get(path)
        try:
            if libbpf.map_info(fd).id != libbpf.map_info(table).id:
                return False
        finally:
            os.close(fd)
    return True
