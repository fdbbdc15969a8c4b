"""Reads and switches the offloads of a network card (include/uapi/linux/ethtool.h)."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_SS_FEATURES = 4
_NAME_BYTES = 32
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Offload:
    """The state of an offload; ``fixed``: the driver does not allow changing it."""

    on: bool
    fixed: bool


def offloads(interface: str) -> dict[str, Offload]:
    """Return all offloads of an interface by the kernel's names. OSError if it reports none."""
    names = _names(interface)
    words = _words(len(names))
    answer = _ask(interface, struct.pack("=II", _GFEATURES, words), 8 + 16 * words)
    found = {}
    for bit, name in enumerate(names):
        word, mask = bit // _WORD_BITS, 1 << bit % _WORD_BITS
        available, _wanted, active, never = struct.unpack_from("=4I", answer, 8 + 16 * word)
        changeable = available & mask and not never & mask
        found[name] = Offload(bool(active & mask), not changeable)
    return found


def turn_off(interface: str, name: str) -> None:
    """Switch an offload off. OSError if the driver refuses."""
    names = _names(interface)
    words, bit = _words(len(names)), names.index(name)
    request = bytearray(struct.pack("=II", _SFEATURES, words).ljust(8 + 8 * words, b"\0"))
    struct.pack_into("=II", request, 8 + 8 * (bit // _WORD_BITS), 1 << bit % _WORD_BITS, 0)
    _ask(interface, bytes(request), len(request))
    if offloads(interface)[name].on:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), interface)


def _words(bits: int) -> int:
    return -(-bits // _WORD_BITS)


def _names(interface: str) -> list[str]:
    request = struct.pack("=IIQ", _GSSET_INFO, 0, 1 << _SS_FEATURES)
    (count,) = struct.unpack_from("=I", _ask(interface, request, 20), 16)
    request = struct.pack("=III", _GSTRINGS, _SS_FEATURES, count)
    text = _ask(interface, request, 12 + _NAME_BYTES * count)[12:]
    rows = (text[at : at + _NAME_BYTES] for at in range(0, len(text), _NAME_BYTES))
    return [row.split(b"\0", 1)[0].decode() for row in rows]


def _ask(interface: str, request: bytes, size: int) -> bytes:
    buffer = array.array("B", request.ljust(size, b"\0"))
    call = struct.pack("@16sP", interface.encode(), buffer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, call)
    return buffer.tobytes()
