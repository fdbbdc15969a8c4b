"""Finds out which instance a loaded program belongs to, even if nothing of it is pinned any more.

Every program keeps two small tables alive besides those that it uses: the name of its instance, and
the settings with which its flows are hashed. A program therefore leads to all of its tables.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from agent.dataplane import abi, libbpf
from agent.dataplane.hooks.own import Owned
from agent.dataplane.pins import BPFFS, Pins, make, pins_of

TABLE = "instance"
FLOWS = "flows"  # every program uses it
_NAME_BYTES = 64
_FIRST = bytes(4)
ENTRY = "entry"  # where other programs call ours, with `hook: external`


def mark(program: int, pins: Pins, name: str) -> None:
    """Have the program with this descriptor keep the name and the settings of its instance."""
    write_name(pins, name)
    for table in (TABLE, "settings"):
        fd = libbpf.object_get(pins.table(table))
        try:
            # Kernels before 5.10 cannot do this; there, only pins show the owner.
            with contextlib.suppress(OSError):
                libbpf.program_bind_map(program, fd)
        finally:
            os.close(fd)


def write_name(pins: Pins, name: str) -> None:
    """Write which instance the tables belong to."""
    path = pins.table(TABLE)
    if path.exists():
        fd = libbpf.object_get(path)
    else:
        fd = libbpf.array_create(TABLE, _NAME_BYTES, 1, 0)
        libbpf.object_pin(fd, path)
    try:
        libbpf.map_update(fd, _FIRST, name.encode().ljust(_NAME_BYTES, b"\0"))
    finally:
        os.close(fd)


def owner_of(ident: int, root: Path = BPFFS) -> str | None:
    """Return the name of the instance that a loaded program belongs to; None if it is not
    Steelyard's.
    """
    try:
        name = _name_in(_tables_of(ident))
    except OSError:  # it was unloaded meanwhile
        return None
    if name is not None:
        return name
    folders = (root / "steelyard").glob("*/")
    return next((one.name for one in folders if ident in Owned(pins_of(one.name, root))), None)


def rescue(
    name: str, wanted: frozenset[str], attached: Collection[int], root: Path = BPFFS
) -> list[str]:
    """Pin again what a program of this instance uses and is not pinned any more; return the names.

    ``wanted``: the tables that should be pinned. ``attached``: the ids of the programs on our
    interfaces. Programs elsewhere are ignored, because a container on this host may have an
    instance of the same name.
    """
    callers = {ident: _tables(ident) for ident in attached}
    entries = {maps[ENTRY]: _called(maps[ENTRY]) for maps in callers.values() if ENTRY in maps}
    found = callers | {ident: _tables(ident) for ident in entries.values() if ident}
    ours = {ident: maps for ident, maps in found.items() if _name_in(maps) == name}
    if not ours:
        return []
    ident = max(ours)
    version = _abi_in(ours[ident])
    if version is None:
        return []
    pins = Pins(pins_of(name, root).folder.with_name(f"abi{version}"))
    make(pins)
    rescued = [
        table
        for table, number in ours[ident].items()
        if table in wanted | {TABLE} and _pin(libbpf.map_fd(number), pins.table(table))
    ]
    if rescued and pins.last_program is None and _pin(libbpf.program_fd(ident), pins.program):
        rescued.append(pins.program.name)
    # Callers have opened that program array, and would never see another one.
    entry = next((number for number, called in entries.items() if called in ours), None)
    if entry is not None and _pin(libbpf.map_fd(entry), pins.entry):
        rescued.append(ENTRY)
    return rescued


def _called(number: int) -> int:
    """Return the id of the program in the first slot of a program array; 0: none."""
    with contextlib.suppress(OSError), _descriptor(libbpf.map_fd(number)) as fd:
        info = libbpf.map_info(fd)
        if info.type == libbpf.MAP_TYPE_PROG_ARRAY:
            value = libbpf.map_lookup(fd, _FIRST, 4)
            return int.from_bytes(value, "little") if value else 0
    return 0


def _tables(ident: int) -> dict[str, int]:
    """Return the ids of a program's tables by name; empty if the program is gone."""
    with contextlib.suppress(OSError):
        return _tables_of(ident)
    return {}


def _pin(fd: int, path: Path) -> bool:
    """Pin what the descriptor stands for unless the path exists; close the descriptor."""
    with _descriptor(fd):
        if path.exists():
            return False
        libbpf.object_pin(fd, path)
        return True


def _tables_of(ident: int) -> dict[str, int]:
    found = {}
    with _descriptor(libbpf.program_fd(ident)) as program:
        for number in libbpf.program_maps(program):
            with _descriptor(libbpf.map_fd(number)) as fd:
                found[libbpf.map_info(fd).name] = number
    return found


def _name_in(maps: dict[str, int]) -> str | None:
    value = _value(maps, TABLE, _NAME_BYTES)
    return value.rstrip(b"\0").decode(errors="replace") if value else None


def _abi_in(maps: dict[str, int]) -> int | None:
    value = _value(maps, "settings", abi.SETTINGS.itemsize)
    return int(np.frombuffer(value, dtype=abi.SETTINGS)["abi"][0]) if value else None


def _value(maps: dict[str, int], table: str, size: int) -> bytes | None:
    if table not in maps:
        return None
    with _descriptor(libbpf.map_fd(maps[table])) as fd:
        fits = libbpf.map_info(fd).value_size == size
        return libbpf.map_lookup(fd, _FIRST, size) if fits else None


@contextlib.contextmanager
def _descriptor(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
