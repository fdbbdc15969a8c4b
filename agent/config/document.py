"""Reads YAML into plain data, keeps the line of every key and item, and writes YAML.

It is stricter than YAML where YAML surprises: duplicate keys are problems, and ``off``, ``12:30``
or ``2024-01-01`` are text, not booleans, base-60 numbers or dates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from agent.errors import ConfigError

try:
    from yaml import CSafeDumper as _Dumper
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML without libyaml works the same, ten times slower
    from yaml import SafeDumper as _Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

type Path = tuple[str | int, ...]

# Aliases can make a small text a huge or endless tree.
_MAX_DEPTH = 16
_MAX_NODES = 1_000_000

_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = frozenset(
    _TAG + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
)
_TEXT, _MERGE = _TAG + "str", _TAG + "merge"
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,39})|0x[0-9a-fA-F]{1,32}")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?")
# What a text without quotes means, by its first character.
_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _name, _pattern, _first in (
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<"), "<"),
):
    for _character in _first:
        _RESOLVERS.setdefault(_character, []).append((_TAG + _name, _pattern))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at one place of a document."""

    path: Path
    message: str
    remedy: str


@dataclass(slots=True)
class Document:
    """A YAML text as plain data. ``lines`` has the line of each key and item, by its path."""

    where: str
    data: object = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> tuple[str, str]:
        """Return where a path is (file and line), and its dotted name.

        A path that the text does not have gets the line of its closest ancestor.
        """
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known)
        return f"{self.where}:{line}" if line else self.where, dotted(path)


def dotted(path: Path) -> str:
    """Return a path as text, such as ``services[0].backends[1].weight``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read_yaml(text: str, where: str) -> Document:
    """Return the document. Raises ConfigError if the text is not YAML at all."""
    document = Document(where)
    try:
        reader = _Reader(_events(text, where), document)
        document.data = reader.document()
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, where) from error
    return document


def write_yaml(data: object) -> str:
    """Return the YAML text that reads as ``data``, with its keys in the same order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _events(text: str, where: str) -> list[yaml.Event]:
    """Return what libyaml finds in the text, in order.

    To make nodes of them first costs a third more time for a large file. libyaml does so by
    recursion in C, too, so that 100,000 brackets would overflow the stack.
    """
    events: list[yaml.Event] = []
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        events.append(event)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise _too_large(f"{where}:{_line(event)}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return events


def _mark(event: yaml.Event) -> Any:
    return event.start_mark  # libyaml's own type, which the errors of PyYAML take, too


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


class _Reader:
    """Makes plain data of the events of one text."""

    def __init__(self, events: list[yaml.Event], document: Document) -> None:
        self._events = events
        self._next = 0
        self._anchors: dict[str, int] = {}  # the places of their events
        self._document = document
        self._nodes = 0
        self._merging = 0  # how many mappings are being merged into each other

    def document(self) -> object:
        """Return the data of the only document of the text; None if it has none."""
        self._take()  # the start of the stream
        if isinstance(self._events[self._next], yaml.StreamEndEvent):
            return None
        self._take()  # the start of the document
        self._document.lines[()] = _line(self._events[self._next])
        data = self._value(())
        self._take()  # the end of the document
        after = self._take()
        if not isinstance(after, yaml.StreamEndEvent):
            raise yaml.composer.ComposerError(
                "expected a single document in the stream",
                None,
                "but found another document",
                _mark(after),
            )
        return data

    def _take(self) -> yaml.Event:
        """Return the next event. Its anchor, if it has one, stands for what begins there."""
        event = self._events[self._next]
        if isinstance(event, yaml.AliasEvent):
            self._anchored(event)
        elif (anchor := getattr(event, "anchor", None)) is not None:
            known = self._anchors.setdefault(anchor, self._next)
            if known != self._next:
                raise yaml.composer.ComposerError(
                    f"found duplicate anchor {anchor!r}; first occurrence",
                    _mark(self._events[known]),
                    "second occurrence",
                    _mark(event),
                )
        self._next += 1
        return event

    def _anchored(self, alias: yaml.AliasEvent) -> int:
        """Return the place of what an alias stands for."""
        try:
            return self._anchors[str(alias.anchor)]
        except KeyError:
            raise yaml.composer.ComposerError(
                None, None, f"found undefined alias {alias.anchor!r}", _mark(alias)
            ) from None

    def _skip(self) -> None:
        depth = 0
        while True:
            event = self._take()
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if not depth:
                return

    def _value(self, path: Path) -> object:
        """Return the data that begins with the next event. Its own line is known already."""
        event = self._take()
        self._nodes += 1
        if len(path) > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise _too_large(f"{self._document.where}:{_line(event)}")
        if isinstance(event, yaml.ScalarEvent):
            tag = _tag_of(event)
            self._check_tag(tag, event, path)
            return _scalar(event.value, tag)
        if isinstance(event, yaml.AliasEvent):
            back, self._next = self._next, self._anchored(event)
            value = self._value(path)
            self._next = back
            return value
        assert isinstance(event, yaml.CollectionStartEvent)  # noqa: S101 (nothing else begins data)
        self._check_tag(event.tag, event, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        return self._sequence(path)

    def _check_tag(self, tag: str | None, event: yaml.Event, path: Path) -> None:
        if tag not in _KNOWN_TAGS and tag not in (None, "!"):
            problem = f"the tag {tag} means nothing here"
            self._problem(path, event, problem, "remove the tag")

    def _sequence(self, path: Path) -> list[object]:
        items: list[object] = []
        lines = self._document.lines
        while not isinstance(event := self._events[self._next], yaml.SequenceEndEvent):
            if isinstance(event, yaml.AliasEvent):
                event = self._events[self._anchored(event)]
            here = (*path, len(items))
            lines.setdefault(here, _line(event))
            items.append(self._value(here))
        self._take()
        return items

    def _mapping(self, path: Path) -> dict[str, object]:
        own: dict[str, object] = {}
        first: dict[str, int] = {}  # the lines of the keys
        merged: list[int] = []  # the places of what `<<` names
        while not isinstance(event := self._take(), yaml.MappingEndEvent):
            key = event
            if isinstance(event, yaml.AliasEvent):
                key = self._events[self._anchored(event)]
            if not isinstance(key, yaml.ScalarEvent):
                self._problem(path, key, "a key must be one word", "write it as `key: value`")
                if key is event:
                    self._next -= 1
                    self._skip()
                self._skip()
                continue
            name, line = key.value, _line(key)
            here = (*path, name)
            if name in first:
                self._document.lines[here] = line
                problem = f"given twice, first on line {first[name]}"
                self._problem(here, key, problem, "remove one of the two")
            else:
                first[name] = line
            if _tag_of(key) == _MERGE:
                merged.append(self._next)
                self._skip()
                continue
            self._document.lines[here] = line
            own[name] = self._value(here)
        if not merged:
            return own
        back, lines = self._next, {(*path, name): self._document.lines[*path, name] for name in own}
        below: dict[str, object] = {}
        for place in merged:
            below |= self._merged(place, path)
        self._next = back
        self._document.lines |= lines
        return below | own

    def _merged(self, place: int, path: Path, *, is_in_list: bool = False) -> dict[str, object]:
        """Return the keys of the mapping, or of the list of mappings, that ``<<`` names."""
        event = self._events[place]
        if isinstance(event, yaml.AliasEvent):
            return self._merged(self._anchored(event), path, is_in_list=is_in_list)
        if isinstance(event, yaml.MappingStartEvent):
            self._merging += 1
            if self._merging > _MAX_DEPTH:
                raise _too_large(f"{self._document.where}:{_line(event)}")
            self._next = place
            found = self._value(path)
            self._merging -= 1
            assert isinstance(found, dict)  # noqa: S101 (it begins as a mapping)
            return found
        if is_in_list or not isinstance(event, yaml.SequenceStartEvent):
            problem = "expected a mapping or a list of mappings after `<<`"
            raise yaml.constructor.ConstructorError(None, None, problem, _mark(event))
        places = []
        self._next = place + 1
        while not isinstance(self._events[self._next], yaml.SequenceEndEvent):
            places.append(self._next)
            self._skip()
        result: dict[str, object] = {}
        for one in reversed(places):  # the first one has the last word
            result |= self._merged(one, path, is_in_list=True)
        return result

    def _problem(self, path: Path, event: yaml.Event, message: str, remedy: str) -> None:
        self._document.lines.setdefault(path, _line(event))
        self._document.problems.append(Problem(path, message, remedy))


def _tag_of(event: yaml.ScalarEvent) -> str:
    """Return the tag that is written before a text, or the one that the text implies."""
    if event.tag not in (None, "!"):
        return str(event.tag)
    text = event.value
    if event.implicit[0]:
        for tag, pattern in _RESOLVERS.get(text[:1], ()):
            if pattern.fullmatch(text):
                return tag
    return _TEXT


def _scalar(text: str, tag: str) -> object:
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if _INTEGER.fullmatch(text):
            return int(text, 0)
        case "float" if _FLOAT.fullmatch(text):
            return float(text)
    # An overlong integer stays text, so the check of its key refuses it.
    return text


def _syntax_error(error: yaml.YAMLError, text: str, where: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    context = getattr(error, "context", None)
    line = mark.line + 1 if mark else 0
    lines = text.splitlines()
    shown = lines[line - 1] if 0 < line <= len(lines) else ""
    if "\t" in shown[: len(shown) - len(shown.lstrip())]:
        remedy = "indent with spaces, YAML does not allow tabs"
    elif "expected a single document" in f"{context} {problem}":
        remedy = "keep one document in the file, without `---` lines in between"
    elif "special characters" in str(error) or "control characters" in str(error):
        remedy = "remove the control characters; the file must be plain UTF-8 text"
    else:
        remedy = "look at the indentation, quotes and brackets in this line and the one above"
    return ConfigError(
        f"not valid YAML: {problem}" + (f" ({context})" if context else ""),
        where=f"{where}:{line}" if line else where,
        remedy=remedy,
    )


def _too_large(where: str) -> ConfigError:
    return ConfigError(
        f"nested deeper than {_MAX_DEPTH} levels, or more than {_MAX_NODES:,} values",
        where=where,
        remedy="write it without aliases that contain each other",
    )
