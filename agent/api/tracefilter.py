"""Decides what the text of a filter means: tcpdump's language, with our nouns.

``and`` and ``or`` have the same precedence and associate to the left, ``not`` binds closest, and a
value without a keyword takes the last one, as in ``port 80 or 443``. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network

from agent.api.filters import (
    ENDS,
    FAMILIES,
    NAMES,
    PROTOCOLS,
    And,
    Filter,
    Name,
    Network,
    Not,
    Or,
    PortRange,
    Proto,
)
from agent.errors import RequestError
from agent.state.events import DROP_REASONS

MAX_WORDS = 256
ADDRESSES = ("host", "net")
PORTS = ("port", "portrange")
JOINTS = ("and", "or")
_SIGNS = {"&&": "and", "||": "or", "!": "not"}
_PRIMITIVES = (*ADDRESSES, *PORTS, *ENDS, *PROTOCOLS, *FAMILIES, *NAMES, "not")
_EXPECTED = f"{', '.join(_PRIMITIVES)} or ("
_TOKEN = re.compile(r"&&|\|\||[()!]|[^\s()!&|]+|[&|]")


class FilterError(RequestError):
    """An expression that cannot be parsed. ``start`` to ``end`` is the place in ``text``."""

    def __init__(self, message: str, remedy: str, text: str, start: int, end: int) -> None:
        super().__init__(message, where="filter", remedy=remedy)
        self.text = text
        self.start = start
        self.end = end

    @property
    def pointed(self) -> str:
        """The expression, with a line below it that points at the place."""
        return f"{self.text}\n{' ' * self.start}{'^' * max(1, self.end - self.start)}"


def parse(text: str) -> Filter:
    """Return the filter that an expression means. Raises FilterError."""
    return _Parser(text).parse()


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of the expression, with signs such as && written as words, and its columns."""

    text: str
    start: int
    end: int


class _Parser:
    """Recursive descent over the words of one expression."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = [
            _Word(_SIGNS.get(found[0], found[0]), found.start(), found.end())
            for found in _TOKEN.finditer(text)
        ]
        self._at = 0
        self._last: tuple[str, str | None] | None = (
            None  # the keyword and end that apply to a value without one
        )

    def parse(self) -> Filter:
        if not self._words:
            raise self._wrong(None, "the expression is empty", "leave it out, or write one")
        if len(self._words) > MAX_WORDS:
            raise self._wrong(
                self._words[MAX_WORDS], f"more than {MAX_WORDS} words", "write a shorter one"
            )
        expression = self._expression()
        extra = self._peek()
        if extra is None:
            return expression
        if extra.text == ")":
            raise self._wrong(extra, "closes no (", "remove it, or add a ( before it")
        guess = _near(extra.text, JOINTS)
        raise self._wrong(
            extra,
            f"{extra.text!r} is not connected to what is before it",
            guess or "use and, or or",
        )

    def _expression(self) -> Filter:
        left = self._factor()
        while (joint := self._peek()) is not None and joint.text in JOINTS:
            self._at += 1
            right = self._factor()
            left = And(left, right) if joint.text == "and" else Or(left, right)
        return left

    def _factor(self) -> Filter:
        word = self._take()
        if word is None or word.text in JOINTS or word.text == ")":
            raise self._wrong(word, "a test is missing here", f"expected {_EXPECTED}")
        if word.text == "not":
            return Not(self._factor())
        if word.text != "(":
            return self._primitive(word)
        inner = self._expression()
        closing = self._take()
        if closing is None or closing.text != ")":
            raise self._wrong(
                closing, f"the ( in column {word.start + 1} is not closed", "expected )"
            )
        return inner

    def _primitive(self, word: _Word) -> Filter:
        if word.text in PROTOCOLS or word.text in FAMILIES:
            following = self._peek()
            if following is not None and following.text in (*ENDS, *ADDRESSES, *PORTS):
                self._at += 1
                return And(Proto(word.text), self._primitive(following))
            return Proto(word.text)
        if word.text in ENDS:
            return self._of_end(word)
        if word.text in (*ADDRESSES, *PORTS, *NAMES):
            return self._value(word.text, None, self._take())
        return self._alone(word)

    def _of_end(self, end: _Word) -> Filter:
        word = self._take()
        if word is not None and word.text in (*ADDRESSES, *PORTS):
            return self._value(word.text, end.text, self._take())
        if word is not None and _is_address(word.text):
            return self._value("host", end.text, word)
        raise self._wrong(
            word,
            f"{end.text} of what?",
            f"expected {', '.join((*ADDRESSES, *PORTS))} or an address",
        )

    def _alone(self, word: _Word) -> Filter:
        """Return the test of a value without a keyword: the last keyword applies, or an address is
        a host.
        """
        if self._last is not None:
            kind, end = self._last
            following = self._peek()
            ends_here = following is None or following.text in (*JOINTS, ")")
            if kind not in NAMES or ends_here:
                try:
                    return self._value(kind, end, word)
                except FilterError:
                    if word.text[0].isdigit() and not _is_address(word.text):
                        raise
        if _is_address(word.text):
            return self._value("host", None, word)
        raise self._wrong(
            word,
            f"{word.text!r} is not something that can be tested",
            _near(word.text, (*_PRIMITIVES, *JOINTS)) or f"expected {_EXPECTED}",
        )

    def _value(self, kind: str, end: str | None, word: _Word | None) -> Filter:
        """Return the test of the value that follows one of ADDRESSES, PORTS or NAMES."""
        if word is None or word.text in (*JOINTS, "not", "(", ")"):
            raise self._wrong(word, f"{kind} of what?", f"expected {_VALUES[kind]}")
        made = _made(kind, end, word.text)
        if made is None:
            guess = _near(word.text, DROP_REASONS) if kind == "reason" else ""
            if kind == "host" and "/" in word.text:
                guess = f"for a network, use net {word.text}"
            raise self._wrong(
                word, f"{word.text!r} is not {_VALUES[kind]}", guess or f"expected {_HINTS[kind]}"
            )
        self._last = kind, end
        return made

    def _peek(self) -> _Word | None:
        return self._words[self._at] if self._at < len(self._words) else None

    def _take(self) -> _Word | None:
        word = self._peek()
        self._at += 1
        return word

    def _wrong(self, word: _Word | None, message: str, remedy: str) -> FilterError:
        """Return an error at a word; None means the end of the text."""
        length = len(self._text)
        start, end = (word.start, word.end) if word else (length, length)
        return FilterError(message, remedy, self._text, start, end)


_VALUES = {
    "host": "an IP address",
    "net": "an IP network",
    "port": "a port",
    "portrange": "a range of ports",
    "service": "the name of a service",
    "backend": "the name of a backend",
    "reason": "a reason",
}
_HINTS = {
    "host": "something like 192.0.2.7 or 2001:db8::7",
    "net": "something like 192.0.2.0/24 or 2001:db8::/32",
    "port": "a number from 1 to 65535",
    "portrange": "something like 8000-8010",
    "service": "a name",
    "backend": "NAME or SERVICE/NAME",
    "reason": f"one of {', '.join(DROP_REASONS)}",
}


def _made(kind: str, end: str | None, text: str) -> Filter | None:
    """Return the test, or None if the text is not a valid value for it."""
    if kind in PORTS:
        return _ports(kind, end, text)
    if kind in ADDRESSES:
        network = _network(text)
        if network is None or (kind == "host" and "/" in text):
            return None
        return Network(network, end)
    if kind == "reason" and text not in DROP_REASONS:
        return None
    if kind == "backend" and text.count("/") > 1:
        return None
    return Name(kind, text)


def _ports(kind: str, end: str | None, text: str) -> PortRange | None:
    first, dash, last = text.partition("-")
    if bool(dash) is not (kind == "portrange"):
        return None
    low, high = _port(first), _port(last if dash else first)
    return PortRange(low, high, end) if low and high and low <= high else None


def _port(text: str) -> int | None:
    # int() would accept " 1", "1_0" and digits of other scripts.
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    return number if 0 < number < 65_536 else None


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return None if "%" in text else ip_network(text, strict=False)
    except ValueError:
        return None


def _is_address(text: str) -> bool:
    return "/" not in text and _network(text) is not None


def _near(word: str, known: Collection[str]) -> str:
    near = get_close_matches(word.lower(), list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""
