"""Owns a fleet's keys in its store: its versions, which of them is active, and its reports."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, replace

from agent.errors import NotFoundError, OvertakenError, StoreError, UncertainError
from agent.fleet.etcd import Client, Listing, Row
from agent.fleet.reports import (
    NODES,
    PARTS,
    SEEN,
    Part,
    Report,
    read_parts,
    read_report,
    read_seen,
    write_seen,
)
from agent.fleet.versions import (
    ACTIVE,
    LOG,
    SNAPSHOTS,
    VERSIONS,
    Active,
    Documents,
    FleetVersion,
    Log,
    Rollout,
    Trial,
    entry_of,
    log_key,
    number_of,
    pack_entry,
    pack_snapshot,
    read_active,
    read_entry,
    read_snapshot,
    snapshot_key,
    write_active,
)
from agent.logs import get_logger
from agent.model import Fleet

log = get_logger()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the store.

    ``revision``: that of ``active``; 0: the store has none. ``read_at``: the store's revision after
    which changes are not yet known.
    """

    active: Active
    revision: int
    read_at: int
    log: Log

    @property
    def exists(self) -> bool:
        """Whether the fleet has had a version at all."""
        return self.revision > 0


@dataclass(frozen=True, slots=True)
class Order:
    """A new version: what it holds, who makes it, and on which balancers it is tried first.

    ``number``: at least this number is given to it. ``trial`` None: all take it at once.
    """

    after: Documents
    at: float
    node: str
    how: str
    who: str
    message: str
    changes: tuple[str, ...]
    number: int = 0
    trial: Trial | None = None


class FleetStore:
    """The keys of one fleet."""

    def __init__(self, fleet: Fleet, first: int = 0) -> None:
        """``first`` is the member of the store that is asked first."""
        self._history = fleet.history
        self.client = Client(fleet.etcd, f"{fleet.etcd.prefix}/{fleet.name}/", first)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    # -- versions

    async def read(self) -> Known:
        """Return what is active, with the versions from the newest snapshot on."""
        whole = await self.client.list(SNAPSHOTS, newest_first=True, limit=1)
        number, documents = 0, None
        for row in whole.rows:
            number, documents = number_of(row.key), read_snapshot(row.key, row.value)
        known = Log(number, documents)
        # With the version that the snapshot is of: the snapshot does not say who made it.
        listed = await self.client.list(LOG, after=log_key(number - 1) if number else "")
        for row in listed.rows:
            known.add(read_entry(row.key, row.value))
        found = await self.active()
        active, revision = _active(found)
        return Known(active, revision, whole.revision, known)

    async def active(self) -> Listing:
        """Return the key that says which version is active, if there is one."""
        return await self.client.get(ACTIVE)

    async def follow(self, known: Known) -> AsyncGenerator[Known]:
        """Yield what is known after each change, from ``known`` on, until the stream breaks.

        Raises StoreError then.
        """
        changes = self.client.watch(VERSIONS, known.read_at + 1)
        async for revision, changed in changes:
            active, of = known.active, known.revision
            for change in changed:
                if change.value is None:
                    continue  # trimmed; nobody removes what is active
                if change.key.startswith(LOG):
                    known.log.add(read_entry(change.key, change.value))
                elif change.key == ACTIVE:
                    active, of = read_active(change.value), change.revision
            known = Known(active, of, max(revision, known.read_at), known.log)
            if active.snapshot:
                known.log.forget_before(active.snapshot)
            yield known

    async def add(self, known: Known, order: Order) -> tuple[Known, FleetVersion]:
        """Write a new version. Raises OvertakenError, or StoreError.

        Two balancers that change the same version at the same time cannot both succeed.
        """
        active = known.active
        before = known.log.documents(active.stable)
        if before is None:
            raise OvertakenError(
                f"version {active.stable} is not known here yet",
                where="the fleet's store",
                remedy="try again in a moment",
            )
        number = max(active.newest + 1, order.number)
        entry = entry_of(
            number,
            active.stable,
            before,
            order.after,
            at=order.at,
            node=order.node,
            how=order.how,
            who=order.who,
            message=order.message,
            changes=order.changes,
        )
        rollout = None
        if order.trial is not None:
            rollout = Rollout(number, order.trial.nodes, order.at, order.trial.bake_s)
        new = active.with_version(number, rollout)
        puts = {log_key(number): pack_entry(entry), ACTIVE: write_active(new)}
        if new.snapshot == number:
            puts[snapshot_key(number)] = pack_snapshot(order.after)
        unchanged = {log_key(number): 0, ACTIVE: known.revision}
        revision, is_refused = await self._commit(unchanged, puts)
        if not revision:
            row = await self._look(log_key(number))
            if row is None or row.value != puts[log_key(number)]:
                raise _overtaken() if row is not None or is_refused else _uncertain()
            revision = row.revision
        known.log.add(entry)
        if new.snapshot == number:
            await self._trim(number)
        return Known(new, revision, known.read_at, known.log), entry

    async def set_active(self, known: Known, new: Active) -> Known:
        """End a rollout: ``new`` says how. Raises OvertakenError, or StoreError."""
        revision, _ = await self._commit({ACTIVE: known.revision}, {ACTIVE: write_active(new)})
        if revision:
            return replace(known, active=new, revision=revision)
        row = await self._look(ACTIVE)
        if row is None:
            raise _uncertain()
        found = read_active(row.value)
        if found.ended == new.ended:  # whatever has been changed since
            return replace(known, active=found, revision=row.revision)
        if found.ended and new.ended and found.ended.version == new.ended.version:
            raise _overtaken()
        raise _uncertain()

    async def _commit(
        self, unchanged: Mapping[str, int], puts: Mapping[str, bytes]
    ) -> tuple[int, bool]:
        """Make a change, and return its revision, or 0 if its answer got lost.

        That happens when the leader dies. Then the change is sent once more: it cannot be made
        twice, because it demands what was there before. The second value: that was refused, so
        either it had been made, or another balancer's. Raises OvertakenError, or StoreError.
        """
        with contextlib.suppress(UncertainError):
            revision = await self.client.commit(unchanged, puts)
            if revision is None:
                raise _overtaken()
            return revision, False
        with contextlib.suppress(UncertainError):
            revision = await self.client.commit(unchanged, puts)
            return revision or 0, revision is None
        return 0, False

    async def _look(self, key: str) -> Row | None:
        """Return what a key holds, to see whether a change was made."""
        try:
            rows = (await self.client.get(key)).rows
        except StoreError as error:
            raise _uncertain() from error
        return rows[0] if rows else None

    async def _trim(self, newest: int) -> None:
        """Remove the versions that are older than the history reaches. Failing is no harm."""
        try:
            listed = await self.client.list(SNAPSHOTS, keys_only=True)
            whole = [number_of(row.key) for row in listed.rows]
            oldest = max((n for n in whole if n <= newest - self._history), default=0)
            if oldest:
                await self.client.delete(SNAPSHOTS, snapshot_key(oldest))
                await self.client.delete(LOG, log_key(oldest))
        except StoreError as error:
            log.warning("the fleet's oldest versions are not removed", problem=str(error))

    async def history(self, most: int) -> tuple[FleetVersion, ...]:
        """Return the newest versions, newest first."""
        listed = await self.client.list(LOG, newest_first=True, limit=most)
        return tuple(read_entry(row.key, row.value) for row in listed.rows)

    async def version(self, number: int) -> tuple[FleetVersion, Documents]:
        """Return a version and its services. Raises NotFoundError."""
        listed = await self.client.list(SNAPSHOTS, keys_only=True)
        base = max((n for row in listed.rows if (n := number_of(row.key)) <= number), default=0)
        documents = None
        for row in (await self.client.get(snapshot_key(base))).rows if base else ():
            documents = read_snapshot(row.key, row.value)
        known = Log(base, documents)
        after = log_key(base - 1) if base else ""  # with the version that the snapshot is of
        for row in (await self.client.list(LOG, after=after)).rows:
            known.add(read_entry(row.key, row.value))
        entry, found = known.entry(number), known.documents(number)
        if entry is None or found is None:
            raise NotFoundError(
                f"there is no version {number} of the fleet's services, or not any more",
                where="the fleet's store",
                remedy="lbctl fleet history",
            )
        return entry, found

    # -- reports

    async def reports(self) -> dict[str, Report]:
        """Return the reports of the balancers whose lease has not ended, by their names."""
        found = {}
        for row in (await self.client.list(NODES)).rows:
            node = row.key.removeprefix(NODES)
            try:
                found[node] = read_report(node, row.value)
            except StoreError as error:
                log.warning("a balancer's report is ignored", node=node, problem=error.message)
        return dict(sorted(found.items()))

    async def report_of(self, node: str) -> Report | None:
        """Return what a balancer reports at present."""
        rows = (await self.client.get(NODES + node)).rows
        return read_report(node, rows[0].value) if rows else None

    async def note_seen(self, node: str, at: float) -> None:
        """Note that a balancer reports; ``at`` in seconds since the epoch."""
        await self.client.put(SEEN + node, write_seen(at))

    async def seen(self) -> dict[str, float]:
        """Return when the balancers reported, those included that do not any more."""
        found = {}
        for row in (await self.client.list(SEEN)).rows:
            node = row.key.removeprefix(SEEN)
            try:
                found[node] = read_seen(node, row.value)
            except StoreError as error:
                log.warning("it cannot be told when a balancer reported", problem=str(error))
        return found

    async def forget(self, node: str) -> bool:
        """Forget that a balancer has reported; return whether it had."""
        return await self.client.delete(SEEN + node) > 0

    async def parts(self, nodes: Iterable[str]) -> Mapping[str, Mapping[str, Part]]:
        """Return the digests of the services of some balancers. Raises NotFoundError."""
        found = {}
        for node in nodes:
            rows = (await self.client.get(PARTS + node)).rows
            if not rows:
                raise NotFoundError(
                    f"no balancer {node} reports to the fleet",
                    where="the fleet's store",
                    remedy="`lbctl fleet status` shows those that do",
                )
            found[node] = read_parts(node, rows[0].value)
        return found


def _active(found: Listing) -> tuple[Active, int]:
    for row in found.rows:
        return read_active(row.value), row.revision
    return Active(), 0


def _overtaken() -> OvertakenError:
    return OvertakenError(
        "another balancer has changed the fleet in the same moment, so nothing was changed",
        where="the fleet's store",
        remedy="see `lbctl fleet history`, and try again",
    )


def _uncertain() -> UncertainError:
    return UncertainError(
        "it is not known whether the change was made, because the store's answer got lost",
        where="the fleet's store",
        remedy="see `lbctl fleet history`, and try again if the change is not there",
    )
