"""Decides which backends clients get by priority and zone, and how much of the load. Pure.

For the clients of one place, the backends of a service stand in levels: by priority, and within
a priority those of the clients' own zone before all others. What a level cannot take goes on to
the next, by Envoy's rule for its priority levels, with weights where Envoy counts hosts: a level
whose healthy share is h takes min(1, 1.4 h) of the load, or what the levels before it have left;
if all together come to less than 1, they are scaled up to it.

Healthy is the effective weight of those that get new flows, beside the configured weight of all
that the operator has not taken out: what a lost GPU or a missing model keeps away counts as ill.
Capacity that is throttled or still starts slowly spills over, too: the newcomer is spared while
another level is warm. A speed that was learned is relative, and no illness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from agent.model import AdminState, Backend, Service, Zone
from agent.state.eligibility import Eligibility

HEADROOM = 1.4  # Envoy's overprovisioning factor
_SCALE = 10_000  # of the weights in a ring of several levels, all together
_SCALE_EACH = 100  # or of each backend, where there are many
_TINY = 1e-9  # what is left by rounding is no load


@dataclass(frozen=True, slots=True)
class Level:
    """Backends that stand side by side for the clients of a place.

    ``is_near``: they are in the clients' own zone. ``members``: those that get new flows, with
    their effective weights. ``serving``: how many should, and ``configured`` their weight.
    ``capacity``: the members' weights before the learned speed.
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
        """Effective, of its members."""
        return sum(weight for _, weight in self.members)

    @property
    def health(self) -> float:
        """From 0 on; 1: all that should serve does, with all of its weight."""
        return self.capacity / self.configured if self.configured else 0.0


def has_levels(service: Service) -> bool:
    """Whether some clients may get some backends before others."""
    priorities = {backend.priority for backend in service.backends}
    return len(priorities) > 1 or any(backend.zone is not None for backend in service.backends)


def zones_of(zones: Iterable[Zone], service: Service) -> tuple[str, ...]:
    """The zones whose clients have a ring of their own: some backend is near them."""
    near = {backend.zone for backend in service.backends}
    return tuple(sorted(zone.name for zone in zones if zone.clients and zone.name in near))


def shares(health: Sequence[float]) -> tuple[float, ...]:
    """The load that each level takes, by its health; all 0 where none has any."""
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
    """The levels for clients of ``zone`` (None: of none), the first first.

    ``verdicts`` are in the order of the service's backends. Backups have no part in it while
    they are set aside, and no other has while only they are used.
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
    """Who is in the ring and with which weight, by level, those without a share left out.

    Within a level by effective weight, across levels by share. Where one level takes all, its
    weights are the effective ones.
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
    """The share of the new flows of these clients that each backend is to get, by its name."""
    return {
        backend.name: level.share * weight / level.weight
        for level in found
        if level.share > 0
        for backend, weight in level.members
    }


def spills(
    zones: Iterable[Zone], service: Service, verdicts: Sequence[Eligibility]
) -> tuple[str, ...]:
    """Where load spills over now, a line for the clients of each zone and of none."""
    lines = (spill_over(service, verdicts, zone) for zone in (None, *zones_of(zones, service)))
    return tuple(line for line in lines if line)


def spill_over(service: Service, verdicts: Sequence[Eligibility], zone: str | None) -> str:
    """What of the load of a zone's clients the first level does not take, and why, in words;
    empty: it takes all, or nobody takes any.
    """
    found = levels(service, verdicts, zone)
    if not found or found[0].share >= 1 - _TINY or not any(level.share for level in found):
        return ""
    first, after = found[0], [level for level in found[1:] if level.share > 0]
    places = [f"{level.share * 100:.0f} % go to {_place(level, found)}" for level in after]
    whose = f"zone {zone}" if zone is not None else "clients of no zone"
    return f"{whose}: {', '.join(places)}: {_healthy(first)}"


def _place(level: Level, found: Sequence[Level]) -> str:
    beside = sum(other.priority == level.priority for other in found) > 1
    if len({other.priority for other in found}) == 1:
        return "its own zone" if level.is_near else "other zones"
    where = (" of its own zone" if level.is_near else " of other zones") if beside else ""
    return f"priority {level.priority}{where}"


def _healthy(level: Level) -> str:
    if not level.serving:
        return "all are taken out"
    said = f"{len(level.members)} of {level.serving} healthy"
    full = sum(max(backend.weight, 1) for backend, _ in level.members)
    if round(level.capacity) < full:
        said += f", with {level.capacity / full * 100:.0f} % of their weight"
    return said
