"""Decides the steps from what the tables hold to what they should hold.

The order makes every prefix safe: backends exist before a ring names them, a ring is whole
before a service names it, and nothing is taken away while something still leads to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.state.tables import BackendEntry, ServiceEntry, ServiceSlot, TableContents


@dataclass(frozen=True, slots=True)
class PutBackend:
    """Write a backend; ``fresh``: the id had none, its counters start at 0."""

    id: int
    entry: BackendEntry
    fresh: bool


@dataclass(frozen=True, slots=True)
class PutService:
    """Write a service; its ring first where ``ring_changed``. ``fresh``: a new id."""

    slot: ServiceSlot
    entry: ServiceEntry
    ring_changed: bool
    fresh: bool


@dataclass(frozen=True, slots=True)
class PutMark:
    """Say that an address is a VIP."""

    slot: ServiceSlot


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Packets for it are not ours any more."""

    slot: ServiceSlot


@dataclass(frozen=True, slots=True)
class DeleteMark:
    """The address is no VIP any more."""

    slot: ServiceSlot


@dataclass(frozen=True, slots=True)
class ClearBackend:
    """Forget a backend; its counters are kept in its service's."""

    id: int
    service_id: int


type Step = PutBackend | PutService | PutMark | DeleteService | DeleteMark | ClearBackend


def diff(actual: TableContents, wanted: TableContents) -> tuple[Step, ...]:
    """The steps that make ``actual`` equal to ``wanted``; none where they are equal."""
    steps: list[Step] = []
    for ident, entry in sorted(wanted.backends.items()):
        held = actual.backends.get(ident)
        if held != entry:
            fresh = held is None or (held.service_id, held.address) != (
                entry.service_id,
                entry.address,
            )
            steps.append(PutBackend(ident, entry, fresh))
    for slot, service in wanted.services.items():
        before = actual.services.get(slot)
        if before != service:
            fresh = before is None or before.id != service.id
            ring_changed = fresh or before is None or before.ring != service.ring
            steps.append(PutService(slot, service, ring_changed, fresh))
    steps += [PutMark(slot) for slot in wanted.marks - actual.marks]
    steps += [DeleteService(slot) for slot in actual.services if slot not in wanted.services]
    steps += [DeleteMark(slot) for slot in actual.marks - wanted.marks]
    steps += [
        ClearBackend(ident, entry.service_id)
        for ident, entry in sorted(actual.backends.items())
        if ident not in wanted.backends
    ]
    return tuple(steps)


def after(contents: TableContents, step: Step) -> TableContents:
    """What the tables hold once ``step`` is done: the model that the tests check against."""
    backends, services = dict(contents.backends), dict(contents.services)
    marks = contents.marks
    match step:
        case PutBackend(ident, entry, _):
            backends[ident] = entry
        case PutService(slot, service, _, _):
            services[slot] = service
        case PutMark(slot):
            marks |= {slot}
        case DeleteService(slot):
            del services[slot]
        case DeleteMark(slot):
            marks -= {slot}
        case ClearBackend(ident, _):
            del backends[ident]
    return replace(contents, backends=backends, services=services, marks=marks)
