"""Decides the rings of a service: its own, and those for the clients of zones. Pure."""

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
SLOTS_EACH, LEAST_SLOTS = 100, 251  # of a ring: a backend's share is right within a hundredth

type Layer = tuple[maglev.Member, ...]  # the members of one level


@dataclass(frozen=True, slots=True)
class Rings:
    """16-bit backend ids; empty where nobody is usable.

    ``weight``: the sum of the effective weights of all that are in some ring.
    """

    own: bytes
    by_zone: dict[ZoneRingKey, bytes] = field(default_factory=dict)
    weight: int = 0


def slots_for(backends: int, most: int) -> int:
    """The slots of the ring of a service with so many backends, whatever their state: a prime of at
    least ``SLOTS_EACH`` a backend, and at most ``most`` (`tables.ring_slots`).

    It grows by powers of two only: another size moves flows that are not recorded. All balancers
    find the same one, because it depends on nothing else.
    """
    wanted = SLOTS_EACH << max(backends - 1, 0).bit_length()
    return _next_prime(wanted, LEAST_SLOTS, most)


def _slots(config: Config, service: Service) -> int:
    """How long the ring may be, or is. A round-robin one is as long as its weights want, and one
    with levels is drawn from in 64 parts (``level_part`` in bpf/select.h), in each of which
    everybody has to be.
    """
    most = config.tables.ring_slots
    if service.scheduler is Scheduler.ROUND_ROBIN or zones.has_levels(service):
        return most
    return slots_for(len(service.backends), most)


@lru_cache(maxsize=64)
def _next_prime(wanted: int, least: int, most: int) -> int:
    """The first prime from ``wanted`` on, within these bounds, which are primes."""
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
    """The rings that were built last, each beside what it was built of."""

    _held: dict[tuple[int, int], tuple[object, bytes]] = field(default_factory=dict)

    def ring(
        self, key: tuple[int, int], scheduler: Scheduler, layers: tuple[Layer, ...], slots: int
    ) -> bytes:
        """The ring; ``key``: whose it is, the ids of a service and of a zone (0: the service's)."""
        of = (scheduler, layers, slots)
        held = self._held.get(key)
        if held is None or held[0] != of:
            held = self._held[key] = of, _ring(scheduler, layers, slots)
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
    """The rings for these verdicts on the service's backends, in its order."""
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
