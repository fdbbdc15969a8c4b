"""Owns the journal: the log lines of this agent and previous ones, in memory and on disk.

Every line that the agent logs at level info or above becomes an entry, whatever the log level is,
so the log, ``lbctl events`` and the counters agree. The journal only serves people, so nothing
here raises an error. What cannot be read is ignored, and a failure to write is logged once.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.logs import LogLevel, get_logger
from agent.state.journal import Budget, Entry, Query, Tally, as_fields, newest, tally

log = get_logger()

KEPT = 10_000  # entries in memory
FILE_BYTES = 5 << 18  # some 5,000 entries; then a new file is begun, and the last one is kept
KEEP_S = 1.0
# The rate limits a failure that is logged all the time; the burst has room for a thousand backends
# that go down together.
ENTRIES_PER_S, ENTRIES_AT_ONCE = 20.0, 4000.0


class Journal:
    """The journal of one instance.

    It is kept in ``<name>.events`` in the state directory and in the previous file
    ``<name>.events.1``, with one JSON object per line.
    """

    def __init__(self, state_dir: Path, name: str) -> None:
        self._path = state_dir / f"{name}.events"
        self._older = state_dir / f"{name}.events.1"
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._unwritten: deque[Entry] = deque(maxlen=KEPT)
        self._budget = Budget(ENTRIES_PER_S, ENTRIES_AT_ONCE, ENTRIES_AT_ONCE, time.monotonic())
        self._lock = threading.Lock()  # lines are also logged in threads
        self._writing = threading.Lock()
        self._complained = self._has_written = False
        self.counts: Counter[tuple[str, str]] = Counter()  # of this agent, by event and level

    def load(self) -> None:
        """Read the entries of previous agents; new entries continue their numbers."""
        for path in (self._older, self._path):
            for entry in _read(path):
                # On a full disk, a write may have failed halfway and then been repeated in full.
                if not self._entries or entry.number > self._entries[-1].number:
                    self._entries.append(entry)

    def last(self, *events: str) -> Entry | None:
        """Return the newest entry with one of these events."""
        return next((each for each in reversed(self._entries) if each.event in events), None)

    def take(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Add a log line to the journal."""
        at = time.time()
        with self._lock:
            self.counts[event, level] += 1
            refused = self._budget.refused
            if not self._budget.take(time.monotonic()):
                return
            if refused:
                self._budget.refused = 0
                many = {"count": str(refused)}
                self._add(at, LogLevel.WARNING, "entries left out: too many a second", many)
            self._add(at, LogLevel(level), event, as_fields(fields))

    def _add(self, at: float, level: LogLevel, event: str, fields: Mapping[str, str]) -> None:
        number = self._entries[-1].number + 1 if self._entries else 1
        entry = Entry(number, at, level, event, fields)
        self._entries.append(entry)
        self._unwritten.append(entry)

    def find(self, query: Query) -> tuple[Entry, ...]:
        """Return the entries that match a query, oldest first."""
        with self._lock:
            entries = tuple(self._entries)
        return newest(reversed(entries), query)

    def tallied(self, since: float) -> Tally:
        """Count the entries since a time (Unix time)."""
        with self._lock:
            entries = tuple(self._entries)
        return tally(reversed(entries), since)

    async def keep(self) -> None:
        """Write new entries to disk, for ever; in a thread, because a disk may be slow."""
        try:
            while True:
                await asyncio.sleep(KEEP_S)
                try:
                    if self._unwritten:
                        await asyncio.to_thread(self.write)
                except Exception:  # this task's root: the journal only serves people
                    log.exception("keeping events broke")
        finally:
            self.write()

    def write(self) -> None:
        """Write the entries that are not on disk yet."""
        with self._writing:
            with self._lock:
                new, self._unwritten = self._unwritten, deque(maxlen=KEPT)
            try:
                self._append("".join(f"{_line(entry)}\n" for entry in new))
            except OSError as error:
                with self._lock:
                    new.extend(self._unwritten)
                    self._unwritten = new
                if not self._complained:
                    self._complained = True
                    log.warning(
                        "events are in memory only: a restart forgets them",
                        path=str(self._path),
                        problem=error.strerror,
                    )
            else:
                self._complained = False

    def _append(self, text: str) -> None:
        if not text:
            return
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8", opener=_private) as file:
            # A crash may have left half of a line at the end of the file.
            file.write(text if self._has_written else f"\n{text}")
            self._has_written = True
            is_full = file.tell() >= FILE_BYTES
        if is_full:
            self._path.replace(self._older)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _line(entry: Entry) -> str:
    return json.dumps(
        {
            "number": entry.number,
            "at": round(entry.at, 6),
            "level": entry.level.value,
            "event": entry.event,
            "fields": dict(entry.fields),
        },
        ensure_ascii=False,
    )


def _read(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file; skip invalid lines, such as one cut off by a crash."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
            yield Entry(
                int(record["number"]),
                float(record["at"]),
                LogLevel(record["level"]),
                str(record["event"]),
                {str(key): str(value) for key, value in record["fields"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
