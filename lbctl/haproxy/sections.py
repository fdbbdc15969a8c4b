"""Divides a configuration into its sections, and finds the settings that hold in each.

A proxy begins with the settings of a ``defaults`` section: the one that it names with ``from``, or
the last one before it. Lines within ``.if`` … ``.endif`` are left out, because their conditions
depend on the process that runs HAProxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lbctl.haproxy.grammar import Line
from lbctl.haproxy.ledger import Ledger

PROXIES = ("frontend", "backend", "listen")
OTHERS = {
    "acme": "certificates are no matter of a layer-4 balancer",
    "cache": "a layer-4 balancer keeps no answers",
    "crt-store": "certificates are no matter of a layer-4 balancer",
    "fcgi-app": "FastCGI needs a proxy",
    "http-errors": "a layer-4 balancer gives no HTTP answers",
    "log-forward": "log messages are not forwarded: services of udp balance syslog",
    "log-profile": "the agent logs to the journal",
    "mailers": "alerts are Prometheus' (deploy/prometheus)",
    "peers": "balancers share their flows by `failover.sync`",
    "program": "programs are systemd's matter",
    "resolvers": "names are asked of the servers in /etc/resolv.conf, or of `discover.server`",
    "ring": "the agent logs to the journal",
    "traces": "`lbctl trace` follows packets",
    "userlist": "a layer-4 balancer knows no users of HTTP",
}
_KINDS = frozenset({"global", "defaults", *PROXIES, *OTHERS})
_MESSAGES = frozenset({".diag", ".notice", ".warning", ".alert"})
_CONDITIONS = frozenset({".if", ".elif", ".else", ".endif"})


@dataclass(slots=True, eq=False)
class Section:
    """A section: its kind, its name, the line that begins it, and the lines in it."""

    head: Line
    below: Section | None = None
    body: list[Line] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The keyword that begins it."""
        return self.head.name

    @property
    def name(self) -> str:
        """Its name, or an empty text."""
        return "" if self.head.word(1) == "from" else self.head.word(1)

    @property
    def title(self) -> str:
        """Kind and name, as errors of HAProxy say it."""
        return f"{self.kind} {self.name}".strip()


def divide(lines: Sequence[Line], ledger: Ledger) -> list[Section]:
    """Return the sections in order. ``below`` of each is the defaults section that holds in it."""
    found: list[Section] = []
    named: dict[str, Section] = {}
    last: Section | None = None
    for line in _unconditional(lines, ledger):
        if line.name not in _KINDS or line.off:
            if found:
                found[-1].body.append(line)
            else:
                ledger.note(line, f"{line.name}: no section has begun before it")
            continue
        section = Section(line)
        found.append(section)
        if section.kind in ("defaults", *PROXIES):
            section.below = _below(section, named, last, ledger)
        if section.kind == "defaults":
            last = section
            if section.name:
                named[section.name] = section
    return found


def _below(
    section: Section, named: dict[str, Section], last: Section | None, ledger: Ledger
) -> Section | None:
    words = section.head.words
    at = 1 if section.head.word(1) == "from" else 2
    if section.head.word(at) == "from":
        base = named.get(section.head.word(at + 1))
        if base is None:
            name = section.head.word(at + 1)
            ledger.lose(section.head, f"there is no defaults section {name!r} before it")
        return base
    if len(words) > 2:
        ledger.note(section.head, f"{' '.join(words[2:])}: not known here")
    # A defaults section without `from` begins with HAProxy's own defaults.
    return None if section.kind == "defaults" else last


def _unconditional(lines: Sequence[Line], ledger: Ledger) -> Iterator[Line]:
    opening: Line | None = None
    depth = 0
    skipped: list[Line] = []
    for line in lines:
        if line.name in _CONDITIONS:
            if line.name == ".if":
                opening = opening or line
                depth += 1
            if opening is not line:
                skipped.append(line)
            if line.name == ".endif" and depth:
                depth -= 1
                if not depth and opening is not None:
                    _leave_out(opening, skipped, ledger)
                    opening, skipped = None, []
        elif opening is not None:
            skipped.append(line)
        elif line.name in _MESSAGES:
            ledger.rest(line, line.name)
        else:
            yield line
    if opening is not None:
        _leave_out(opening, skipped, ledger)
    for line in skipped:
        if not ledger.knows(line):
            ledger.note(line, f"{line.name} without .if")


def _leave_out(opening: Line, skipped: Sequence[Line], ledger: Ledger) -> None:
    last = skipped[-1].line if skipped else opening.line
    ledger.cover(skipped)
    ledger.lose(
        opening,
        f"conditions are not evaluated: everything up to line {last} is left out; "
        "keep the lines that hold, and remove .if and .endif",
    )


class Proxy:
    """A section with all settings that hold in it: first those of its defaults, then its own.

    Whatever is looked up here is accounted for in the ledger.
    """

    def __init__(self, section: Section, ledger: Ledger) -> None:
        self.section, self._ledger = section, ledger
        self.own = section.body
        chain = []
        below = section.below
        while below is not None:  # ends: a section is only below later ones
            chain.append(below)
            below = below.below
        self.lines = [line for each in (*reversed(chain), section) for line in each.body]

    def all(self, *words: str, own: bool = False) -> list[Line]:
        """Return the lines that begin with these words and can be converted."""
        lines = self.own if own else self.lines
        found = [line for line in lines if line.words[: len(words)] == words]
        return [line for line in found if self._ledger.usable(line) and not line.off]

    def last(self, *words: str) -> Line | None:
        """Return the line that begins with these words and counts; None if none does."""
        found = [line for line in self.lines if line.words[: len(words)] == words]
        usable = [line for line in found if self._ledger.usable(line)]
        return usable[-1] if usable and not usable[-1].off else None
