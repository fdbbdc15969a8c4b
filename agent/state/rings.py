"""Decides the rings of a service: its own ring, and those for the clients of zones. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from agent.model import Backend, Config, Scheduler, Service
from agent.rings import maglev, smooth
from agent.state import zones
from agent.state.eligibility import Eligibility
from agent.state.identities import Identities
from agent.state.tables import ZoneRingKey
from agent.state.zones import Level

_IDS = 1 << 16
# Slots of a ring per backend, and at least. A backend's share is then right within a hundredth.
SLOTS_EACH, LEAST_SLOTS = 100, 251

type Layer = tuple[maglev.Member, ...]  # the members of one level


@dataclass(frozen=True, slots=True)
class Rings:
    """The rings of a service, as 16-bit backend ids; empty if no backend is usable.

    ``weight``: the sum of the effective weights of all backends that are in some ring.
    """

    own: bytes
    by_zone: dict[ZoneRingKey, bytes] = field(default_factory=dict)
    weight: int = 0


def slots_for(backends: int, most: int) -> int:
    """Return the size of the ring of a service with so many backends, whatever their state.

    It is a prime of at least ``SLOTS_EACH`` slots per backend, and at most ``most``
    (`tables.ring_slots`). It grows by powers of two only, because another size moves flows that
    are not recorded. All balancers get the same size, because it depends on nothing else.
    """
    wanted = SLOTS_EACH << max(backends - 1, 0).bit_length()
    return _next_prime(wanted, LEAST_SLOTS, most)


def _slots(config: Config, service: Service) -> int:
    """Return the size of the ring, or for round-robin its maximum.

    A round-robin ring is as long as its weights require. A ring with levels is used in 64 parts
    (``level_part`` in bpf/select.h), and every backend has to be in each of them.
    """
    most = config.tables.ring_slots
    if service.scheduler is Scheduler.ROUND_ROBIN or zones.has_levels(service):
        return most
    return slots_for(len(service.backends), most)


@lru_cache(maxsize=64)
def _next_prime(wanted: int, least: int, most: int) -> int:
    """Return the first prime that is at least ``wanted``, within the bounds, which are primes."""
    if wanted >= most:
        return most
    number = max(wanted, least)
    while not _is_prime(number):
        number += 1
    return min(number, most)


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


@dataclass(slots=True)
class KeptRings:
    """The rings that were built last, each with the inputs that it was built from."""

    _held: dict[tuple[int, int], tuple[object, bytes]] = field(default_factory=dict)

    def ring(
        self, key: tuple[int, int], scheduler: Scheduler, layers: tuple[Layer, ...], slots: int
    ) -> bytes:
        """Return the ring for these inputs, built only if it is not the last one for ``key``.

        ``key``: the ids of the service and of a zone, 0 for the service's own ring.
        """
        inputs = (scheduler, layers, slots)
        held = self._held.get(key)
        if held is None or held[0] != inputs:
            held = self._held[key] = inputs, _ring(scheduler, layers, slots)
        return held[1]

    def forget(self, services: Collection[int]) -> None:
        """Forget the rings of all services but these, by id."""
        self._held = {key: held for key, held in self._held.items() if key[0] in services}


def rings_of(
    config: Config,
    service: Service,
    ids: Identities,
    verdicts: Sequence[Eligibility],
    kept: KeptRings | None = None,
) -> Rings:
    """Return the rings for these verdicts on the service's backends, which are in its order."""
    kept = KeptRings() if kept is None else kept
    ident = ids.service_id(service)
    own = zones.levels(service, verdicts, None)
    near = {
        ZoneRingKey(ident, ids.zones[zone]): zones.levels(service, verdicts, zone)
        for zone in zones.zones_of(config.zones, service)
    }
    slots = _slots(config, service)
    in_some = {
        backend.name: weight
        for found in (own, *near.values())
        for level in found
        if level.share > 0
        for backend, weight in level.members
    }
    built = {
        key: kept.ring((ident, key.zone), service.scheduler, _layers(service, ids, found), slots)
        for key, found in near.items()
    }
    return Rings(
        kept.ring((ident, 0), service.scheduler, _layers(service, ids, own), slots),
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
    """Return the bytes that decide a backend's places in the ring, the same on every balancer."""
    port = backend.port.to_bytes(2, "big") if backend.port else b""
    return backend.address.packed + port


def _ring(scheduler: Scheduler, layers: tuple[Layer, ...], slots: int) -> bytes:
    """Return the ring that a scheduler draws from.

    Schedulers that compare backends do so within one level (``level_part`` in bpf/select.h), so if
    several levels have a share, the ring holds them one after the other.
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
    """Reorder the slots of a ring by level, those of the first level first."""
    if len(layers) == 1:
        return ring
    level = np.zeros(_IDS, dtype=np.uint8)
    for number, layer in enumerate(layers):
        level[[member.id for member in layer]] = number
    return ring[np.argsort(level[ring], kind="stable")]
