"""Reads layouts and functions out of BTF (Documentation/bpf/btf.rst of the kernel).

It reads what the ABI check needs, which is sizes, member offsets and enum values by name, and the
ids of functions, without which the kernel keeps no BTF of a program.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_MAGIC = 0xEB9F
_KIND_INT, _KIND_ARRAY, _KIND_STRUCT, _KIND_UNION, _KIND_ENUM = 1, 3, 4, 5, 6
_KIND_FUNC, _KIND_FUNC_PROTO, _KIND_VAR, _KIND_DATASEC = 12, 13, 14, 15
_KIND_DECL_TAG, _KIND_ENUM64 = 17, 19


@dataclass(frozen=True, slots=True)
class StructLayout:
    """Size and member offsets, in bytes."""

    size: int
    offsets: dict[str, int]

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each member in bytes, if no member is followed by unnamed padding."""
        ends = [*sorted(self.offsets.values()), self.size]
        return {
            name: ends[ends.index(offset) + 1] - offset for name, offset in self.offsets.items()
        }


@dataclass(frozen=True, slots=True)
class Btf:
    """Named structs and enums of one program, and the type ids of its functions."""

    structs: dict[str, StructLayout]
    enums: dict[str, dict[str, int]]
    functions: dict[str, int]


def _trailer_size(kind: int, vlen: int) -> int:
    """Return how many bytes follow the 12-byte ``struct btf_type`` of such a type."""
    return {
        _KIND_INT: 4,
        _KIND_ARRAY: 12,
        _KIND_STRUCT: 12 * vlen,
        _KIND_UNION: 12 * vlen,
        _KIND_ENUM: 8 * vlen,
        _KIND_FUNC_PROTO: 8 * vlen,
        _KIND_VAR: 4,
        _KIND_DATASEC: 12 * vlen,
        _KIND_DECL_TAG: 4,
        _KIND_ENUM64: 12 * vlen,
    }.get(kind, 0)


def parse(data: bytes) -> Btf:
    """Return the layouts of a raw BTF blob.

    ValueError: it is not BTF, or not of this machine's byte order.
    """
    magic, _, _, hdr_len, type_off, type_len, str_off, str_len = struct.unpack_from(
        "=HBBIIIII", data
    )
    if magic != _MAGIC:
        raise ValueError(f"not BTF: magic {magic:#x}")
    strings = data[hdr_len + str_off : hdr_len + str_off + str_len]

    def name_at(offset: int) -> str:
        return strings[offset : strings.index(b"\0", offset)].decode()

    structs: dict[str, StructLayout] = {}
    enums: dict[str, dict[str, int]] = {}
    functions: dict[str, int] = {}
    number = 0  # the type id of void; the first type has 1
    at, end = hdr_len + type_off, hdr_len + type_off + type_len
    while at < end:
        name_off, info, size = struct.unpack_from("=III", data, at)
        vlen, kind, bitfields = info & 0xFFFF, (info >> 24) & 0x1F, info >> 31
        at += 12
        number += 1
        if kind == _KIND_STRUCT:
            offsets = {}
            for i in range(vlen):
                member_name, _, bits = struct.unpack_from("=III", data, at + 12 * i)
                offsets[name_at(member_name)] = (bits & 0xFFFFFF if bitfields else bits) // 8
            structs[name_at(name_off)] = StructLayout(size, offsets)
        elif kind == _KIND_ENUM:
            enums[name_at(name_off)] = {
                name_at(label): value
                for label, value in struct.iter_unpack("=Ii", data[at : at + 8 * vlen])
            }
        elif kind == _KIND_FUNC:
            functions[name_at(name_off)] = number
        at += _trailer_size(kind, vlen)
    return Btf(structs, enums, functions)
