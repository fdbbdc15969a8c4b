"""Reads ``bpf/include/abi.h`` as text: an opinion on its layouts that no compiler had a part in."""

from __future__ import annotations

import re

import numpy as np

from agent.dataplane import sources

PATH = sources.source_folder() / "include" / "abi.h"
_TYPES = {
    "__u8": "u1",
    "__u16": "<u2",
    "__u32": "<u4",
    "__s32": "<i4",
    "__u64": "<u8",
    "__s64": "<i8",
    "__be16": ">u2",
    "__be32": ">u4",
}
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"struct (\w+) \{(.*?)\n\};", re.DOTALL)
_ENUM = re.compile(r"enum (\w+) \{(.*?)\n\};", re.DOTALL)
_FIELD = re.compile(r"(\w+) (\w+)(?:\[(\w+)\])?;")
_DEFINE = re.compile(r"^#define (\w+) (\S+)$", re.MULTILINE)


def text() -> str:
    return _COMMENT.sub("", PATH.read_text())


def enums() -> dict[str, dict[str, int]]:
    return {
        name: {label: int(value) for label, value in re.findall(r"(\w+) = (\d+)", body)}
        for name, body in _ENUM.findall(text())
    }


def constants() -> dict[str, int]:
    """Every #define of a number, and every enum value."""
    found = {
        name: int(value, 0)
        for name, value in _DEFINE.findall(re.sub(r"[ \t]+$", "", text(), flags=re.MULTILINE))
        if value[0].isdigit()
    }
    for values in enums().values():
        found |= values
    return found


def structs() -> dict[str, np.dtype[np.void]]:
    """Each struct as a packed dtype: explicit padding means that nothing lies between fields."""
    known = constants()
    found = {}
    for name, body in _STRUCT.findall(text()):
        fields: list[tuple] = []
        for kind, field, length in _FIELD.findall(body):
            shape = ((int(length) if length.isdigit() else known[length]),) if length else ()
            # Structs within a struct stand before it.
            fields.append((field, _TYPES.get(kind) or found[kind], *((shape,) if shape else ())))
        found[name] = np.dtype(fields)
    return found
