"""Reads the grammar of HAProxy's configuration (its manual, 3.0, section 2): lines of words.

What the words mean is decided by the other modules. Environment variables are named and not
evaluated, because only the process that runs HAProxy knows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import ConfigError

_SPACE = " \t\v\f"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", " ": " ", "\\": "\\", "#": "#", "'": "'", '"': '"'}
# Only the names of HAProxy's own pseudo-variables begin with a dot.
_VARIABLE = re.compile(r"\$(\{)?([A-Za-z_.][A-Za-z0-9_]*)")
_REST = re.compile(r"(?:\[\*\])?(?:-[^}]*)?\}")
_HEX = re.compile(r"[0-9a-fA-F]{2}")


@dataclass(frozen=True, slots=True)
class Line:
    """A statement: its words without quotes and escapes, and the number of its line.

    ``off``: it began with ``no`` or ``default``, which take back an option. ``variables``: the
    names of the environment variables in it.
    """

    line: int
    words: tuple[str, ...]
    off: bool = False
    variables: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The first word."""
        return self.words[0]

    def word(self, number: int) -> str:
        """Return the word with this number, counted from 0, or an empty text."""
        return self.words[number] if number < len(self.words) else ""


def parse(text: str, where: str) -> list[Line]:
    """Return the statements of a file. Raises ConfigError where HAProxy would refuse the file."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        reader = _Reader(line, f"{where}:{number}")
        words = [*reader.words()]
        off = len(words) > 1 and words[0] in ("no", "default")
        if words:
            variables = tuple(dict.fromkeys(reader.variables))
            found.append(Line(number, tuple(words[1:] if off else words), off, variables))
    return found


def wrong(where: str, message: str) -> ConfigError:
    """Return the error for a file that HAProxy would not accept either."""
    return ConfigError(message, where=where, remedy="haproxy -c -f FILE says what it thinks")


class _Reader:
    """Splits one line into words."""

    def __init__(self, line: str, where: str) -> None:
        self._line, self._where = line, where
        self._at = 0
        self.variables: list[str] = []

    def words(self) -> Iterator[str]:
        """Yield the words up to a comment or the end of the line."""
        word: list[str] | None = None
        quote = ""
        line = self._line
        while self._at < len(line):
            char = line[self._at]
            if char == "\r" or (char == "#" and not quote):
                break
            if char in _SPACE and not quote:
                if word is not None:
                    yield "".join(word)
                word = None
                self._at += 1
                continue
            word = [] if word is None else word
            if char == quote or (char in "'\"" and not quote):
                quote = "" if quote else char
                self._at += 1
            else:
                word.append(self._piece(char, quote))
        if quote:
            raise wrong(self._where, "a quote is not closed")
        if word is not None:
            yield "".join(word)

    def _piece(self, char: str, quote: str) -> str:
        """Return what the next characters stand for, and go past them."""
        if char == "\\" and quote != "'":
            return self._escape(quote)
        if char == "$" and quote == '"':
            return self._variable()
        self._at += 1
        return char

    def _escape(self, quote: str) -> str:
        after = self._line[self._at + 1 : self._at + 2]
        if after == "x":
            digits = self._line[self._at + 2 : self._at + 4]
            if not _HEX.fullmatch(digits):
                raise wrong(self._where, "\\x is not followed by two hexadecimal digits")
            self._at += 4
            # A byte that is no character by itself: kept as Python keeps such bytes of file names.
            return bytes.fromhex(digits).decode("ascii", "surrogateescape")
        known = _ESCAPES | ({"$": "$"} if quote else {})
        self._at += 2 if after in known and after else 1
        return known.get(after, "\\") if after else "\\"

    def _variable(self) -> str:
        found = _VARIABLE.match(self._line, self._at)
        if found is None:
            raise wrong(self._where, "a $ in double quotes is not followed by a variable's name")
        end = found.end()
        if found[1]:
            rest = _REST.match(self._line, end)
            if rest is None:
                raise wrong(self._where, f"the brace of ${{{found[2]} is not closed")
            end = rest.end()
        self._at = end
        self.variables.append(found[2])
        return f"${{{found[2]}}}"
