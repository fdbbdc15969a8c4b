"""Decides how text becomes roff, in the macros of man(7), which groff and mandoc both read.

Nothing that is given here is taken for a macro or an escape. Inside of it, Markdown's `code`,
**strong** and [links](…) are known, since that is what help texts and the reference use.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

_SPECIAL = {"\\": r"\e", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", "-": r"\-"}
_INLINE = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|(?<!!)\[([^\]]+)\]\([^)\s]+\)")
_OPTION = re.compile(r"(?<![\w-])--?\w[\w-]*")
_WIDTH = 79
_AT_SPACES: Any = {"break_long_words": False, "break_on_hyphens": False}
_CELL = re.compile(r"(?<!\\)\|")


def literal(text: str) -> str:
    """Text that is to be copied: each character as it is, hyphens not for typesetting."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def bold(text: str) -> str:
    """Literal text in bold."""
    return rf"\fB{literal(text)}\fR"


def italic(text: str) -> str:
    """Literal text in italics, for what stands for something else."""
    return rf"\fI{literal(text)}\fR"


def prose(text: str) -> str:
    """A paragraph in one line, with its Markdown."""
    parts, at = [], 0
    joined = " ".join(text.split())
    for found in _INLINE.finditer(joined):
        code, strong, link = found.groups()
        parts.append(_plain(joined[at : found.start()]))
        parts.append(bold(code or strong) if link is None else prose(link))
        at = found.end()
    return "".join([*parts, _plain(joined[at:])])


def _plain(text: str) -> str:
    """Hyphens between words stay, those of options are literal."""
    escaped, at = [], 0
    for found in _OPTION.finditer(text):
        escaped += [_words(text[at : found.start()]), literal(found[0])]
        at = found.end()
    return "".join([*escaped, _words(text[at:])])


def _words(text: str) -> str:
    return literal(text).replace(r"\-", "-")


def line(text: str) -> str:
    """A line of text that no macro is made of."""
    return rf"\&{text}" if text.startswith((".", "'")) else text


def _filled(text: str) -> list[str]:
    """A paragraph in lines that an editor shows."""
    return [line(each) for each in textwrap.wrap(prose(text), _WIDTH, **_AT_SPACES)]


def macro(name: str, *arguments: str) -> str:
    """A request with arguments that are escaped already."""
    quoted = (argument.replace('"', r"\(dq") for argument in arguments)
    return " ".join([f".{name}", *(f'"{argument}"' for argument in quoted)])


def section(title: str) -> str:
    """A heading; the name of a key, in backticks, keeps its case."""
    shown = title if "`" in title else title.upper()
    return macro("SH", literal(shown.replace("`", "")))


def subsection(title: str) -> str:
    """A heading below a heading."""
    return macro("SS", literal(title))


def paragraph(text: str) -> list[str]:
    """Filled text."""
    return [".PP", *_filled(text)]


def item(label: str, text: str) -> list[str]:
    """What a label, which is roff already, is about."""
    return [".TP", line(label), *(_filled(text) or [r"\&"])]


def bullet(text: str) -> list[str]:
    """An entry of a list."""
    return [r".IP \(bu 2", *_filled(text)]


def code(lines: Iterable[str]) -> list[str]:
    """What is to be copied, with its line breaks."""
    return [".PP", ".RS 4", ".EX", *(line(literal(each)) for each in lines), ".EE", ".RE"]


def page(title: str, number: int, date: str, version: str, body: Iterable[str]) -> str:
    """A whole page."""
    head = macro("TH", literal(title.upper()), str(number), date, f"Steelyard {version}")
    lines = [head]
    for each in body:
        if not (each == ".PP" and lines[-1].startswith((".SH", ".SS"))):  # it is one already
            lines.append(each)
    return "\n".join(lines) + "\n"


def from_markdown(text: str) -> list[str]:
    """Headings, paragraphs, lists, code and tables of the references that we write ourselves.

    The title, and comments, are left out.
    """
    made: list[str] = []
    for block in _blocks(text.splitlines()):
        first = block[0]
        if first.startswith("## "):
            made.append(section(first.removeprefix("## ")))
        elif first.startswith("```"):
            made += code(block[1:])
        elif first.startswith("|"):
            made += _table(block)
        elif first.startswith("- "):
            made += bullet(" ".join(block).removeprefix("- "))
        elif not first.startswith(("# ", "<!--")):
            made += paragraph(" ".join(block))
    return made


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lines that belong together; a block of code begins with its fence, and has no end."""
    block: list[str] = []
    fenced = False
    for each in lines:
        if each.startswith("```"):
            if block:
                yield block
            block, fenced = ([] if fenced else [each]), not fenced
        elif fenced:
            block.append(each)
        elif not each.strip() or each.startswith(("- ", "#")):
            if block:
                yield block
            block = [each] if each.strip() else []
        else:
            block.append(each)
    if block:
        yield block


def _table(rows: list[str]) -> Iterator[str]:
    """Keys with their values, defaults and meanings; the heading says nothing more."""
    for row in rows[2:]:
        cells = [cell.strip().replace("\\|", "|") for cell in _CELL.split(row)[1:-1]]
        key, value, default, text = cells
        notes = f" [{prose(default)}]" if default else ""
        yield from item(f"{prose(key)} {prose(value)}{notes}", text)
