"""Decides whether a text is a list of target groups, as in Prometheus' file_sd and HTTP SD.

A text that is anything else raises DiscoveryError as a whole: a source that is not understood must
not remove backends.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Never

import yaml

from agent.errors import DiscoveryError

try:
    from yaml import CBaseLoader as _BaseLoader
except ImportError:  # PyYAML without libyaml works the same, ten times slower
    from yaml import BaseLoader as _BaseLoader  # type: ignore[assignment]

MOST_BYTES = 8 << 20
_MAX_DEPTH = 20  # a list of groups needs four levels
_FORM = 'a list of groups such as [{"targets": ["10.0.0.5:8000"], "labels": {"weight": "50"}}]'
_NULL = "tag:yaml.org,2002:null"


class _Loader(_BaseLoader):
    """Reads every scalar except null as a string, because labels are strings.

    So 010 does not become the number 8. Dates, huge numbers and merge keys are not interpreted
    either; with merge keys a small text could keep a full loader busy for hours.
    """


_Loader.add_implicit_resolver(_NULL, re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_constructor(_NULL, lambda _loader, _node: None)


@dataclass(frozen=True, slots=True)
class Group:
    """Targets as they are written, and the labels that apply to each of them."""

    targets: list[object]
    labels: dict[str, object]


def read_groups(text: str, where: str) -> list[Group]:
    """Return the groups of a JSON or YAML text. Raises DiscoveryError if it has another form."""
    if len(text) > MOST_BYTES or len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        too_long(where)
    text = text.removeprefix("\ufeff")
    start = text.lstrip()
    if not start:
        raise DiscoveryError(
            "the answer is empty", where=where, remedy="a source without targets must answer []"
        )
    if start[0] == "<":
        kind = "HTML" if re.match(r"<(!doctype\s+)?html", start, re.IGNORECASE) else "XML or HTML"
        raise _no_list(kind, where)
    try:
        data = _json(text, where) if start[0] in "[{" else _yaml(text, where)
    except RecursionError as error:
        raise _too_deep(where) from error
    if not isinstance(data, list):
        raise _no_list(_kind(data), where)
    return [_group(item, number, where) for number, item in enumerate(data, 1)]


def too_long(where: str) -> Never:
    """Raise the error about an answer of more than MOST_BYTES."""
    raise DiscoveryError(
        f"the answer is longer than {MOST_BYTES >> 20} MiB",
        where=where,
        remedy="check that this is the right source, or divide it among several services",
    )


def _group(item: object, number: int, where: str) -> Group:
    if not isinstance(item, dict):
        raise DiscoveryError(
            f"group {number} is {_kind(item)}, not a mapping with 'targets' and 'labels'",
            where=where,
            remedy=f"give {_FORM}",
        )
    targets, labels = item.get("targets", ""), item.get("labels")
    # Go writes an empty list as null.
    targets, labels = [] if targets is None else targets, {} if labels is None else labels
    if not isinstance(targets, list):
        raise DiscoveryError(
            f"group {number} has no list 'targets'", where=where, remedy=f"give {_FORM}"
        )
    if not isinstance(labels, dict):
        raise DiscoveryError(
            f"the labels of group {number} are {_kind(labels)}, not a mapping",
            where=where,
            remedy=f"give {_FORM}",
        )
    if "<<" in labels or "<<" in item:
        raise DiscoveryError(
            f"group {number} has a merge key '<<', which is not supported",
            where=where,
            remedy="write its labels out",
        )
    return Group(targets, labels)


def _no_list(kind: str, where: str) -> DiscoveryError:
    return DiscoveryError(
        f"the answer is {kind}, not a list of target groups", where=where, remedy=f"give {_FORM}"
    )


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case dict():
            return "a mapping"
        case list():
            return "a list"
    return "a string"


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        ends = "it ends too early" if not text[error.pos :].strip() else error.msg
        problem = f"{ends} in line {error.lineno}, column {error.colno}"
    except ValueError as error:  # a number of thousands of digits
        problem = str(error)
    raise DiscoveryError(
        f"the answer is not valid JSON: {problem}",
        where=where,
        remedy="correct it at the source; a file should be replaced by rename(2), not rewritten",
    )


def _yaml(text: str, where: str) -> object:
    try:
        _check_depth(text, where)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (makes only strings)
    except yaml.YAMLError as error:
        # Errors about characters have a reason; all others have a problem and a mark.
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "no document"
        mark = getattr(error, "problem_mark", None)
        if mark is not None:
            problem = f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
        cause: Exception = error
    except ValueError as error:  # half of a surrogate pair
        problem, cause = str(error), error
    raise DiscoveryError(
        f"the answer is neither JSON nor valid YAML: {problem}",
        where=where,
        remedy=f"give {_FORM}, as JSON or YAML",
    ) from cause


def _check_depth(text: str, where: str) -> None:
    # libyaml composes by recursion in C, so 100,000 brackets would overflow the stack.
    depth = 0
    for event in yaml.parse(text, Loader=_BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise _too_deep(where)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _too_deep(where: str) -> DiscoveryError:
    return DiscoveryError(
        "the answer is nested too deeply for a list of target groups",
        where=where,
        remedy=f"give {_FORM}",
    )
