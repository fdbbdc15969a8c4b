"""Reads the grammar of keepalived.conf(5): words, blocks in braces, comments from ``#`` or ``!``.

What the words mean is decided by ``lbctl.keepalived``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import ConfigError


@dataclass(slots=True)
class Statement:
    """Some words, the line that they are on, and the statements in their braces, if any."""

    words: list[str]
    line: int
    inner: list[Statement] | None = None

    @property
    def name(self) -> str:
        """The first word."""
        return self.words[0]

    @property
    def value(self) -> str:
        """The second word, or an empty text."""
        return self.words[1] if len(self.words) > 1 else ""

    def all(self, *names: str) -> list[Statement]:
        """Return the statements in the braces that begin with one of these words."""
        return [each for each in self.inner or () if each.name in names]

    def one(self, *names: str) -> Statement | None:
        """Return the last of them: it is the one that counts."""
        found = self.all(*names)
        return found[-1] if found else None


def parse(text: str, where: str) -> list[Statement]:
    """Return the statements of a file. Raises ConfigError if its braces or quotes do not match."""
    top: list[Statement] = []
    open_: list[tuple[Statement, list[Statement]]] = []
    here, words, number = top, list[str](), 0

    def end() -> None:
        if words:
            here.append(Statement(list(words), number))
            words.clear()

    for number, line in enumerate(text.splitlines(), 1):
        for word in _tokens(line, f"{where}:{number}"):
            if word == "{":
                if not words and here and here[-1].inner is None:
                    words.extend(here.pop().words)  # the brace is on a line of its own
                block = Statement(list(words) or ["{"], number, [])
                words.clear()
                here.append(block)
                open_.append((block, here))
                here = block.inner or []
                block.inner = here
            elif word == "}":
                end()
                if not open_:
                    raise wrong(f"{where}:{number}", "a brace is closed that was not opened")
                here = open_.pop()[1]
            else:
                words.append(word)
        end()
    if open_:
        begun = open_[-1][0]
        raise wrong(f"{where}:{begun.line}", f"the braces of {begun.name} are not closed")
    return top


def wrong(where: str, message: str) -> ConfigError:
    """Return the error for a file that keepalived would not accept either."""
    return ConfigError(message, where=where, remedy="keepalived -t -f FILE says what it thinks")


def _tokens(line: str, where: str) -> Iterator[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="{}")
    lexer.commenters = "#!"
    lexer.whitespace_split = True
    lexer.escape = ""
    try:
        for token in lexer:
            yield from re.findall(r"[{}]", token) if set(token) <= {"{", "}"} else [token]
    except ValueError as error:
        raise wrong(where, "a quote is not closed") from error
