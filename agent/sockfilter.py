"""Attaches classic BPF to sockets: packets that the filter refuses cost the process nothing.

Steps are as in linux/filter.h: a code, how many steps to jump if a test is true and if it is false,
and an operand. Offsets are from the start of the socket's data.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable

type Step = tuple[int, int, int, int]

# Load a byte; load two bytes; load two bytes relative to the index register; load the length of the
# IPv4 header into the index register.
LD_B, LD_H, LD_H_X, LDX_LENGTH = 0x30, 0x28, 0x48, 0xB1
# Jump if the value equals the operand; is greater; is greater or equal; has bits in common with it.
JEQ, JGT, JGE, JSET = 0x15, 0x25, 0x35, 0x45
RET = 0x06  # accept so many bytes of the packet; 0: refuse it

_SO_ATTACH_FILTER = 26  # the socket module does not name it
_STEP = struct.Struct("@HBBI")


def attach(to: socket.socket, steps: Iterable[Step]) -> None:
    """Make the socket receive only what these steps accept from now on. Raises OSError."""
    code = b"".join(_STEP.pack(*step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // _STEP.size, ctypes.addressof(buffer))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
