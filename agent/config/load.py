"""Turns the operator's file into a Config, or says everything that is wrong with it, and where.

Three steps: YAML to plain data with lines (``document``), each section against the schema, then
the rules between sections. A section that is wrong does not hide the problems of the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol as Interface
from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agent.config import document as doc
from agent.config import kinds, rules
from agent.config.candidate import Candidate
from agent.config.convert import to_config
from agent.config.defaults import (
    CHECK_KEYS,
    COMMON_CHECK_KEYS,
    DEFAULT_PROTOCOL,
    DEFAULT_SCHEDULER,
    PROTOCOL_KEYS,
    SCHEDULER_KEYS,
)
from agent.config.discover_schema import DiscoverSection
from agent.config.document import Problem
from agent.config.schema import (
    DocumentSection,
    GlobalSection,
)
from agent.config.section import Section
from agent.config.service_schema import (
    BackendSection,
    DefaultsSection,
    HealthSection,
    LimitsSection,
    OutlierSection,
    ServiceSection,
    SloSection,
    TimeoutsSection,
)
from agent.config.telemetry_schema import (
    AffinitySection,
    NodeSection,
    RebalanceSection,
    ScaleSection,
    TelemetrySection,
)
from agent.errors import ConfigError
from agent.model import SOURCES, CheckKind, Config, Forward, SynProtection

# The sections that a service inherits key by key.
_MERGED: dict[str, type[Section]] = {
    "timeouts": TimeoutsSection,
    "limits": LimitsSection,
    "health": HealthSection,
    "outlier": OutlierSection,
    "slo": SloSection,
    "scale": ScaleSection,
    "telemetry": TelemetrySection,
    "node": NodeSection,
    "affinity": AffinitySection,
    "rebalance": RebalanceSection,
    "discover": DiscoverSection,
}
# Global keys of earlier versions, with their names of today.
_RENAMED = {"xdp_mode": "hook", "ipip_source": "tunnel_source"}


class Place(Interface):
    """Says where a path is, for people: a file and line, or a service, and the key."""

    def place(self, path: doc.Path, /) -> tuple[str, str]: ...


def load_file(path: Path) -> Config:
    """Return the configuration in a file. Raises ConfigError."""
    return parse(read_text(path), str(path))


def read_text(path: Path, example: str = "deploy/agent.example.yaml") -> str:
    """Return the text of the operator's file. Raises ConfigError.

    ``example``: a file to create it from.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"byte {error.object[error.start]:#04x} is not UTF-8",
            where=f"{path}:{line}",
            remedy="save the file as UTF-8",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the configuration cannot be read: {error.strerror}",
            where=str(path),
            remedy="give the path of a file that the agent may read (--config), or create it from "
            f"{example}",
        ) from error


def parse(text: str, where: str, below: Mapping[str, object] | None = None) -> Config:
    """Return the configuration in a text; ``where`` names the text in errors.

    ``below`` provides the top-level keys that the text leaves out, as a text may that is applied to
    a running agent.
    """
    if below:
        return _parsed(text, where, below)
    return _parsed_alone(text, where)


def _parsed(text: str, where: str, below: Mapping[str, object]) -> Config:
    check_end(text, where)
    document = doc.read_yaml(text, where)
    data = {} if document.data is None else document.data
    if isinstance(data, dict):
        data = dict(below) | data
    return build(data, document, tuple(document.problems))


# The cache pays because a start reads its file several times, and a large file takes a second.
@lru_cache(maxsize=1)
def _parsed_alone(text: str, where: str) -> Config:
    return _parsed(text, where, {})


def check_end(text: str, where: str) -> None:
    """Raise ConfigError if the last line of a text does not end with a line feed.

    A text that was cut off within a line may still be valid, with another address or port in it.
    This does not apply to a text that begins with a brace: JSON is valid only as a whole.
    """
    if text and not text.endswith("\n") and not text.lstrip().startswith("{"):
        line = text.count("\n") + 1
        raise ConfigError(
            "the last line does not end: the text may have been cut off there",
            where=f"{where}:{line}",
            remedy="if the text is whole, end its last line with a line feed",
        )


def build(data: object, place: Place, problems: tuple[Problem, ...] = ()) -> Config:
    """Return the configuration in plain data, which is not modified. Raises ConfigError."""
    found = list(problems)
    if not isinstance(data, dict):
        found.append(Problem((), f"the document is {kinds.shown(data)}", "write `key: value`"))
        raise _error(found, place)
    raw = {str(key): value for key, value in data.items()}
    globals_ = _globals(raw, found)
    defaults = _defaults(raw, found)
    services = _services(raw, defaults, found)
    found += rules.check(services, globals_, lambda path: place.place(path)[0])
    if found or globals_ is None:
        raise _error([_at_origin(problem, raw) for problem in found], place)
    return to_config(globals_, services)


def parse_section[S: Section](section: type[S], data: Mapping[str, object], where: str) -> S:
    """Return one section, such as ``discover``, that is in no document. Raises ConfigError.

    ``where`` names the data in errors.
    """
    found: list[Problem] = []
    parsed = _section(section, dict(data), (), found)
    if found or parsed is None:
        raise _error(found, doc.Document(where))
    return parsed


def parse_document[S: Section](
    section: type[S], text: str, where: str, rules_: Callable[[S], Iterable[Problem]]
) -> S:
    """Return a document that is one section, as the file of a tier is. Raises ConfigError.

    ``where`` names the text in errors. ``rules_``: what is wrong between its settings.
    """
    check_end(text, where)
    document = doc.read_yaml(text, where)
    found = list(document.problems)
    parsed = _section(section, {} if document.data is None else document.data, (), found)
    if parsed is not None:
        found += rules_(parsed)
    if found or parsed is None:
        raise _error(found, document)
    return parsed


def merge(below: dict[str, object], above: dict[str, object]) -> dict[str, object]:
    """Return the settings of ``below``, overridden by those of ``above``; sections merge key by
    key.

    With another health type, scheduler or protocol, the keys of ``below`` that the new one does not
    use are dropped. So is ``syn_cookies`` if the service cannot give SYN cookies. With another
    telemetry or node type, only the times are kept. Another source of ``discover`` replaces the
    former one.
    """
    result = copy.deepcopy(below) | copy.deepcopy(above)
    for key in _left_behind(below, result) - above.keys():
        result.pop(key, None)
    for key in (*_MERGED, "model"):
        low, high = below.get(key), above.get(key)
        if not (isinstance(low, dict) and isinstance(high, dict)):
            continue
        kept = dict(low)
        if key == "health" and high.get("type", low.get("type")) != low.get("type"):
            wanted = high["type"]
            useful = {kind.value: keys for kind, keys in CHECK_KEYS.items()}
            names = useful.get(str(wanted), COMMON_CHECK_KEYS)
            if CheckKind.COMPLETION.value in (wanted, low.get("type")):
                names -= {
                    "path"
                }  # the path of a health page takes no prompts, and the other way round
            kept = {name: value for name, value in low.items() if name in names}
        if (
            key in ("telemetry", "node")
            and "type" in low
            and high.get("type", low["type"]) != low["type"]
        ):
            kept = {name: value for name, value in low.items() if name in ("interval", "timeout")}
        if key == "discover" and not high.keys().isdisjoint(SOURCES):
            kept = {name: value for name, value in low.items() if name not in SOURCES}
        result[key] = copy.deepcopy(kept | high)
    return result


def _left_behind(before: dict[str, object], after: dict[str, object]) -> set[str]:
    """Return the keys that the new scheduler or protocol does not use, or that lack a key they
    need.
    """
    keys: set[str] = set()
    for name, default, users in (
        ("scheduler", DEFAULT_SCHEDULER.value, SCHEDULER_KEYS),
        ("protocol", DEFAULT_PROTOCOL.value, PROTOCOL_KEYS),
    ):
        value = after.get(name) or default
        if value != (before.get(name) or default):
            keys |= {key for key, user in users.items() if user.value != value}
    # `off` without quotes is a boolean in YAML.
    if after.get("syn_protection") in (None, False, SynProtection.OFF.value) or after.get(
        "forward"
    ) in (Forward.NAT.value, Forward.FULLNAT.value):
        keys.add("syn_cookies")
    return keys


def _globals(raw: dict[str, object], found: list[Problem]) -> GlobalSection | None:
    sections = ("defaults", "services")
    own = {key: value for key, value in raw.items() if key not in sections}
    return _section(GlobalSection, own, (), found)


def _defaults(raw: dict[str, object], found: list[Problem]) -> dict[str, object]:
    given = raw.get("defaults") or {}
    _section(DefaultsSection, given, ("defaults",), found)
    if not isinstance(given, dict):
        return {}
    # An unknown key is already reported here, and must not be reported for every service too.
    known = {key: given[key] for key in given if key in DefaultsSection.model_fields}
    for key, section in _MERGED.items():
        inner = known.get(key)
        if isinstance(inner, dict):
            known[key] = {name: inner[name] for name in inner if name in section.model_fields}
    return known


def _services(
    raw: dict[str, object], defaults: dict[str, object], found: list[Problem]
) -> list[Candidate]:
    candidates = []
    for index, item in _items(raw, ("services",), found):
        path: doc.Path = ("services", index)
        if not isinstance(item, dict):
            _section(ServiceSection, item, path, found)
            continue
        head = {key: value for key, value in item.items() if key != "backends"}
        name = head.get("name")
        before = len(found)
        section = _section(ServiceSection, merge(defaults, head), path, found)
        candidates.append(
            Candidate(
                index=index,
                name=name if isinstance(name, str) else None,
                key=section.key if section else None,
                section=section if len(found) == before else None,
                backends=_backends(item, (*path, "backends"), found),
            )
        )
    return candidates


def _backends(
    service: dict[str, object], path: doc.Path, found: list[Problem]
) -> tuple[tuple[int, BackendSection], ...]:
    return tuple(
        (index, section)
        for index, item in _items(service, path, found)
        if (section := _section(BackendSection, item, (*path, index), found))
    )


def _items(
    parent: dict[str, object], path: doc.Path, found: list[Problem]
) -> list[tuple[int, object]]:
    value = parent.get(str(path[-1]))
    if value is None:
        return []
    if not isinstance(value, list):
        problem = f"{kinds.shown(value)} is not a list"
        found.append(Problem(path, problem, "start each entry on its own line, with `- name:`"))
        return []
    return list(enumerate(value))


def _section[S: Section](
    section: type[S], data: object, path: doc.Path, found: list[Problem]
) -> S | None:
    """Return the section. If some keys are invalid, return it without them, or None if it cannot
    be.
    """
    plain = _without_nulls(data)
    try:
        return section.model_validate(plain)
    except ValidationError as error:
        details = error.errors(include_url=False)
    found += [_problem(section, detail, path) for detail in details]
    if not isinstance(plain, dict):
        return None
    wrong = {detail["loc"][0] for detail in details if detail["loc"]}
    try:
        return section.model_validate({key: plain[key] for key in plain if key not in wrong})
    except ValidationError:
        return None


# A key without a value means the same as a key that is left out.
def _without_nulls(data: object) -> object:
    if not isinstance(data, dict):
        return data
    return {str(key): _without_nulls(value) for key, value in data.items() if not _is_null(value)}


def _is_null(value: object) -> bool:
    """Return whether a value is None, or a mapping with only such values."""
    if isinstance(value, dict) and value:
        return all(_is_null(inner) for inner in value.values())
    return value is None


def _problem(section: type[Section], details: ErrorDetails, path: doc.Path) -> Problem:
    location = details["loc"]
    here = (*path, *location)
    shown = kinds.shown(details["input"])
    match details["type"]:
        case "steelyard":
            context = details.get("ctx", {})
            return Problem(here, str(context["message"]), str(context["remedy"]))
        case "missing":
            key = str(location[-1])
            description = _section_at(section, location[:-1]).model_fields[key].description or ""
            return Problem(here, "is missing", f"add `{key}:`. {description}".strip())
        case "extra_forbidden":
            fresh = _RENAMED.get(str(here[0])) if len(here) == 1 else None
            if fresh is not None:
                return Problem(here, f"is called {fresh} now", f"write {fresh} instead")
            known = list(_section_at(section, location[:-1]).model_fields)
            hint = kinds.suggestion(location[-1], known)
            remedy = f"{hint}known here: {', '.join(known)}"
            return Problem(here, "unknown key", remedy)
        case "model_type" | "model_attributes_type" | "dict_type":
            return Problem(here, f"{shown} is not a mapping", "write `key: value` below it")
        case "bool_type" | "bool_parsing":
            return Problem(here, f"{shown} is neither true nor false", "write true or false")
    return Problem(here, details["msg"], "see docs/configuration.md")


def _section_at(section: type[Section], location: tuple[int | str, ...]) -> type[Section]:
    if section is GlobalSection and not location:
        return DocumentSection
    for part in location:
        if isinstance(part, str):
            inner = _inner(section.model_fields[part].annotation)
            assert inner is not None  # noqa: S101 (only sections have keys below them)
            section = inner
    return section


def _inner(annotation: object) -> type[Section] | None:
    """Return the section that a field holds, or holds a list of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_inner, get_args(annotation))), None)


def _at_origin(problem: Problem, raw: dict[str, object]) -> Problem:
    """Return a problem with an inherited value as a problem of ``defaults``."""
    path = problem.path
    if len(path) < 3 or path[0] != "services" or _holds(raw, path):
        return problem
    inherited = ("defaults", *path[2:])
    if not _holds(raw, inherited):
        return problem
    return Problem(inherited, problem.message, problem.remedy)


def _holds(data: object, path: doc.Path) -> bool:
    for part in path:
        if isinstance(data, list):
            data = dict(enumerate(data))
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True


def _error(problems: list[Problem], place: Place) -> ConfigError:
    """Return one error for all problems, in the order of their lines."""
    unique = {(problem.path, problem.message): problem for problem in problems}
    errors = []
    for problem in unique.values():
        where, key = place.place(problem.path)
        message = f"{key}: {problem.message}" if key else problem.message
        errors.append(ConfigError(message, where=where, remedy=problem.remedy))
    errors.sort(key=lambda error: _line(error.where))
    first = errors[0]
    return ConfigError(
        first.message, where=first.where, remedy=first.remedy, problems=tuple(errors)
    )


def _line(where: str) -> int:
    number = where.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0
