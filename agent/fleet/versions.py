"""Defines the versions of a fleet's services, and how they are written in the store. Pure.

A version says what it changes on the version that it was made from, its *base*; every 64th or so is
stored whole, too, as a *snapshot*. Each is a key of its own that nobody overwrites, so the store's
compaction takes no history away. One small key, ``active``, says which version runs: the stable one
on all balancers, or during a rollout a new one on some of them.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.config.versions import MAX_CHANGES
from agent.errors import StoreError, UnreadableError

FORMAT = 1
SNAPSHOT_EVERY = 64  # versions
MOST_BYTES = 64 << 20  # of one value, unpacked
MOST_PACKED = 1 << 20  # bytes of one value; etcd takes requests of 1.5 MiB
VERSIONS = "versions/"  # what the next three begin with, so that one watch sees all of them
ACTIVE, LOG, SNAPSHOTS = "versions/active", "versions/log/", "versions/snap/"

type Document = Mapping[str, object]
type Documents = Mapping[str, Document]  # the services by name, in their order


@dataclass(frozen=True, slots=True)
class FleetVersion:
    """A version as it is written: what it changes, and who made it, when and why.

    ``at``: seconds since the epoch, by the clock of the balancer that wrote it.
    """

    number: int
    base: int
    at: float
    node: str
    how: str
    who: str
    message: str
    changes: tuple[str, ...]  # the first of ``changes_count``
    changes_count: int
    changed: Documents = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def applied(self, before: Documents) -> Documents:
        """Return the services of this version, made from those of its base."""
        rest = {name: doc for name, doc in before.items() if name not in self.removed}
        return {**rest, **self.changed}


@dataclass(frozen=True, slots=True)
class Trial:
    """On which balancers a new version is tried first, and how long, in seconds.

    ``bake_s`` 0: until an operator decides.
    """

    nodes: tuple[str, ...]
    bake_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """A version that some balancers try: ``nodes``, since ``since`` (seconds since the epoch).

    ``bake_s``: how long, until all take it; 0: until an operator decides.
    """

    version: int
    nodes: tuple[str, ...]
    since: float
    bake_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How the last rollout ended: ``outcome`` is ``promoted`` or ``aborted``."""

    version: int
    outcome: str
    why: str
    who: str
    at: float


@dataclass(frozen=True, slots=True)
class Active:
    """Which version runs. ``newest`` is the last number that was given to a version."""

    stable: int = 0
    newest: int = 0
    snapshot: int = 0  # the newest version that is stored whole
    rollout: Rollout | None = None
    ended: Ended | None = None

    def of(self, node: str) -> int:
        """Return the version that a balancer runs; 0: none was made yet."""
        if self.rollout is not None and node in self.rollout.nodes:
            return self.rollout.version
        return self.stable

    def with_version(self, number: int, rollout: Rollout | None) -> Active:
        """Return what is active when a new version has been written."""
        if rollout is not None:
            return replace(self, newest=number, rollout=rollout)
        is_whole = number - self.snapshot >= SNAPSHOT_EVERY
        snapshot = number if is_whole else self.snapshot
        return replace(self, stable=number, newest=number, snapshot=snapshot)

    def promoted(self, why: str, who: str, at: float) -> Active:
        """Return what is active when the rollout's version has become the stable one."""
        return self._without(self._rollout.version, "promoted", why, who, at)

    def aborted(self, why: str, who: str, at: float) -> Active:
        """Return what is active when the rollout has been given up."""
        return self._without(self.stable, "aborted", why, who, at)

    @property
    def _rollout(self) -> Rollout:
        assert self.rollout is not None  # noqa: S101 (the callers have looked)
        return self.rollout

    def _without(self, stable: int, outcome: str, why: str, who: str, at: float) -> Active:
        ended = Ended(self._rollout.version, outcome, why, who, at)
        return replace(self, stable=stable, rollout=None, ended=ended)


def outcomes(entries: Sequence[FleetVersion], active: Active) -> dict[int, str]:
    """Return what became of versions, by number: ``stable``, ``trying``, ``aborted``, or empty if
    it was stable once.

    ``entries`` are the newest versions, newest first. Each stable version was made from the one
    that was stable before it, so all that are not on this way back were given up.
    """
    found, was_stable = {}, active.stable
    trying = 0 if active.rollout is None else active.rollout.version
    for entry in entries:
        if entry.number == trying:
            found[entry.number] = "trying"
        elif entry.number == was_stable:
            found[entry.number] = "stable" if entry.number == active.stable else ""
            was_stable = entry.base
        elif was_stable < entry.number <= active.newest:
            found[entry.number] = "aborted"
        else:
            found[entry.number] = ""  # written after what is active was heard
    return found


class Log:
    """The versions that are known, from a snapshot on."""

    def __init__(self, base: int = 0, documents: Documents | None = None) -> None:
        """``base`` is the number of the snapshot, 0 for the empty beginning."""
        self._whole: dict[int, Documents] = {base: documents or {}}
        self._entries: dict[int, FleetVersion] = {}

    def add(self, entry: FleetVersion) -> None:
        """Add a version."""
        self._entries[entry.number] = entry

    def entry(self, number: int) -> FleetVersion | None:
        """Return what is written about a version, if it is known."""
        return self._entries.get(number)

    def entries(self) -> tuple[FleetVersion, ...]:
        """Return what is written about all known versions, oldest first."""
        return tuple(self._entries[number] for number in sorted(self._entries))

    def documents(self, number: int) -> Documents | None:
        """Return the services of a version, or None if it or one of its bases is not known."""
        todo = []
        at = number
        while at not in self._whole:
            entry = self._entries.get(at)
            if entry is None or entry.base >= at:
                return None
            todo.append(entry)
            at = entry.base
        found = self._whole[at]
        for entry in reversed(todo):
            found = entry.applied(found)
        self._whole[number] = found
        return found

    def forget_before(self, number: int) -> None:
        """Drop what only versions before ``number`` need, which must be known."""
        documents = self.documents(number)
        if documents is None:
            return
        self._whole = {n: docs for n, docs in self._whole.items() if n > number}
        self._whole[number] = documents
        self._entries = {n: entry for n, entry in self._entries.items() if n >= number}


def entry_of(
    number: int,
    base: int,
    before: Documents,
    after: Documents,
    *,
    at: float,
    node: str,
    how: str,
    who: str,
    message: str,
    changes: Iterable[str],
) -> FleetVersion:
    """Return the version that makes ``after`` of ``before``, the services of version ``base``."""
    lines = tuple(changes)
    return FleetVersion(
        number,
        base,
        at,
        node,
        how,
        who,
        message,
        lines[:MAX_CHANGES],
        len(lines),
        {name: doc for name, doc in after.items() if before.get(name) != doc},
        tuple(name for name in before if name not in after),
    )


def digest_of(documents: Documents) -> str:
    """Return what two balancers compare to see whether they run the same services."""
    text = json.dumps(documents, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- in the store


def log_key(number: int) -> str:
    """Return the key of a version. Keys are sorted as their numbers are."""
    return f"{LOG}{number:012d}"


def snapshot_key(number: int) -> str:
    """Return the key of a version that is stored whole."""
    return f"{SNAPSHOTS}{number:012d}"


def number_of(key: str) -> int:
    """Return the number in the key of a version or snapshot."""
    text = key.rpartition("/")[2]
    if not (text.isascii() and text.isdigit()):
        raise _foreign(key, "its name is not a number")
    return int(text)


def pack_entry(entry: FleetVersion) -> bytes:
    """Return a version as it is stored. Raises StoreError if it is too large."""
    return _pack(
        {
            "format": FORMAT,
            "base": entry.base,
            "at": entry.at,
            "node": entry.node,
            "how": entry.how,
            "who": entry.who,
            "message": entry.message,
            "changes": list(entry.changes),
            "changes_count": entry.changes_count,
            "set": list(entry.changed.values()),
            "removed": list(entry.removed),
        }
    )


def read_entry(key: str, packed: bytes) -> FleetVersion:
    """Return the version that a key holds. Raises StoreError if it is none."""
    match _unpack(key, packed):
        case {
            "base": int(base),
            "at": float(at) | int(at),
            "node": str(node),
            "how": str(how),
            "who": str(who),
            "message": str(message),
            "changes": list(changes),
            "changes_count": int(count),
            "set": list(changed),
            "removed": list(removed),
        }:
            lines, gone = tuple(map(str, changes)), tuple(map(str, removed))
            number, services = number_of(key), _by_name(key, changed)
            return FleetVersion(
                number, base, at, node, how, who, message, lines, count, services, gone
            )
    raise _foreign(key, "it has not the shape of a version")


def pack_snapshot(documents: Documents) -> bytes:
    """Return the services of a version as they are stored whole."""
    return _pack({"format": FORMAT, "services": list(documents.values())})


def read_snapshot(key: str, packed: bytes) -> Documents:
    """Return the services that are stored whole. Raises StoreError if they are damaged."""
    match _unpack(key, packed):
        case {"services": list(services)}:
            return _by_name(key, services)
    raise _foreign(key, "it has not the shape of a snapshot")


def write_active(active: Active) -> bytes:
    """Return what is active as it is stored."""
    rollout, ended = active.rollout, active.ended
    document: dict[str, object] = {
        "format": FORMAT,
        "stable": active.stable,
        "newest": active.newest,
        "snapshot": active.snapshot,
    }
    if rollout is not None:
        document["rollout"] = {
            "version": rollout.version,
            "nodes": list(rollout.nodes),
            "since": rollout.since,
            "bake_s": rollout.bake_s,
        }
    if ended is not None:
        document["ended"] = {
            "version": ended.version,
            "outcome": ended.outcome,
            "why": ended.why,
            "who": ended.who,
            "at": ended.at,
        }
    return json.dumps(document).encode()


def read_active(value: bytes) -> Active:
    """Return what is active. Raises StoreError if the key holds something else."""
    match _read_json(ACTIVE, value):
        case {"stable": int(stable), "newest": int(newest), "snapshot": int(snapshot), **more}:
            rollout, ended = _rollout(more.get("rollout")), _ended(more.get("ended"))
            return Active(stable, newest, snapshot, rollout, ended)
    raise _foreign(ACTIVE, "it does not say which version is active")


def _rollout(document: object) -> Rollout | None:
    match document:
        case None:
            return None
        case {
            "version": int(version),
            "nodes": list(nodes),
            "since": float(since) | int(since),
            "bake_s": float(bake_s) | int(bake_s),
        }:
            return Rollout(version, tuple(map(str, nodes)), since, bake_s)
    raise _foreign(ACTIVE, "its rollout cannot be read")


def _ended(document: object) -> Ended | None:
    match document:
        case None:
            return None
        case {
            "version": int(version),
            "outcome": str(outcome),
            "why": str(why),
            "who": str(who),
            "at": float(at) | int(at),
        }:
            return Ended(version, outcome, why, who, at)
    raise _foreign(ACTIVE, "its last rollout cannot be read")


def _by_name(key: str, services: list[object]) -> Documents:
    found: dict[str, Document] = {}
    for service in services:
        name = service.get("name") if isinstance(service, dict) else None
        if not isinstance(service, dict) or not isinstance(name, str):
            raise _foreign(key, "a service in it has no name")
        found[name] = service
    return found


def _pack(document: Document) -> bytes:
    packed = zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 6)
    if len(packed) > MOST_PACKED:
        raise StoreError(
            f"the version takes {len(packed) >> 10} KiB, and {MOST_PACKED >> 10} KiB is the most",
            where="the fleet's store",
            remedy="let `discover` name the backends, or divide the services between two fleets",
        )
    return packed


def _unpack(key: str, packed: bytes) -> Document:
    unpacker = zlib.decompressobj()
    try:
        whole = unpacker.decompress(packed, MOST_BYTES)
    except zlib.error as error:
        raise _foreign(key, f"it is not compressed as versions are ({error})") from error
    if not unpacker.eof:
        raise _foreign(key, "it is cut off, or much too large")
    return _read_json(key, whole)


def _read_json(key: str, text: bytes) -> Document:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _foreign(key, f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise _foreign(key, "it is not an object of JSON")
    made = document.get("format")
    if made != FORMAT:
        raise UnreadableError(
            f"it has format {made!r}, and this release reads format {FORMAT}",
            where=f"the fleet's key {key}",
            remedy="a newer release has written it: upgrade this balancer too",
        )
    return document


def _foreign(key: str, why: str) -> UnreadableError:
    return UnreadableError(
        f"this is not what the balancers of a fleet write: {why}",
        where=f"the fleet's key {key}",
        remedy="see who else writes below the fleet's prefix: each fleet has a name of its own",
    )
