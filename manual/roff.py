"""Decides how text becomes roff, in the macros of man(7), which groff and mandoc both read.

Input text is never interpreted as a macro or an escape. Markdown's `code`, **strong** and
[links](…) are converted, because help texts and the reference use them.
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
    """Return text for copying: each character as it is, with plain hyphens."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def bold(text: str) -> str:
    """Return literal text in bold."""
    return rf"\fB{literal(text)}\fR"


def italic(text: str) -> str:
    """Return literal text in italics, for placeholders."""
    return rf"\fI{literal(text)}\fR"


def prose(text: str) -> str:
    """Return a paragraph in one line, with its Markdown converted."""
    parts, at = [], 0
    joined = " ".join(text.split())
    for found in _INLINE.finditer(joined):
        code, strong, link = found.groups()
        parts.append(_plain(joined[at : found.start()]))
        parts.append(bold(code or strong) if link is None else prose(link))
        at = found.end()
    return "".join([*parts, _plain(joined[at:])])


def _plain(text: str) -> str:
    """Return text in which hyphens between words stay, and those of options are literal."""
    escaped, at = [], 0
    for found in _OPTION.finditer(text):
        escaped += [_words(text[at : found.start()]), literal(found[0])]
        at = found.end()
    return "".join([*escaped, _words(text[at:])])


def _words(text: str) -> str:
    return literal(text).replace(r"\-", "-")


def line(text: str) -> str:
    """Return a line of text that cannot be read as a macro."""
    return rf"\&{text}" if text.startswith((".", "'")) else text


def _filled(text: str) -> list[str]:
    """Return a paragraph in lines of a readable length."""
    return [line(each) for each in textwrap.wrap(prose(text), _WIDTH, **_AT_SPACES)]


def macro(name: str, *arguments: str) -> str:
    """Return a macro call; its arguments must be escaped already."""
    quoted = (argument.replace('"', r"\(dq") for argument in arguments)
    return " ".join([f".{name}", *(f'"{argument}"' for argument in quoted)])


def section(title: str) -> str:
    """Return a heading; the name of a key, in backticks, keeps its case."""
    shown = title if "`" in title else title.upper()
    return macro("SH", literal(shown.replace("`", "")))


def subsection(title: str) -> str:
    """Return a heading of the second level."""
    return macro("SS", literal(title))


def paragraph(text: str) -> list[str]:
    """Return a filled paragraph."""
    return [".PP", *_filled(text)]


def item(label: str, text: str) -> list[str]:
    """Return a label, which is roff already, and its text."""
    return [".TP", line(label), *(_filled(text) or [r"\&"])]


def bullet(text: str) -> list[str]:
    """Return an entry of a list."""
    return [r".IP \(bu 2", *_filled(text)]


def code(lines: Iterable[str]) -> list[str]:
    """Return lines for copying, with their line breaks."""
    return [".PP", ".RS 4", ".EX", *(line(literal(each)) for each in lines), ".EE", ".RE"]


def page(title: str, number: int, date: str, version: str, body: Iterable[str]) -> str:
    """Return a whole page."""
    head = macro("TH", literal(title.upper()), str(number), date, f"Steelyard {version}")
    lines = [head]
    for each in body:
        if not (
            each == ".PP" and lines[-1].startswith((".SH", ".SS"))
        ):  # the heading begins a paragraph already
            lines.append(each)
    return "\n".join(lines) + "\n"


def from_markdown(text: str) -> list[str]:
    """Convert headings, paragraphs, lists, code and tables of our own references to roff.

    The title and comments are left out.
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
    """Yield blocks of lines; a block of code begins with its fence, and lacks the closing one."""
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
    """Yield keys with their values, defaults and meanings; the heading row is left out."""
    for row in rows[2:]:
        cells = [cell.strip().replace("\\|", "|") for cell in _CELL.split(row)[1:-1]]
        key, value, default, text = cells
        notes = f" [{prose(default)}]" if default else ""
        yield from item(f"{prose(key)} {prose(value)}{notes}", text)
