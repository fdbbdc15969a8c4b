"""Reads YAML into plain data, keeps the line of every key and item, and writes YAML.

It is stricter than YAML where YAML surprises: duplicate keys are problems, and ``off``, ``12:30``
or ``2024-01-01`` are text, not booleans, base-60 numbers or dates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from agent.errors import ConfigError

try:
    from yaml import CSafeDumper as _Dumper
    from yaml import CSafeLoader as _BaseLoader
except ImportError:  # PyYAML without libyaml works the same, ten times slower
    from yaml import SafeDumper as _Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as _BaseLoader  # type: ignore[assignment]

type Path = tuple[str | int, ...]

# Aliases can make a small text a huge or endless tree.
_MAX_DEPTH = 16
_MAX_NODES = 1_000_000

_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = frozenset(
    _TAG + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,39})|0x[0-9a-fA-F]{1,32}")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?")
_RESOLVERS = (
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789"),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<"), "<"),
)


class _Loader(_BaseLoader):
    """Composes nodes only; ``_Reader`` makes the values."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern.pattern})$"), _first)


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
    loader = _Loader(text)
    try:
        _check_depth(text, where)
        root = loader.get_single_node()
        document = Document(where)
        if root is not None:
            document.data = _Reader(loader, document).value(root, ())
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, where) from error
    finally:
        loader.dispose()
    return document


def write_yaml(data: object) -> str:
    """Return the YAML text that reads as ``data``, with its keys in the same order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _check_depth(text: str, where: str) -> None:
    # libyaml composes by recursion in C, so 100,000 brackets would overflow the stack.
    depth = 0
    for event in yaml.parse(text, Loader=_BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise _too_large(f"{where}:{line}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Reader:
    """Walks the nodes of one text and makes plain data of them."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self._loader = loader
        self._document = document
        self._nodes = 0

    def value(self, node: yaml.Node, path: Path) -> object:
        self._nodes += 1
        if len(path) > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise _too_large(f"{self._document.where}:{node.start_mark.line + 1}")
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in _KNOWN_TAGS:
            self._problem(path, node, f"the tag {node.tag} means nothing here", "remove the tag")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        own: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem(path, key, "a key must be one word", "write it as `key: value`")
            elif key.value in own:
                self._document.lines[*path, key.value] = key.start_mark.line + 1
                self._problem(
                    (*path, key.value),
                    key,
                    f"given twice, first on line {own[key.value]}",
                    "remove one of the two",
                )
            else:
                own[key.value] = key.start_mark.line + 1
        if any(key.tag == _TAG + "merge" for key, _ in node.value):
            self._loader.flatten_mapping(
                node
            )  # puts the keys merged by `<<` before the mapping's own keys
        result: dict[str, object] = {}
        for key, item in node.value:
            if isinstance(key, yaml.ScalarNode):
                self._document.lines[*path, key.value] = key.start_mark.line + 1
                result[key.value] = self.value(item, (*path, key.value))
        return result

    def _problem(self, path: Path, node: yaml.Node, message: str, remedy: str) -> None:
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        self._document.problems.append(Problem(path, message, remedy))


def _scalar(node: yaml.Node) -> object:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
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
