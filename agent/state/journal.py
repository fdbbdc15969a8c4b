"""The journal: what the agent has said, as people and programs ask for it afterwards. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.logs import LogLevel

MAX_TEXT = 500  # characters of one value; the words of a server can be as long as it likes
MAX_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Line:
    """Something to say. ``event`` names its kind; ``fields`` are as a log line has them.

    ``level`` WARNING: something has failed, and clients are served all the same; ERROR: some are
    not, or what was ordered cannot be done.
    """

    level: LogLevel
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that was said, at ``at`` (Unix time). ``number`` counts on over restarts."""

    number: int
    at: float
    level: LogLevel
    event: str
    fields: Mapping[str, str]

    @property
    def service(self) -> str:
        """The service that it is about; empty: it is about none, or about several."""
        return self.fields.get("service") or self.fields.get("backend", "").partition("/")[0]


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries: ``since`` (Unix time) and ``after`` (a number) exclude what was before,
    ``limit`` keeps the newest so many. ``backend`` is SERVICE/BACKEND.
    """

    since: float = 0.0
    after: int = 0
    service: str | None = None
    backend: str | None = None
    level: LogLevel = LogLevel.INFO
    event: str | None = None
    limit: int = 1000

    def matches(self, entry: Entry) -> bool:
        """Whether it is asked for, whatever the limit."""
        return (
            entry.number > self.after
            and entry.at >= self.since
            and entry.level.number >= self.level.number
            and self.event in (None, entry.event)
            and self.service in (None, entry.service)
            and self.backend in (None, entry.fields.get("backend"))
        )


def newest(entries: Iterable[Entry], query: Query) -> tuple[Entry, ...]:
    """The entries that match, oldest first; ``entries`` are newest first."""
    found: list[Entry] = []
    for entry in entries:
        if entry.number <= query.after or len(found) == query.limit:
            break
        if query.matches(entry):
            found.append(entry)
    return tuple(reversed(found))


@dataclass(frozen=True, slots=True)
class Tally:
    """How many entries there were, by level, and changes of state, by backend (SERVICE/BACKEND)."""

    levels: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, int] = field(default_factory=dict)


def tally(entries: Iterable[Entry], since: float) -> Tally:
    """What there was since then; ``entries`` are newest first."""
    levels, changes = Counter[str](), Counter[str]()
    for entry in entries:
        if entry.at < since:
            break
        levels[entry.level.value] += 1
        if entry.event == "backend":
            changes[entry.fields.get("backend", "")] += 1
    return Tally(levels, changes)


def as_fields(said: Mapping[str, object]) -> dict[str, str]:
    """Fields of a log line as text: short, and nothing in it that a terminal would obey."""
    return {
        key: text
        for key, value in list(said.items())[:MAX_FIELDS]
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
    """So many entries a second and at once, that nothing which fails all the time takes the place
    of all else. ``refused``: how many were too many since the last that was not.
    """

    per_s: float
    most: float
    left: float
    at: float
    refused: int = 0

    def take(self, now: float) -> bool:
        """Whether there is room for one more at ``now`` (seconds)."""
        self.left = min(self.most, self.left + max(0.0, now - self.at) * self.per_s)
        self.at = now
        if self.left < 1:
            self.refused += 1
            return False
        self.left -= 1
        return True
