"""Owns the audit log, which says who changed what through the API, before the change is made.

Each record is synced to disk before the change is made. If it cannot be written, the change is made
nevertheless, and the log and `lbctl status` say so; with ``is_required`` it is refused instead.
Records that could not be written are written as soon as possible.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.api.times import rfc3339
from agent.errors import AuditError, ConfigError, RequestError, SteelyardError
from agent.files import sync_folder
from agent.logs import get_logger
from agent.state.auditlog import (
    HEAD_EVENT,
    MOST_FILES,
    PEER_EVENT,
    Head,
    Kind,
    Record,
    head_of,
    parsed,
    sealed,
    shortened,
)
from agent.state.journal import Budget

log = get_logger()

FILE_BYTES = 4 << 20  # some 10,000 records; then a new file is begun
KEPT = 1000  # records in memory that could not be written
TICK_S = 2.0
ANCHOR_S = 60.0
ANCHOR_RECORDS = 100
# Denied requests are not changes, and a viewer must not be able to push changes out of the log.
DENIED_PER_S, DENIED_AT_ONCE = 1 / 60, 20.0


@dataclass(slots=True)
class Effect:
    """The effect of a change that comes from the agent itself, in a sentence."""

    text: str = ""


class AuditLog:
    """The audit log of one instance.

    It is kept in ``<name>.audit`` in the state directory and in the previous files
    ``<name>.audit.1`` and so on. ``is_required``: whether a change that cannot be recorded must not
    be made.
    """

    def __init__(self, state_dir: Path, name: str, is_required: Callable[[], bool]) -> None:
        self.path = state_dir / f"{name}.audit"
        self.problem = ""  # why changes are not recorded; empty: they are
        self._is_required = is_required
        self._lock = threading.Lock()
        self._unwritten: deque[Record] = deque()
        self._lost = 0  # records that did not fit into memory either
        self._size: int | None = None  # of the file when it was last written
        self._denied = Budget(DENIED_PER_S, DENIED_AT_ONCE, DENIED_AT_ONCE, time.monotonic())
        self._noted = 0  # the number of the last head in the system's log
        self._noted_at = time.monotonic()
        self._noted_of_peers: Mapping[str, str] = {}
        # The heads of other balancers' logs, NUMBER:HASH by address.
        self.peers: Callable[[], Mapping[str, str]] = dict
        self.head = self._found_head()

    # -- records

    async def order(self, **about: object) -> str:
        """Record that a change is about to be made; return the id that its outcome refers to.

        Raises AuditError if that cannot be recorded, and a record is required.
        """
        change = secrets.token_hex(4)
        content = _content(Kind.ORDER, change=change, **about)
        await asyncio.to_thread(self._add, content, must=self._is_required())
        return change

    async def outcome(self, change: str, outcome: str, effect: str) -> None:
        """Record the outcome of a change."""
        content = _content(Kind.OUTCOME, change=change, outcome=outcome, effect=effect)
        await asyncio.to_thread(self._add, content)

    def broken_off(self, change: str) -> None:
        """Record that a change was broken off. It blocks, because the task is being cancelled."""
        self._add(
            _content(Kind.OUTCOME, change=change, outcome="failed", effect="it was broken off")
        )

    async def denied(self, **about: object) -> None:
        """Record and log a request for which the caller's role does not suffice.

        If there are many, only some are recorded, with the number of the others.
        """
        left_out = self._denied.refused
        if not self._denied.take(time.monotonic()):
            return
        self._denied.refused = 0
        log.warning("denied", **{key: about.get(key) for key in ("by", "role", "what")})
        content = _content(Kind.DENIED, left_out=left_out or None, **about)
        await asyncio.to_thread(self._add, content)

    async def started(self, **about: object) -> None:
        """Record that the agent has started."""
        await asyncio.to_thread(self._add, _content(Kind.START, **about))

    @contextlib.asynccontextmanager
    async def inside(self, by: str, what: str, effect: str = "") -> AsyncIterator[Effect]:
        """Record a change that comes from the agent itself. It is made in any case.

        The caller may set its effect meanwhile.
        """
        change, found = secrets.token_hex(4), Effect(effect)
        content = _content(Kind.ORDER, change=change, by=by, what=what)
        await asyncio.to_thread(self._add, content)
        try:
            yield found
        except SteelyardError as error:
            is_quoted = type(error) in (ConfigError, RequestError)  # it could quote a secret
            why = "it is invalid" if is_quoted else error.message
            await self.outcome(change, "refused", f"{error.where}: {why}".removeprefix(": "))
            raise
        except BaseException:
            self.broken_off(change)
            raise
        await self.outcome(change, "ok", found.text or "done")

    def _add(self, content: Record, *, must: bool = False) -> None:
        """Write a record, and those that could not be written before.

        With ``must``, raise AuditError and forget the record if it cannot be written.
        """
        with self._lock:
            self._unwritten.append(content)
            if len(self._unwritten) > KEPT:
                self._unwritten.popleft()
                self._lost += 1
            self._flush()
            if must and self.problem:
                self._unwritten.pop()
                raise AuditError(
                    f"the change was not made, because it cannot be recorded: {self.problem}",
                    where="audit_log.required",
                    remedy="free space on that file system, or make it writable; without "
                    "'audit_log: {required: true}' changes are made all the same",
                )

    def _flush(self) -> None:
        """Write what is not written yet; set ``problem``."""
        try:
            while self._unwritten or self._lost:
                if self._lost:
                    self._write(_content(Kind.LOST, count=self._lost))
                    self._lost = 0
                else:
                    self._write(self._unwritten[0])
                    self._unwritten.popleft()
        except OSError as error:
            problem = f"{self.path}: {error.strerror or error}"
            if problem != self.problem:
                log.error("changes are not recorded in the audit log", problem=problem)
            self.problem = problem
            return
        if self.problem:
            log.info("changes are recorded in the audit log again")
        self.problem = ""
        if self.head.number - self._noted >= ANCHOR_RECORDS:
            self._note()

    # -- the files

    def _write(self, content: Record) -> None:
        """Append a record to the file, which gets a first record if it is new."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self._size is not None and self._size >= FILE_BYTES:
            self._rotate()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self.path, flags, 0o600)
        try:
            size = self._whole(file)
            if self._size is not None and size != self._size:
                log.error(
                    "the audit log was changed by something else",
                    path=str(self.path),
                    remedy="lbctl audit verify",
                )
            if size == 0:
                begin = sealed(_content(Kind.BEGIN), self.head)
                self._append(file, 0, *begin)
                sync_folder(self.path.parent)
                size = self._size or 0
            self._append(file, size, *sealed(content, self.head))
        finally:
            os.close(file)

    def _append(self, file: int, size: int, line: bytes, head: Head) -> None:
        """Append a line and sync it, or leave the file as it was."""
        try:
            rest = line
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            self._size = size
            raise
        self._size, self.head = size + len(line), head

    def _whole(self, file: int) -> int:
        """Return the size of the file, without half of a line that a crash has left at its end."""
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            whole = os.pread(file, size, 0).rfind(b"\n") + 1
            log.warning("the audit log ended with half of a record", path=str(self.path))
            os.ftruncate(file, whole)
            return whole
        return size

    def _rotate(self) -> None:
        """Begin a new file, and remove the oldest one."""
        paths = self.paths()
        for number in range(len(paths) - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                paths[number - 1].replace(paths[number])
        sync_folder(self.path.parent)
        self._size = 0

    def paths(self) -> tuple[Path, ...]:
        """Return where the files are, or would be, the newest first."""
        return paths_of(self.path)

    def _found_head(self) -> Head:
        for path in self.paths():
            try:
                lines = path.read_bytes().splitlines(keepends=True)
            except OSError:
                continue
            # Half of a line at the end is removed before the next one is written.
            head = head_of(line for line in reversed(lines) if line.endswith(b"\n"))
            if head.number:
                return head
        return Head()

    def read(self, since: float, limit: int) -> tuple[Record, ...]:
        """Return the newest records since a time (Unix time), the oldest first; it blocks."""
        found: list[Record] = []
        start = rfc3339(since)
        for record in self._backwards():
            if len(found) == limit or record["at"] < start:
                break
            found.append(record)
        return tuple(reversed(found))

    def _backwards(self) -> Iterator[Record]:
        for path in self.paths():
            try:
                lines = path.read_bytes().splitlines()
            except OSError:
                continue
            for line in reversed(lines):
                if (record := parsed(line)) is not None:
                    yield record

    # -- anchors

    async def keep(self) -> None:
        """Note heads in the system's log, and write what could not be written, for ever."""
        try:
            while True:
                await asyncio.sleep(TICK_S)
                if self._unwritten:
                    await asyncio.to_thread(self._retry)
                if time.monotonic() - self._noted_at >= ANCHOR_S:
                    self._note()
        finally:
            self._retry()
            self._note()

    def _retry(self) -> None:
        with self._lock:
            self._flush()

    def _note(self) -> None:
        """Note the heads of this log and of other balancers in the system's log, if they have
        changed since the last time.

        Whoever can edit the audit log can hardly edit a log that is on another host.
        """
        self._noted_at = time.monotonic()
        if self.head.number != self._noted:
            self._noted = self.head.number
            log.info(HEAD_EVENT, number=self.head.number, hash=self.head.hash, path=str(self.path))
        heads = self.peers()
        for peer, head in heads.items():
            if self._noted_of_peers.get(peer) != head:
                number, _, digest = head.partition(":")
                log.info(PEER_EVENT, peer=peer, number=int(number), hash=digest)
        self._noted_of_peers = {**self._noted_of_peers, **heads}


def paths_of(path: Path) -> tuple[Path, ...]:
    """Return where the files of a log are, or would be, the newest first."""
    older = (path.with_name(f"{path.name}.{number}") for number in range(1, MOST_FILES))
    return (path, *older)


def _content(kind: Kind, **about: object) -> Mapping[str, object]:
    """Return a record without its place in the chain."""
    given = {
        key: shortened(value) if isinstance(value, str) else value
        for key, value in about.items()
        if value is not None
    }
    return {"kind": kind.value, "at": rfc3339(time.time()), **given}
