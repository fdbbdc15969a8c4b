"""Decides the metrics of a balancer's place in its fleet. Without a fleet there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.metrics.family import Family, Kind, Sample, Samples
from agent.state.fleetview import FleetStatus
from agent.state.snapshot import Snapshot

_NO_FLEET = "Absent if the balancer belongs to no fleet."


def _one(value: Callable[[FleetStatus], float | None]) -> Samples:
    """Return the single sample of a metric, if the balancer belongs to a fleet and it is known."""

    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        found = None if snapshot.fleet is None else value(snapshot.fleet)
        if found is not None:
            yield (), found

    return samples


def _info(snapshot: Snapshot) -> Iterator[Sample]:
    if snapshot.fleet is not None:
        yield (snapshot.fleet.name, snapshot.fleet.node), 1.0


FLEET_FAMILIES: tuple[Family, ...] = (
    Family(
        "steelyard_fleet_info",
        Kind.INFO,
        f"The fleet that the balancer belongs to, and its name there. {_NO_FLEET}",
        ("fleet", "node"),
        _info,
    ),
    Family(
        "steelyard_fleet_version",
        Kind.GAUGE,
        "The version of the fleet's services that the balancer runs. 0 if it never took one, and "
        f"runs the services of its own file. {_NO_FLEET}",
        (),
        _one(lambda fleet: fleet.version),
    ),
    Family(
        "steelyard_fleet_wanted_version",
        Kind.GAUGE,
        "The version that the balancer should run, as the store said last. Absent while that is "
        "not known, and while the fleet has no version yet.",
        (),
        _one(lambda fleet: fleet.wanted),
    ),
    Family(
        "steelyard_fleet_store_up",
        Kind.GAUGE,
        f"Whether the fleet's store answers. {_NO_FLEET}",
        (),
        _one(lambda fleet: float(fleet.away_since is None)),
    ),
    Family(
        "steelyard_fleet_frozen",
        Kind.GAUGE,
        f"1 while the balancer takes no versions, because somebody froze it. {_NO_FLEET}",
        (),
        _one(lambda fleet: float(fleet.frozen is not None)),
    ),
    Family(
        "steelyard_fleet_refused",
        Kind.GAUGE,
        "1 while the balancer refuses a version, because it cannot run it. The version that it had "
        f"stays. {_NO_FLEET}",
        (),
        _one(lambda fleet: float(fleet.refused is not None)),
    ),
)
