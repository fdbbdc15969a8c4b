"""Parses the operator's expressions over a Prometheus page, and computes them.

``metric{label="x",other=~"re"}`` is the sum of the matching samples. There are numbers,
``+ - * / ( )``, and ``max(…)``, ``min(…)``, ``avg(…)``: with one metric, over its samples; with
several arguments, over those that have a value. An operand without a value (no such sample, a
division by zero) is missing, and so is every result that is computed from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from agent.model import Telemetry
from agent.telemetry.engines import Page, looks_like
from agent.telemetry.exposition import Hints, TooManySamplesError, labels_of
from agent.telemetry.report import MOST_REQUESTS, EngineReport, Failure, plausible, share

LONGEST = 1000
DEEPEST = 20

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)"
    r"|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"|(?P<text>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    r"|(?P<sign>=~|!~|!=|[-+*/(){},=]))"
)
_ESCAPE = re.compile(r"\\(.)")

type Value = float | None
type Node = Callable[[Page], Value]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


_FUNCTIONS: dict[str, Callable[[list[float]], float]] = {"max": max, "min": min, "avg": _mean}


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label; a label that is absent counts as the empty text."""

    label: str
    pattern: re.Pattern[str]
    wanted: bool

    def accepts(self, labels: dict[str, str]) -> bool:
        return (self.pattern.fullmatch(labels.get(self.label, "")) is not None) is self.wanted


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric and the conditions on its labels."""

    name: bytes
    matchers: tuple[Matcher, ...] = ()

    def values(self, page: Page) -> list[float]:
        """Return the values of the matching samples; values that are not finite are dropped."""
        kept: list[float] = []
        for labels, value in page.all(self.name):
            if self.matchers:
                named = labels_of(labels)
                if not all(matcher.accepts(named) for matcher in self.matchers):
                    continue
            if math.isfinite(value):
                kept.append(value)
            else:
                page.dropped += 1
        return kept

    def __call__(self, page: Page) -> Value:
        values = self.values(page)
        return math.fsum(values) if values else None


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression, made by ``parse``."""

    text: str
    node: Node

    def value(self, page: Page) -> Value:
        """Return its value on a page; None: it is missing."""
        try:
            value = self.node(page)
        except OverflowError:
            return None
        return value if value is not None and math.isfinite(value) else None


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Check an expression; ValueError says what is wrong, where, and what to do about it."""
    if len(text) > LONGEST:
        raise ValueError(f"the expression is longer than {LONGEST} characters; shorten it")
    parser = _Parser(text)
    node = parser.sum()
    if parser.kind:
        raise parser.error("an operator or the end is expected here")
    return Expression(text, node)


def read_expressions(
    telemetry: Telemetry, text: bytes, hints: Hints | None = None
) -> EngineReport | Failure:
    """Return what a page says, by the expressions of a telemetry of the kind PROMETHEUS."""
    page = Page(text, hints)
    try:
        running = _requests(telemetry.running, page)
        waiting = _requests(telemetry.waiting, page)
        kv_usage = _of(telemetry.kv_usage, page)
    except TooManySamplesError as error:
        return Failure(str(error))
    if kv_usage is not None and (kept := share(kv_usage)) != kv_usage:
        page.dropped += kept is None
        kv_usage = kept
    if running is None and waiting is None and kv_usage is None:
        return Failure(f"{looks_like(text)}none of the expressions has a value there")
    return EngineReport(running, waiting, kv_usage, dropped=page.dropped)


def _of(expression: str | None, page: Page) -> Value:
    return None if expression is None else parse(expression).value(page)


def _requests(expression: str | None, page: Page) -> Value:
    value = _of(expression, page)
    if value is not None and not plausible(value, MOST_REQUESTS):
        page.dropped += 1
        return None
    return value


class _Parser:
    """Reads tokens left to right; ``kind`` and ``word`` are the next token's, "" at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._depth = 0
        self.kind = self.word = ""
        self._start = 0
        self._next()

    def sum(self) -> Node:
        node = self._product()
        while self.word in ("+", "-") and self.kind == "sign":
            node = _binary(self._take(), node, self._product())
        return node

    def _product(self) -> Node:
        node = self._factor()
        while self.word in ("*", "/") and self.kind == "sign":
            node = _binary(self._take(), node, self._factor())
        return node

    def _factor(self) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self.error(f"more than {DEEPEST} levels are nested here; simplify it")
        try:
            if self.kind == "number":
                return _constant(float(self._take()))
            if self.kind == "name":
                return self._name()
            if self.word == "-" and self.kind == "sign":
                self._take()
                return _binary("-", _constant(0.0), self._factor())
            if self.word == "(":
                self._take()
                node = self.sum()
                self._expect(")")
                return node
        finally:
            self._depth -= 1
        raise self.error("a metric, a number or ( is expected here")

    def _name(self) -> Node:
        start, name = self._start, self._take()
        if self.word != "(":
            return Selector(name.encode(), tuple(self._matchers()))
        if name not in _FUNCTIONS:
            known = ", ".join(_FUNCTIONS)
            raise self.error(f"there is no function {name}; use one of {known}", start)
        self._take()
        arguments = [self.sum()]
        while self.word == ",":
            self._take()
            arguments.append(self.sum())
        self._expect(")")
        return _aggregate(_FUNCTIONS[name], arguments)

    def _matchers(self) -> Iterator[Matcher]:
        if self.word != "{":
            return
        self._take()
        while self.word != "}":
            if self.kind != "name":
                raise self.error("the name of a label or } is expected here")
            label = self._take()
            operator = self._take() if self.word in ("=", "!=", "=~", "!~") else ""
            if not operator or self.kind != "text":
                raise self.error('=, !=, =~ or !~ and a "quoted" text are expected here')
            start, raw = self._start, self._take()[1:-1]
            # Only backslashes before quotes and backslashes belong to the quoting; any others are
            # part of the regular expression.
            text = _ESCAPE.sub(_unescape, raw)
            try:
                pattern = re.compile(text if "~" in operator else re.escape(text))
            except (re.error, RecursionError, OverflowError) as error:
                raise self.error(f"not a regular expression ({error})", start) from error
            yield Matcher(label, pattern, operator[0] == "=")
            if self.word != ",":
                break
            self._take()
        self._expect("}")

    def error(self, problem: str, start: int | None = None) -> ValueError:
        """Return a ValueError that shows the place."""
        place = self._start if start is None else start
        rest = self._text[place : place + 20]
        return ValueError(
            f"at character {place + 1} ({rest!r}): {problem}" if rest else f"at the end: {problem}"
        )

    def _expect(self, sign: str) -> None:
        if self.word != sign or self.kind != "sign":
            raise self.error(f"{sign} is expected here")
        self._take()

    def _take(self) -> str:
        word = self.word
        self._next()
        return word

    def _next(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            blank = len(self._text) - len(self._text[self._end :].lstrip())
            self._start = blank
            if blank < len(self._text):
                raise self.error("this character has no meaning here; remove it")
            self.kind = self.word = ""
            return
        self.kind = match.lastgroup or ""
        self.word = match[self.kind]
        self._start, self._end = match.start(self.kind), match.end()


def _constant(number: float) -> Node:
    return lambda _page: number


def _binary(operator: str, left: Node, right: Node) -> Node:
    def compute(page: Page) -> Value:
        a, b = left(page), right(page)
        if a is None or b is None:
            return None
        match operator:
            case "+":
                return a + b
            case "-":
                return a - b
            case "*":
                return a * b
            case _:
                return a / b if b else None

    return compute


def _aggregate(function: Callable[[list[float]], float], arguments: list[Node]) -> Node:
    def compute(page: Page) -> Value:
        if len(arguments) == 1 and isinstance(arguments[0], Selector):
            values = arguments[0].values(page)
        else:
            found = [argument(page) for argument in arguments]
            values = [value for value in found if value is not None]
        return function(values) if values else None

    return compute


def _unescape(match: re.Match[str]) -> str:
    return match[1] if match[1] in "\\\"'" else match[0]
