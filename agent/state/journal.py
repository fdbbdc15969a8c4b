"""Defines the journal: past log lines as entries, and queries for them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.logs import LogLevel

MAX_TEXT = 500  # characters of one value, because a server's text can have any length
MAX_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Line:
    """A line to log. ``event`` names its kind; ``fields`` are those of a log line.

    ``level`` WARNING: something has failed, but clients are still served; ERROR: some clients are
    not served, or an order cannot be carried out.
    """

    level: LogLevel
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line logged at ``at`` (Unix time). ``number`` continues to count across restarts."""

    number: int
    at: float
    level: LogLevel
    event: str
    fields: Mapping[str, str]

    @property
    def service(self) -> str:
        """The service concerned; empty: none, or several."""
        return self.fields.get("service") or self.fields.get("backend", "").partition("/")[0]


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries to return: ``since`` (Unix time) and ``after`` (an entry's number) exclude
    earlier ones; ``limit`` is how many of the newest to keep. ``backend`` is SERVICE/BACKEND.
    """

    since: float = 0.0
    after: int = 0
    service: str | None = None
    backend: str | None = None
    level: LogLevel = LogLevel.INFO
    event: str | None = None
    limit: int = 1000

    def matches(self, entry: Entry) -> bool:
        """Return whether an entry meets the criteria, regardless of the limit."""
        return (
            entry.number > self.after
            and entry.at >= self.since
            and entry.level.number >= self.level.number
            and self.event in (None, entry.event)
            and self.service in (None, entry.service)
            and self.backend in (None, entry.fields.get("backend"))
        )


def newest(entries: Iterable[Entry], query: Query) -> tuple[Entry, ...]:
    """Return the entries that match, oldest first; ``entries`` are newest first."""
    found: list[Entry] = []
    for entry in entries:
        if entry.number <= query.after or len(found) == query.limit:
            break
        if query.matches(entry):
            found.append(entry)
    return tuple(reversed(found))


@dataclass(frozen=True, slots=True)
class Tally:
    """How many entries there were by level, and changes of state by backend (SERVICE/BACKEND)."""

    levels: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, int] = field(default_factory=dict)


def tally(entries: Iterable[Entry], since: float) -> Tally:
    """Count the entries since a time; ``entries`` are newest first."""
    levels, changes = Counter[str](), Counter[str]()
    for entry in entries:
        if entry.at < since:
            break
        levels[entry.level.value] += 1
        if entry.event == "backend":
            changes[entry.fields.get("backend", "")] += 1
    return Tally(levels, changes)


def as_fields(fields: Mapping[str, object]) -> dict[str, str]:
    """Convert a log line's fields to text, shortened and without terminal control characters."""
    return {
        key: text
        for key, value in list(fields.items())[:MAX_FIELDS]
        if (text := _text(value)) is not None
    }


def _text(value: object) -> str | None:
    if value is None or value == "":
        return None
    text = str(value)
    text = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
    return text if text.isprintable() else "".join(_visible(text))


def _visible(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() else " " if character.isspace() else "�"


@dataclass(slots=True)
class Budget:
    """A token bucket for entries, so that a persistent failure cannot crowd out everything else.

    It allows ``per_s`` entries a second and bursts of ``most``. ``refused``: how many entries were
    refused since the last one that was accepted.
    """

    per_s: float
    most: float
    left: float
    at: float
    refused: int = 0

    def take(self, now: float) -> bool:
        """Take a token at ``now`` (seconds); return whether there was one."""
        self.left = min(self.most, self.left + max(0.0, now - self.at) * self.per_s)
        self.at = now
        if self.left < 1:
            self.refused += 1
            return False
        self.left -= 1
        return True
