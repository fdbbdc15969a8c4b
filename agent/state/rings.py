"""Decides the rings of a service: its own, and those for the clients of zones. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.model import Backend, Config, Scheduler, Service
from agent.rings import maglev, smooth
from agent.state import zones
from agent.state.eligibility import Eligibility
from agent.state.identities import Identities
from agent.state.tables import ZoneRingKey
from agent.state.zones import Level

_IDS = 1 << 16

type Layer = tuple[maglev.Member, ...]  # the members of one level


@dataclass(frozen=True, slots=True)
class Rings:
    """16-bit backend ids; empty where nobody is usable.

    ``weight``: the sum of the effective weights of all that are in some ring.
    """

    own: bytes
    by_zone: dict[ZoneRingKey, bytes] = field(default_factory=dict)
    weight: int = 0


def rings_of(
    config: Config, service: Service, ids: Identities, verdicts: Sequence[Eligibility]
) -> Rings:
    """The rings for these verdicts on the service's backends, in its order."""
    own = zones.levels(service, verdicts, None)
    near = {
        ZoneRingKey(ids.service_id(service), ids.zones[zone]): (
            zones.levels(service, verdicts, zone)
        )
        for zone in zones.zones_of(config.zones, service)
    }
    slots = config.tables.ring_slots
    in_some = {
        backend.name: weight
        for found in (own, *near.values())
        for level in found
        if level.share > 0
        for backend, weight in level.members
    }
    built = {key: _ring(service.scheduler, _layers(service, ids, near[key]), slots) for key in near}
    return Rings(
        _ring(service.scheduler, _layers(service, ids, own), slots),
        {key: ring for key, ring in built.items() if ring},
        sum(in_some.values()),
    )


def _layers(service: Service, ids: Identities, found: Sequence[Level]) -> tuple[Layer, ...]:
    return tuple(
        tuple(
            maglev.Member(_name(backend), weight, ids.backend_id(service, backend))
            for backend, weight in layer
        )
        for layer in zones.drawn(found)
    )


def _name(backend: Backend) -> bytes:
    """What a backend's place in the ring hangs on: the same on every balancer."""
    port = backend.port.to_bytes(2, "big") if backend.port else b""
    return backend.address.packed + port


def _ring(scheduler: Scheduler, layers: tuple[Layer, ...], slots: int) -> bytes:
    """The ring that a scheduler draws from.

    Schedulers that compare do so within one level (``level_part`` in bpf/select.h): where
    several have a share, they lie in the ring one after the other.
    """
    members = tuple(sorted(member for layer in layers for member in layer))
    if not members:
        return b""
    match scheduler:
        case Scheduler.ROUND_ROBIN:
            ring = smooth.build(members, slots)
        case Scheduler.LEAST_CONN if len(layers) == 1:
            ring = smooth.each_once(members)
        case Scheduler.LEAST_CONN | Scheduler.LEAST_LOAD:
            ring = _level_by_level(maglev.build(members, slots), layers)
        case Scheduler.MAGLEV | Scheduler.SOURCE:
            ring = maglev.build(members, slots)
    return ring.tobytes()


def _level_by_level(ring: maglev.Ring, layers: tuple[Layer, ...]) -> maglev.Ring:
    """The same slots, those of the first level first."""
    if len(layers) == 1:
        return ring
    level = np.zeros(_IDS, dtype=np.uint8)
    for number, layer in enumerate(layers):
        level[[member.id for member in layer]] = number
    return ring[np.argsort(level[ring], kind="stable")]
