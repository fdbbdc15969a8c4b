"""Attaches classic BPF to sockets: what a filter refuses costs the process nothing.

Steps are as in linux/filter.h: a code, how many steps to jump if a test is true and if it is false,
and an operand. Offsets are from where the socket's data begin.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable

type Step = tuple[int, int, int, int]

# Loads of a byte, of two, of two at the index; of the length of an IPv4 header into the index.
LD_B, LD_H, LD_H_X, LDX_LENGTH = 0x30, 0x28, 0x48, 0xB1
# Jumps, by what the value is to the operand: equal, more, as much or more, with bits in common.
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
RET = 0x06  # with so many bytes of the packet; 0: it is refused

_SO_ATTACH_FILTER = 26  # the socket module does not name it
_STEP = struct.Struct("@HBBI")


def attach(to: socket.socket, steps: Iterable[Step]) -> None:
    """From now on the socket gets only what these steps accept. Raises OSError."""
    code = b"".join(_STEP.pack(*step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // _STEP.size, ctypes.addressof(buffer))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
