"""Tries what the agent needs of bpf(2): a mappable array, an XDP program, a pinned program's id.

Plain system calls: the doctor must tell what is wrong where BCC is not installed yet. What it
makes is gone when its descriptor is closed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

from lbctl.doctor.facts import Attempt

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _PROG_LOAD, _OBJ_GET, _OBJ_GET_INFO = 0, 5, 7, 15
_ARRAY, _MMAPABLE = 2, 1 << 10
_XDP = 6
# r0 = XDP_PASS; exit
_PASS = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)
_ATTR_SIZE = 128


def mappable_array() -> Attempt | None:
    """Whether an array with BPF_F_MMAPABLE can be made."""
    return _attempt(_MAP_CREATE, struct.pack("=5I", _ARRAY, 4, 64, 1, _MMAPABLE))


def xdp_program() -> Attempt | None:
    """Whether the kernel takes an XDP program of two instructions."""
    code = ctypes.create_string_buffer(_PASS, len(_PASS))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQ", _XDP, len(_PASS) // 8, ctypes.addressof(code), ctypes.addressof(licence)
    )
    return _attempt(_PROG_LOAD, attr)


def pinned_program_id(path: Path) -> int | None:
    """The id of a pinned program; None if it cannot be opened, or is none."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    fd = _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))
    if fd is None or fd < 0:
        return None
    try:
        info = ctypes.create_string_buffer(8)  # struct bpf_prog_info begins with type and id
        attr = struct.pack("=IIQ", fd, len(info), ctypes.addressof(info))
        result = _bpf(_OBJ_GET_INFO, attr)
        if result is None or result < 0:
            return None
        kind, ident = struct.unpack("=II", info.raw)
        return int(ident) if kind == _XDP else None
    finally:
        os.close(fd)


def _attempt(command: int, attr: bytes) -> Attempt | None:
    result = _bpf(command, attr)
    if result is None:
        return None
    if result < 0:
        return Attempt(os.strerror(-result))
    os.close(result)
    return Attempt()


def _bpf(command: int, attr: bytes) -> int | None:
    """A descriptor or 0, or the negative errno; None where the call's number is not known."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        return None
    buffer = ctypes.create_string_buffer(attr, _ATTR_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), command, buffer, _ATTR_SIZE))
    return -ctypes.get_errno() if result < 0 else result
