"""Encodes and decodes the parts of which all netlink messages consist (netlink(7)): headers and
attributes. Pure, and without pyroute2, whose calls take milliseconds or start an event loop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

REQUEST = 0x1  # NLM_F_REQUEST
ERROR, DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_TYPE_MASK = 0x3FFF  # the upper two bits of an attribute's type are flags


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the kernel: its type, flags and sequence number, and what is behind these."""

    kind: int
    flags: int
    sequence: int
    body: bytes

    @property
    def error(self) -> int:
        """The errno of an ERROR or DONE; 0: it was done."""
        return -struct.unpack_from("=i", self.body)[0] if len(self.body) >= 4 else 0


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return a request with its header."""
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, kind, REQUEST | flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded so that the next one is aligned."""
    padding = b"\0" * (-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def messages(data: bytes) -> Iterator[Message]:
    """Yield the messages that one receive call returned, up to one that is truncated."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            return  # the buffer was too small for it
        yield Message(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes in a message or in another attribute, by type."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found
