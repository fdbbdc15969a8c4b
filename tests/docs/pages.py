"""Finds the fenced blocks of the documentation, what marks them, and the commands in them.

A block says by its info word what it holds: ``sh`` commands, ``console`` commands after ``$`` with
what they print, ``text`` neither. Above a block with commands, a comment that no reader sees says
whether ``test_running`` runs it: ``<!-- run -->`` or ``<!-- not run: REASON -->``. A ``yaml`` or
``json`` block that is not ours has ``<!-- not ours: WHOSE -->``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "vagrant/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
_FENCE = re.compile(r"^( *)```(\S*)$")
_MARK = re.compile(r"^ *<!-- ((?:not )?(?:run|ours))(?:: (.+))? -->$")
_OPERATORS = "();<>|&"
_OURS = ("lbctl", "lb-agent")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: where it begins, its info word, its lines without indent, and its mark."""

    page: Path
    line: int
    info: str
    lines: tuple[str, ...]
    mark: str = ""
    reason: str = ""

    @property
    def place(self) -> str:
        """File and line, for people."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines) + "\n"


def is_generated(page: Path) -> bool:
    """Return whether a page is written by a program, which knows no marks."""
    return re.search(r"<!-- Made from .* by `make docs`", page.read_text()[:200]) is not None


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        found = _FENCE.match(lines[number])
        if found is None:
            number += 1
            continue
        end = next(n for n in range(number + 1, len(lines)) if lines[n] == f"{found[1]}```")
        inner = tuple(line.removeprefix(found[1]) for line in lines[number + 1 : end])
        mark = _MARK.match(lines[number - 1]) if number else None
        kind, reason = (mark[1], mark[2] or "") if mark else ("", "")
        yield Block(page, number + 1, found[2], inner, kind, reason)
        number = end + 1


def prose(page: Path) -> str:
    """Return a page with empty lines for its blocks."""
    lines = page.read_text().splitlines()
    for block in blocks(page):
        lines[block.line - 1 : block.line + 1 + len(block.lines)] = [""] * (len(block.lines) + 2)
    return "\n".join(lines)


def every_block() -> list[Block]:
    """Return the blocks of all pages."""
    return [block for page in PAGES for block in blocks(page)]


@dataclass(frozen=True, slots=True)
class Shown:
    """A command of a block, and the lines below it that show what it prints."""

    line: int
    text: str
    output: tuple[str, ...] = ()


def shown(block: Block) -> list[Shown]:
    """Return the commands of a block, each with its continuation lines."""
    if block.info not in ("sh", "console"):
        return []
    found: list[Shown] = []
    prompt = block.info == "console"
    lines = list(block.lines)
    for number, line in enumerate(lines):
        if number and lines[number - 1].endswith("\\") and found:
            last = found.pop()
            found.append(Shown(last.line, f"{last.text}\n{line}"))
        elif prompt and not line.startswith("$ "):
            last = found.pop()
            found.append(Shown(last.line, last.text, (*last.output, line)))
        else:
            found.append(Shown(block.line + 1 + number, line.removeprefix("$ ")))
    return found


def our_commands(text: str) -> Iterator[list[str]]:
    """Yield the calls of lbctl and lb-agent in a command line, as words."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace_split = True
    command: list[str] = []
    to_file = False
    for word in [*lexer, ";"]:
        if word and set(word) <= set(_OPERATORS):
            to_file = word[-1] in "<>"
            if not to_file:
                yield from _ours(command)
                command = []
        elif to_file:
            to_file = False
        else:
            command.append(word)


def _ours(command: list[str]) -> Iterator[list[str]]:
    words = list(command)
    while words and (words[0] in ("sudo", "watch", "time") or "=" in words[0]):
        words.pop(0)
    if words and words[0].rpartition("/")[2] in _OURS:
        yield [words[0].rpartition("/")[2], *words[1:]]
