"""Decides how load is shared between levels of backends, by priority and client zone. Pure.

For the clients of a zone, the backends of a service form levels: by priority, and within a
priority those of the clients' own zone before all others. What a level cannot take spills over to
the next, by Envoy's rule for its priority levels, with weights where Envoy counts hosts: a level
whose healthy share is h takes min(1, 1.4 h) of the load, or what the levels before it have left;
if all levels together take less than 1, their shares are scaled up to 1.

The healthy share is the effective weight of the backends that get new flows, divided by the
configured weight of all that the operator has not taken out. So capacity lost to a failed GPU or
a missing model counts as unhealthy. Capacity that is throttled or in slow start spills over, too,
so a new backend is spared while another level is warm. Learned speed does not count, because it
is relative: a slow server is not unhealthy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from agent.model import AdminState, Backend, Service, Zone
from agent.state.eligibility import Eligibility

HEADROOM = 1.4  # Envoy's overprovisioning factor
_SCALE = 10_000  # sum of the weights in a ring of several levels
_SCALE_EACH = 100  # or so much per backend, if there are many
_TINY = 1e-9  # a remainder up to this comes from rounding, and is no load


@dataclass(frozen=True, slots=True)
class Level:
    """Backends that are on the same level for the clients of a zone.

    ``is_near``: they are in the clients' own zone. ``members``: those that get new flows, with
    their effective weights. ``serving``: how many should get new flows, and ``configured`` the sum
    of their weights. ``capacity``: the sum of the members' weights before learned speed is applied.
    """

    priority: int
    is_near: bool
    members: tuple[tuple[Backend, int], ...]
    serving: int
    configured: int
    capacity: float
    share: float = 0.0  # of the load of these clients, 0 to 1

    @property
    def weight(self) -> int:
        """The sum of the members' effective weights."""
        return sum(weight for _, weight in self.members)

    @property
    def health(self) -> float:
        """The healthy share, from 0; 1: all backends that should serve do, with full weight."""
        return self.capacity / self.configured if self.configured else 0.0


def has_levels(service: Service) -> bool:
    """Return whether backends of a service can be on different levels."""
    priorities = {backend.priority for backend in service.backends}
    return len(priorities) > 1 or any(backend.zone is not None for backend in service.backends)


def zones_of(zones: Iterable[Zone], service: Service) -> tuple[str, ...]:
    """Return the zones whose clients have their own ring, because some backend is in the zone."""
    near = {backend.zone for backend in service.backends}
    return tuple(sorted(zone.name for zone in zones if zone.clients and zone.name in near))


def shares(health: Sequence[float]) -> tuple[float, ...]:
    """Return the share of the load that each level takes, given its health; all 0 if all are 0."""
    scores = [min(1.0, HEADROOM * one) for one in health]
    whole = min(1.0, sum(scores))
    left, found = 1.0, []
    for score in scores:
        taken = min(left, score / whole) if whole else 0.0
        left = left - taken if left - taken > _TINY else 0.0
        found.append(taken)
    return tuple(found)


def levels(
    service: Service, verdicts: Sequence[Eligibility], zone: str | None
) -> tuple[Level, ...]:
    """Return the levels for clients of ``zone`` (None: in no zone), in order of preference.

    ``verdicts`` are in the order of the service's backends. Backups are left out while they are
    not used, and while only they are used, the other backends are left out.
    """
    kinds = {
        backend.backup
        for backend, one in zip(service.backends, verdicts, strict=True)
        if one.usable
    }
    places: dict[tuple[int, bool], list[tuple[Backend, Eligibility]]] = {}
    for backend, one in zip(service.backends, verdicts, strict=True):
        if backend.backup in kinds:
            is_near = zone is not None and backend.zone == zone
            places.setdefault((backend.priority, not is_near), []).append((backend, one))
    found = [
        _level(priority, not is_far, standing)
        for (priority, is_far), standing in sorted(places.items(), key=lambda item: item[0])
    ]
    taken = shares([level.health for level in found])
    return tuple(replace(level, share=s) for level, s in zip(found, taken, strict=True))


def _level(priority: int, is_near: bool, standing: list[tuple[Backend, Eligibility]]) -> Level:
    serving = [
        max(backend.weight, 1) if one.usable else backend.weight
        for backend, one in standing
        if one.usable or (backend.admin is AdminState.ACTIVE and backend.weight)
    ]
    members = tuple((backend, one.weight) for backend, one in standing if one.usable)
    capacity = sum(one.weight / one.learned for _, one in standing if one.usable)
    return Level(priority, is_near, members, len(serving), sum(serving), capacity)


def drawn(found: Sequence[Level]) -> tuple[tuple[tuple[Backend, int], ...], ...]:
    """Return the backends in the ring with their weights there, by level.

    Levels without a share are left out. Weights are in proportion to the effective weights within
    a level, and to the shares across levels. If one level takes all, they are the effective ones.
    """
    taking = [level for level in found if level.share > 0]
    if len(taking) == 1:
        return (taking[0].members,)
    scale = max(_SCALE, _SCALE_EACH * sum(len(level.members) for level in taking))
    return tuple(
        tuple(
            (backend, max(1, round(scale * level.share * weight / level.weight)))
            for backend, weight in level.members
        )
        for level in taking
    )


def expected(found: Sequence[Level]) -> dict[str, float]:
    """Return the share of these clients' new flows that each backend should get, by name."""
    return {
        backend.name: level.share * weight / level.weight
        for level in found
        if level.share > 0
        for backend, weight in level.members
    }


def spills(
    zones: Iterable[Zone], service: Service, verdicts: Sequence[Eligibility]
) -> tuple[str, ...]:
    """Return where load spills over now, with a line for the clients of each zone and of none."""
    lines = (spill_over(service, verdicts, zone) for zone in (None, *zones_of(zones, service)))
    return tuple(line for line in lines if line)


def spill_over(service: Service, verdicts: Sequence[Eligibility], zone: str | None) -> str:
    """Say which part of a zone's load the first level does not take, and why.

    Empty: it takes all, or no level takes any.
    """
    found = levels(service, verdicts, zone)
    if not found or found[0].share >= 1 - _TINY or not any(level.share for level in found):
        return ""
    first, after = found[0], [level for level in found[1:] if level.share > 0]
    places = [f"{level.share * 100:.0f} % go to {_place(level, found)}" for level in after]
    clients = f"zone {zone}" if zone is not None else "clients of no zone"
    return f"{clients}: {', '.join(places)}: {_healthy(first)}"


def _place(level: Level, found: Sequence[Level]) -> str:
    beside = sum(other.priority == level.priority for other in found) > 1
    if len({other.priority for other in found}) == 1:
        return "its own zone" if level.is_near else "other zones"
    where = (" of its own zone" if level.is_near else " of other zones") if beside else ""
    return f"priority {level.priority}{where}"


def _healthy(level: Level) -> str:
    if not level.serving:
        return "all are taken out"
    text = f"{len(level.members)} of {level.serving} healthy"
    full = sum(max(backend.weight, 1) for backend, _ in level.members)
    if round(level.capacity) < full:
        text += f", with {level.capacity / full * 100:.0f} % of their weight"
    return text
