"""A store in memory with the habits of etcd that were measured, for tests of what uses it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field

from agent.errors import CompactedError, LeaseLostError, StoreError, UncertainError
from agent.fleet.etcd import Change, Listing, Row
from agent.model import Etcd


@dataclass
class Memory:
    """What all clients of one store share."""

    rows: dict[str, tuple[bytes, int, int | None]] = field(default_factory=dict)
    revision: int = 1
    log: list[Change] = field(default_factory=list)
    compacted: int = 0
    away: bool = False
    read_only: bool = False  # our user's role allows no more
    silent: bool = False  # watches stay open, and say nothing
    loses: int = 0  # the answers to so many transactions get lost, whether they were made or not
    leases: dict[int, bool] = field(default_factory=dict)
    kept_alive: list[int] = field(default_factory=list)  # the lease of each such request
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(7))
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, changes: Mapping[str, bytes | None], lease: int | None = None) -> int:
        """Make changes at one revision; None deletes."""
        self.revision += 1
        for key, value in changes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value, self.revision, lease
            self.log.append(Change(key, value, self.revision))
        self._news.set()
        self._news = asyncio.Event()
        return self.revision

    def end_lease(self, lease: int) -> None:
        """Let a lease end, as it does when nobody keeps it alive."""
        self.leases[lease] = False
        gone = {key: None for key, (_, _, of) in self.rows.items() if of == lease}
        if gone:
            self.write(gone)

    def compact(self) -> None:
        """Forget what was before now."""
        self.compacted = self.revision

    def grant(self) -> int:
        lease = next(self._ids)
        self.leases[lease] = True
        return lease

    async def wait(self) -> None:
        await self._news.wait()


class MemoryClient:
    """As ``agent.fleet.etcd.Client``, beside ``memory``."""

    memory: Memory

    def __init__(self, _etcd: Etcd, prefix: str, first: int = 0) -> None:
        self.prefix = prefix

    async def close(self) -> None:
        pass

    def _check(self) -> None:
        if self.memory.away:
            raise StoreError("connection refused", where="http://e1:2379", remedy="start it")

    def _row(self, key: str, *, keys_only: bool = False) -> Row:
        value, revision, _ = self.memory.rows[key]
        return Row(key.removeprefix(self.prefix), b"" if keys_only else value, revision)

    async def get(self, key: str, *, serializable: bool = False) -> Listing:
        await asyncio.sleep(0)
        self._check()
        name = self.prefix + key
        found = (self._row(name),) if name in self.memory.rows else ()
        return Listing(self.memory.revision, found)

    async def list(
        self,
        prefix: str,
        *,
        after: str = "",
        newest_first: bool = False,
        limit: int = 0,
        keys_only: bool = False,
        serializable: bool = False,
    ) -> Listing:
        await asyncio.sleep(0)
        self._check()
        names = sorted(
            name
            for name in self.memory.rows
            if name.startswith(self.prefix + prefix) and name > self.prefix + after
        )
        names = names[::-1] if newest_first else names
        names = names[:limit] if limit else names
        rows = tuple(self._row(name, keys_only=keys_only) for name in names)
        return Listing(self.memory.revision, rows)

    async def put(self, key: str, value: bytes, lease: int | None = None) -> int:
        await asyncio.sleep(0)
        self._check()
        if self.memory.read_only:
            raise StoreError("permission denied", where="http://e1:2379", remedy="grant it")
        if lease is not None and not self.memory.leases.get(lease):
            raise LeaseLostError("requested lease not found", where="e1", remedy="")
        return self.memory.write({self.prefix + key: value}, lease)

    async def commit(
        self, unchanged: Mapping[str, int], puts: Mapping[str, bytes], deletes: Iterable[str] = ()
    ) -> int | None:
        await asyncio.sleep(0)
        self._check()
        rows, made = self.memory.rows, None
        if all(
            rows.get(self.prefix + key, (b"", 0, None))[1] == revision
            for key, revision in unchanged.items()
        ):
            changes: dict[str, bytes | None] = {self.prefix + key: puts[key] for key in puts}
            changes |= {self.prefix + key: None for key in deletes}
            made = self.memory.write(changes)
        if self.memory.loses:
            self.memory.loses -= 1
            raise UncertainError("no answer", where="http://e1:2379", remedy="look")
        return made

    async def delete(self, key: str, end: str | None = None) -> int:
        await asyncio.sleep(0)
        self._check()
        first, last = self.prefix + key, self.prefix + (end or key + "\0")
        gone = [name for name in self.memory.rows if first <= name < last]
        if gone:
            self.memory.write(dict.fromkeys(gone))
        return len(gone)

    async def grant(self, ttl_s: int) -> int:
        self._check()
        return self.memory.grant()

    async def keep_alive(self, lease: int) -> float:
        self._check()
        if not self.memory.leases.get(lease):
            raise LeaseLostError("the lease has ended", where="e1", remedy="")
        self.memory.kept_alive.append(lease)
        return 5.0

    async def watch(
        self, prefix: str, revision: int
    ) -> AsyncGenerator[tuple[int, tuple[Change, ...]]]:
        memory = self.memory
        self._check()
        if revision <= memory.compacted:
            raise CompactedError("compacted", where="e1", remedy="")
        while True:
            self._check()
            seen = memory.revision
            if not memory.silent:
                for of in range(revision, seen + 1):
                    changes = tuple(
                        Change(each.key.removeprefix(self.prefix), each.value, each.revision)
                        for each in memory.log
                        if each.revision == of and each.key.startswith(self.prefix + prefix)
                    )
                    if changes:
                        yield of, changes
                revision = seen + 1
            if memory.revision == seen:
                await memory.wait()
