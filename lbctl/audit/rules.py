"""The parts of an audit rule, and helpers for rules that check every service. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.model import Tables

type Json = Mapping[str, Any]

_NAMED = 3  # services or backends in one line


class Practice(enum.Enum):
    """The practices, in the order in which they are shown."""

    RESOURCES = "Resource assessment"
    SCALABILITY = "Scalability"
    REDUNDANCY = "Redundancy"
    CONFIGURATION = "Configuration"
    SECURITY = "Security"
    MONITORING = "Monitoring and logging"
    LATENCY = "Network latency"
    AI = "AI-specific optimisation"


class Verdict(enum.Enum):
    """Whether a rule is kept. UNKNOWN: there is no evidence."""

    KEPT = "kept"
    BROKEN = "broken"
    NOT_APPLICABLE = "not-applicable"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one rule; ``fix`` is a command, or says what to do."""

    verdict: Verdict
    evidence: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """The evidence from the running system: answers of the API, and facts about this host.

    ``host`` are the findings of ``lbctl doctor``; ``socket_mode`` the permissions of the API's
    socket. None: they are not available.
    """

    status: Json
    services: Sequence[Json]
    config: Json
    failover: Json
    guard: Json
    host: Sequence[Json] | None = None
    socket_mode: int | None = None

    @property
    def backends(self) -> list[Json]:
        """The backends of all services."""
        return [backend for service in self.services for backend in service["backends"]]

    @property
    def tables(self) -> Tables:
        """The sizes of the tables."""
        return Tables(**self.config.get("tables", {}))

    @property
    def tcp(self) -> list[Json]:
        """The tcp services."""
        return [each for each in self.services if each["protocol"] == "tcp"]


@dataclass(frozen=True, slots=True)
class Rule:
    """``holds`` says what should hold, ``risk`` what happens otherwise; both are sentences."""

    name: str
    practice: Practice
    holds: str
    risk: str
    judge: Callable[[Seen], Iterable[Finding]] = field(repr=False)


def kept(evidence: str) -> Finding:
    """Return the finding that the rule is kept."""
    return Finding(Verdict.KEPT, evidence)


def broken(evidence: str, fix: str) -> Finding:
    """Return the finding that the rule is broken."""
    return Finding(Verdict.BROKEN, evidence, fix)


def not_applicable(why: str) -> Finding:
    """Return the finding that the rule does not apply to this system."""
    return Finding(Verdict.NOT_APPLICABLE, why)


def unknown(why: str) -> Finding:
    """Return the finding that there is no evidence."""
    return Finding(Verdict.UNKNOWN, why)


def check(holds: bool, evidence: str, fix: str) -> Iterator[Finding]:
    """Yield one finding, with the same evidence in either case."""
    yield kept(evidence) if holds else broken(evidence, fix)


def named(names: Sequence[str]) -> str:
    """Return names as in ``chat, embed, rank and 4 more``."""
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def each(
    found: Sequence[Json],
    holds: Callable[[Json], bool],
    *,
    none: str,
    good: str,
    bad: str,
    fix: str,
) -> Iterator[Finding]:
    """Yield one finding for all these services; it names those that break the rule.

    ``good`` is formatted with the number of services, ``bad`` follows the names; ``{name}`` in
    ``fix`` is the first of them. ``none`` is the reason if there are no such services.
    """
    if not found:
        yield not_applicable(none)
        return
    wrong = [one["name"] for one in found if not holds(one)]
    if wrong:
        yield broken(f"{named(wrong)}: {bad}", fix.format(name=wrong[0]))
    else:
        yield kept(good.format(count=f"{len(found)} of {len(found)}"))


def of_host(seen: Seen, names: tuple[str, ...], good: str) -> Iterator[Finding]:
    """Yield the doctor's findings of these checks as one."""
    if seen.host is None:
        yield unknown("this host could not be examined: sudo lbctl doctor")
        return
    found = [one for one in seen.host if one["check"] in names]
    bad = [one for one in found if one["verdict"] in ("problem", "warning")]
    if not found:
        yield not_applicable("this does not apply to this host")
    elif bad:
        yield from (broken(one["message"], one["fix"] or "lbctl doctor") for one in bad)
    else:
        yield kept(good)
