"""Tries the bpf(2) calls that the agent needs, and reads which objects are pinned and used.

It uses plain system calls, because the doctor must find problems even before BCC is installed.
Every object that it makes is gone when its descriptor is closed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lbctl.doctor.facts import Attempt, Entry

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD, _OBJ_GET = 0, 1, 5, 7
_PROG_GET_NEXT_ID, _PROG_GET_FD, _OBJ_GET_INFO = 11, 13, 15
_ARRAY, _MMAPABLE = 2, 1 << 10
_SCHED_CLS, _XDP = 3, 6
# r0 = XDP_PASS; exit
_PASS = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)
_ATTR_SIZE = 128
# struct bpf_prog_info and bpf_map_info begin with type and id; for a program there follow:
_MAP_IDS_AT, _NAME_AT, _PROGRAM_BYTES = 52, 64, 80


def mappable_array() -> Attempt | None:
    """Try to make an array with BPF_F_MMAPABLE."""
    return _attempt(_MAP_CREATE, struct.pack("=5I", _ARRAY, 4, 64, 1, _MMAPABLE))


def xdp_program() -> Attempt | None:
    """Try to load an XDP program of two instructions."""
    code = ctypes.create_string_buffer(_PASS, len(_PASS))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQ", _XDP, len(_PASS) // 8, ctypes.addressof(code), ctypes.addressof(licence)
    )
    return _attempt(_PROG_LOAD, attr)


def pinned_program_id(path: Path) -> int | None:
    """Return the id of a pinned XDP or tc program; None if it cannot be opened, or is not a
    program.
    """
    with _pinned(path) as fd:
        info = None if fd is None else _info(fd, bytes(8))
    if info is None:
        return None
    kind, ident = struct.unpack("=II", info)
    return int(ident) if kind in (_SCHED_CLS, _XDP) else None


def entry(path: Path) -> Entry | None:
    """Return a pinned array of programs: the program in slot 0, and the programs that use the
    array.

    None if it cannot be opened.
    """
    with _pinned(path) as fd:
        info = None if fd is None else _info(fd, bytes(8))
        if fd is None or info is None:
            return None
        key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(4)
        at = (ctypes.addressof(key), ctypes.addressof(value))
        found = _bpf(_MAP_LOOKUP, struct.pack("=IIQQQ", fd, 0, *at, 0))
    program = struct.unpack_from("=I", value.raw)[0] if found == 0 else 0
    return Entry(str(path), program, tuple(_users(struct.unpack("=II", info)[1])))


def _users(table: int) -> Iterator[str]:
    """Yield the names of the loaded programs that use a map."""
    for ident in _programs():
        with _opened(_PROG_GET_FD, struct.pack("=I", ident)) as fd:
            info = None if fd is None else _info(fd, bytes(_PROGRAM_BYTES))
            if fd is None or info is None:
                continue  # it has gone in the meantime
            (count,) = struct.unpack_from("=I", info, _MAP_IDS_AT)
            maps = (ctypes.c_uint32 * count)()
            ask = bytearray(_PROGRAM_BYTES)
            struct.pack_into("=IQ", ask, _MAP_IDS_AT, count, ctypes.addressof(maps))
            if _info(fd, bytes(ask)) is not None and table in list(maps):
                yield info[_NAME_AT:].split(b"\0", 1)[0].decode()


def _programs() -> Iterator[int]:
    ident = 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("=II", ident, 0), _ATTR_SIZE)
        if _call(_PROG_GET_NEXT_ID, attr) != 0:
            return
        ident = struct.unpack_from("=I", attr.raw, 4)[0]
        yield ident


@contextmanager
def _pinned(path: Path) -> Iterator[int | None]:
    name = ctypes.create_string_buffer(os.fsencode(path))
    with _opened(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0)) as fd:
        yield fd


@contextmanager
def _opened(command: int, attr: bytes) -> Iterator[int | None]:
    """Yield the descriptor that a call returns; None if the call fails."""
    fd = _bpf(command, attr)
    if fd is None or fd < 0:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _info(fd: int, ask: bytes) -> bytes | None:
    """Return the first ``len(ask)`` bytes of the kernel's information on an object."""
    info = ctypes.create_string_buffer(ask, len(ask))
    attr = struct.pack("=IIQ", fd, len(info), ctypes.addressof(info))
    return info.raw if _bpf(_OBJ_GET_INFO, attr) == 0 else None


def _attempt(command: int, attr: bytes) -> Attempt | None:
    result = _bpf(command, attr)
    if result is None:
        return None
    if result < 0:
        return Attempt(os.strerror(-result))
    os.close(result)
    return Attempt()


def _bpf(command: int, attr: bytes) -> int | None:
    return _call(command, ctypes.create_string_buffer(attr, _ATTR_SIZE))


def _call(command: int, attr: ctypes.Array[ctypes.c_char]) -> int | None:
    """Return a descriptor or 0, or the negative errno; None if the call's number is not known."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), command, attr, _ATTR_SIZE))
    return -ctypes.get_errno() if result < 0 else result
