"""Picks the samples of a few metrics out of a Prometheus page, without parsing the rest.

A page of an engine has hundreds of lines and three are wanted, so names are searched for as bytes.
The format requires that a metric's samples form one group. The place where a name was found the
last time (``hints``) is searched first, so a known page costs only microseconds.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# A page with more samples of one name is not usable, and would delay the reading of all others.
MOST_SAMPLES = 4096
_LONGEST_LINE = 8192
_NEAR = 4096  # how far from the hint a name is looked for

# A quoted text, without its quotes. Its quantifiers are possessive, like all below, so that no line
# can cause backtracking.
_TEXT = rb'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+'
# What follows a name: labels or a blank, then the value.
_REST = re.compile(
    rb'(?:[ \t]*+\{((?:[^"}\n]*+"' + _TEXT + rb'")*+[^"}\n]*+)\}|(?=[ \t]))[ \t]*+([^ \t\r\n]++)'
)
_LABEL = re.compile(rb'[ \t]*+([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"(' + _TEXT + rb')"[ \t]*+,?')
_ESCAPE = re.compile(r'\\([\\"n])')

type Hints = dict[bytes, int]


class TooManySamplesError(ValueError):
    """One name has more samples than any genuine page."""


class Sample(NamedTuple):
    """A sample's labels, as they stand between the braces, and its value."""

    labels: bytes
    value: float


def samples(page: bytes, name: bytes, hints: Hints | None = None) -> list[Sample]:
    """Return every sample of ``name`` on the page; lines that are not samples are skipped."""
    found: list[Sample] = []
    if hints is not None and (at := _hinted(page, name, hints)) is not None:
        _group(page, name, at, found, MOST_SAMPLES)
        if found:
            return found
    line = b"\n" + name
    at = 0 if page.startswith(name) else page.find(line) + 1
    if at == 0 and not page.startswith(name):
        return found
    if hints is not None:
        hints[name] = at
    left = MOST_SAMPLES
    while True:
        end, left = _group(page, name, at, found, left)
        at = page.find(line, end - 1) + 1
        if at == 0:
            return found


def labels_of(raw: bytes) -> dict[str, str]:
    """Return a sample's labels by name."""
    return {
        key.decode(): _ESCAPE.sub(_unescape, value.decode(errors="replace"))
        for key, value in _LABEL.findall(raw)
    }


def _hinted(page: bytes, name: bytes, hints: Hints) -> int | None:
    """Return where the group of ``name`` begins, if it is near the place where it was last time."""
    hint = hints.get(name)
    if hint is None:
        return None
    at = page.find(b"\n" + name, max(0, hint - _NEAR), hint + _NEAR) + 1
    if not at:
        return None
    before = page.rfind(b"\n", 0, at - 1) + 1
    if page.startswith(name, before):
        return None  # in the middle of a group that is longer than the window
    hints[name] = at
    return at


def _group(page: bytes, name: bytes, at: int, found: list[Sample], left: int) -> tuple[int, int]:
    """Add the samples in the lines from ``at`` on that begin with the name, ``left`` at most.

    Return where these lines end, and how many more may follow. TooManySamplesError if there are
    more.
    """
    while page.startswith(name, at):
        left -= 1
        if left < 0:
            raise TooManySamplesError(f"more than {MOST_SAMPLES} samples of {name.decode()}")
        rest = at + len(name)
        match = _REST.match(page, rest, rest + _LONGEST_LINE)
        if match is not None:
            labels, number = match.groups()
            value = _number(number)
            # A match that reaches the end of the searched range may have been cut off.
            if value is not None and match.end() < rest + _LONGEST_LINE:
                found.append(Sample(labels or b"", value))
            at = match.end()
        at = page.find(b"\n", at) + 1 or len(page)
    return at, left


def _number(text: bytes) -> float | None:
    if b"_" in text:  # float() would accept 1_000
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
