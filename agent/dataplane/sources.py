"""Finds the BPF sources and joins them into the one text that BCC compiles.

BCC rewrites map accesses only in the main file, never in files that it includes, so every
``#include "…"`` of our own headers is resolved here. ``#line`` keeps the compiler's messages true.
"""

from __future__ import annotations

import re
from pathlib import Path

from agent.errors import DataplaneError

_INCLUDE = re.compile(r'#include "([^"]+)"')


def source_folder() -> Path:
    """Return the folder ``bpf``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_bpf", package.parent / "bpf"):
        if (folder / "include" / "abi.h").exists():
            return folder
    raise DataplaneError(
        "the BPF sources are missing",
        where=str(package),
        remedy="reinstall steelyard: the wheel contains them in agent/_bpf",
    )


def header_tree() -> Path:
    """Return the kernel source tree that BCC is given instead of the host's headers."""
    return source_folder() / "kernel"


def joined(name: str) -> str:
    """Return the text of ``bpf/<name>`` with our own headers in place, each once."""
    folder = source_folder()
    return "\n".join(_lines(folder / name, folder, set())) + "\n"


def _lines(path: Path, folder: Path, seen: set[Path]) -> list[str]:
    lines = [f'#line 1 "{path}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = _INCLUDE.match(line)
        if match is None:
            lines.append(line)
            continue
        header = next(p for p in (folder / match[1], folder / "include" / match[1]) if p.exists())
        if header not in seen:
            seen.add(header)
            lines += _lines(header, folder, seen)
        lines.append(f'#line {number + 1} "{path}"')
    return lines
