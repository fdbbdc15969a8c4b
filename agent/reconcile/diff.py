"""Decides the steps from what the tables hold to what they should hold.

The order makes every prefix of the steps safe. Nothing is named before it exists, and nothing is
removed while something still leads to it:

* backends exist before a ring, an origin or a QUIC id names them;
* origins, QUIC ids and the source addresses of fullnat exist before the service whose packets
  need them, because an answer must find its way back;
* a source address is marked before packets are sent from it, and its mark is removed after that
  has ended;
* a ring is complete before a service names it;
* the last usable backends of a ring stay usable until another ring is in place (as when a backup
  hands back to the primaries), so that a draw finds a backend at any moment;
* a service exists before the rings that it has for clients of zones, and these exist before the
  prefixes that lead clients to their zone; prefixes and rings that are not wanted are removed
  before all else, to make room: without them, draws are from the service's own ring;
* a service exists before the port blocks and prefixes that lead to it, and is removed after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from agent.model import Address, Network
from agent.state.tables import (
    BackendEntry,
    MarkEntry,
    OriginEntry,
    PortBlock,
    QuicId,
    ServiceEntry,
    ServiceSlot,
    TableContents,
    ZoneRingKey,
)


@dataclass(frozen=True, slots=True)
class PutBackend:
    """Write a backend; ``fresh``: the id had another one or none, so its counters start at 0."""

    id: int
    entry: BackendEntry
    fresh: bool


@dataclass(frozen=True, slots=True)
class PutService:
    """Write a service, after its ring if ``ring_changed``; ``fresh``: its id is new."""

    slot: ServiceSlot
    entry: ServiceEntry
    ring_changed: bool
    fresh: bool


@dataclass(frozen=True, slots=True)
class PutMark:
    """Mark an address as a VIP or a source address of fullnat, and say what it has."""

    slot: ServiceSlot
    entry: MarkEntry


@dataclass(frozen=True, slots=True)
class PutPrefix:
    """Lead the addresses of a prefix to its first address."""

    prefix: Network


@dataclass(frozen=True, slots=True)
class PutRange:
    """Lead a block of ports to the first port of their range."""

    block: PortBlock
    first: int


@dataclass(frozen=True, slots=True)
class PutZoneRing:
    """Write a service's ring for the clients of a zone."""

    key: ZoneRingKey
    ring: bytes


@dataclass(frozen=True, slots=True)
class PutZonePrefix:
    """Say that clients below a prefix are in a zone."""

    prefix: Network
    zone: int


@dataclass(frozen=True, slots=True)
class PutOrigin:
    """Say which service the answers from an address and port belong to."""

    slot: ServiceSlot
    entry: OriginEntry


@dataclass(frozen=True, slots=True)
class PutQuicId:
    """Say which backend makes connection ids with a server id."""

    quic_id: QuicId
    backend_id: int


@dataclass(frozen=True, slots=True)
class SetNatSources:
    """Send from these addresses, by number, and from no others."""

    sources: dict[int, Address]


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Delete a service: its packets are not ours any more."""

    slot: ServiceSlot


@dataclass(frozen=True, slots=True)
class DeleteMark:
    """Delete a mark: its address is not ours any more."""

    slot: ServiceSlot


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Delete a prefix: its addresses lead nowhere any more."""

    prefix: Network


@dataclass(frozen=True, slots=True)
class DeleteRange:
    """Delete a block of ports: it leads nowhere any more."""

    block: PortBlock


@dataclass(frozen=True, slots=True)
class DeleteZoneRing:
    """Delete a service's ring for the clients of a zone."""

    key: ZoneRingKey


@dataclass(frozen=True, slots=True)
class DeleteZonePrefix:
    """Delete a prefix of a zone: its clients are in no zone, or in that of a shorter prefix."""

    prefix: Network


@dataclass(frozen=True, slots=True)
class DeleteOrigin:
    """Delete an origin: packets from its address and port are not answers any more."""

    slot: ServiceSlot


@dataclass(frozen=True, slots=True)
class DeleteQuicId:
    """Delete a server id: no backend makes connection ids with it any more."""

    quic_id: QuicId


@dataclass(frozen=True, slots=True)
class ClearBackend:
    """Remove a backend; its counters are kept in those of its service."""

    id: int
    service_id: int


type Step = (
    PutBackend
    | PutService
    | PutMark
    | PutPrefix
    | PutRange
    | PutZoneRing
    | PutZonePrefix
    | PutOrigin
    | PutQuicId
    | SetNatSources
    | DeleteService
    | DeleteMark
    | DeletePrefix
    | DeleteRange
    | DeleteZoneRing
    | DeleteZonePrefix
    | DeleteOrigin
    | DeleteQuicId
    | ClearBackend
)


def at_once(actual: TableContents, backends: Mapping[int, BackendEntry]) -> TableContents:
    """Return ``actual`` with the changes of backends that can be made before any ring is built.

    Backends that are not wanted any more stay, and so do the last usable ones that a ring leads to.
    """
    last = _last_usable(actual, actual.backends | dict(backends))
    changed = {ident: entry for ident, entry in backends.items() if ident not in last}
    return replace(actual, backends=actual.backends | changed)


def diff(actual: TableContents, wanted: TableContents) -> tuple[Step, ...]:
    """Return the steps that make ``actual`` equal to ``wanted``; none if they are equal."""
    early = _source_marks(actual, wanted)
    last = _last_usable(actual, wanted.backends)
    puts = tuple(_put_backends(actual, wanted))
    sources_changed = actual.nat_sources != wanted.nat_sources
    return (
        *(DeleteZonePrefix(prefix) for prefix in actual.zones if prefix not in wanted.zones),
        *(DeleteZoneRing(key) for key in actual.zone_rings if key not in wanted.zone_rings),
        *(step for step in puts if step.id not in last),
        *(PutOrigin(s, e) for s, e in _changed(actual.origins, wanted.origins)),
        *(PutQuicId(q, i) for q, i in _changed(actual.quic_ids, wanted.quic_ids)),
        *(PutMark(slot, mark) for slot, mark in early.items()),
        *((SetNatSources(wanted.nat_sources),) if sources_changed else ()),
        *_put_services(actual, wanted),
        *(PutZoneRing(k, ring) for k, ring in _changed(actual.zone_rings, wanted.zone_rings)),
        *(step for step in puts if step.id in last),
        *(PutZonePrefix(p, zone) for p, zone in _changed(actual.zones, wanted.zones)),
        *(PutRange(b, first) for b, first in _changed(actual.ranges, wanted.ranges)),
        *(PutMark(s, e) for s, e in _changed(actual.marks | early, wanted.marks)),
        *(PutPrefix(prefix) for prefix in sorted(wanted.prefixes - actual.prefixes, key=str)),
        *(DeletePrefix(prefix) for prefix in sorted(actual.prefixes - wanted.prefixes, key=str)),
        *(DeleteRange(block) for block in actual.ranges if block not in wanted.ranges),
        *(DeleteService(slot) for slot in actual.services if slot not in wanted.services),
        *(DeleteMark(slot) for slot in actual.marks if slot not in wanted.marks),
        *(DeleteOrigin(slot) for slot in actual.origins if slot not in wanted.origins),
        *(DeleteQuicId(one) for one in actual.quic_ids if one not in wanted.quic_ids),
        *(
            ClearBackend(ident, entry.service_id)
            for ident, entry in sorted(actual.backends.items())
            if ident not in wanted.backends
        ),
    )


def _changed[Key, Value](
    actual: dict[Key, Value], wanted: dict[Key, Value]
) -> Iterator[tuple[Key, Value]]:
    return ((key, value) for key, value in wanted.items() if actual.get(key) != value)


def _last_usable(actual: TableContents, wanted: Mapping[int, BackendEntry]) -> frozenset[int]:
    """Return the backends that are usable and will not be, where no other one in the ring stays
    usable.
    """
    losing: dict[int, set[int]] = {}
    staying = set()
    for ident, entry in actual.backends.items():
        if entry.usable:
            after = wanted.get(ident)
            if after is not None and after.usable and after.identity == entry.identity:
                staying.add(ident)
            else:
                losing.setdefault(entry.service_id, set()).add(ident)
    rings = {entry.id: entry.ring for entry in actual.services.values() if entry.id in losing}
    last = (ids for service_id, ids in losing.items() if not staying & _named(rings, service_id))
    return frozenset().union(*last)


def _named(rings: Mapping[int, bytes], service_id: int) -> set[int]:
    ring = np.frombuffer(rings.get(service_id, b""), dtype=np.uint16)
    return set(np.flatnonzero(np.bincount(ring)).tolist())


def _put_backends(actual: TableContents, wanted: TableContents) -> Iterator[PutBackend]:
    for ident, entry in sorted(wanted.backends.items()):
        held = actual.backends.get(ident)
        if held != entry:
            fresh = held is None or held.identity != entry.identity
            yield PutBackend(ident, entry, fresh)


def _put_services(actual: TableContents, wanted: TableContents) -> Iterator[Step]:
    for slot, service in wanted.services.items():
        before = actual.services.get(slot)
        if before != service:
            fresh = before is None or before.id != service.id
            ring_changed = fresh or before is None or before.ring != service.ring
            yield PutService(slot, service, ring_changed, fresh)


def _source_marks(actual: TableContents, wanted: TableContents) -> dict[ServiceSlot, MarkEntry]:
    """Return the marks of source addresses that are new or have another number.

    A VIP that is a source too keeps the rest of its mark for now; that is written in its turn.
    """
    found = {}
    for slot, mark in wanted.marks.items():
        before = actual.marks.get(slot, MarkEntry())
        if mark.nat_source not in (None, before.nat_source):
            found[slot] = replace(before, nat_source=mark.nat_source)
    return found


def after(contents: TableContents, step: Step) -> TableContents:
    """Return what the tables hold once ``step`` is done: the model that the tests check against."""
    match step:
        case PutBackend(ident, entry, _):
            return replace(contents, backends=contents.backends | {ident: entry})
        case PutService(slot, service, _, _):
            return replace(contents, services=contents.services | {slot: service})
        case PutMark(slot, mark):
            return replace(contents, marks=contents.marks | {slot: mark})
        case PutPrefix(prefix):
            return replace(contents, prefixes=contents.prefixes | {prefix})
        case PutRange(block, first):
            return replace(contents, ranges=contents.ranges | {block: first})
        case PutZoneRing(key, ring):
            return replace(contents, zone_rings=contents.zone_rings | {key: ring})
        case PutZonePrefix(prefix, zone):
            return replace(contents, zones=contents.zones | {prefix: zone})
        case PutOrigin(slot, origin):
            return replace(contents, origins=contents.origins | {slot: origin})
        case PutQuicId(quic_id, ident):
            return replace(contents, quic_ids=contents.quic_ids | {quic_id: ident})
        case SetNatSources(sources):
            return replace(contents, nat_sources=sources)
        case _:
            return _without(contents, step)


def _without(contents: TableContents, step: Step) -> TableContents:
    match step:
        case DeleteService(slot):
            return replace(contents, services=_less(contents.services, slot))
        case DeleteMark(slot):
            return replace(contents, marks=_less(contents.marks, slot))
        case DeletePrefix(prefix):
            return replace(contents, prefixes=contents.prefixes - {prefix})
        case DeleteRange(block):
            return replace(contents, ranges=_less(contents.ranges, block))
        case DeleteZoneRing(key):
            return replace(contents, zone_rings=_less(contents.zone_rings, key))
        case DeleteZonePrefix(prefix):
            return replace(contents, zones=_less(contents.zones, prefix))
        case DeleteOrigin(slot):
            return replace(contents, origins=_less(contents.origins, slot))
        case DeleteQuicId(quic_id):
            return replace(contents, quic_ids=_less(contents.quic_ids, quic_id))
        case ClearBackend(ident, _):
            return replace(contents, backends=_less(contents.backends, ident))
        case _:
            return contents


def _less[Key, Value](values: dict[Key, Value], key: Key) -> dict[Key, Value]:
    return {k: v for k, v in values.items() if k != key}
