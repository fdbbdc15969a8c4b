"""The metrics of scaling: a sample for what is known, and none for what is not."""

from __future__ import annotations

from dataclasses import replace

from agent.metrics.scaling import SCALE_FAMILIES
from agent.state.scaling import Scaling


def samples(snapshot) -> dict[str, dict[tuple[str, ...], float]]:
    found = {family.name: dict(family.samples(snapshot)) for family in SCALE_FAMILIES}
    return {name.removeprefix("steelyard_service_scale_"): rows for name, rows in found.items()}


def test_what_is_known_has_samples(snapshot):
    name = snapshot.services[0].service.name
    service = (name,)
    assert samples(snapshot) == {
        "wanted_backends": {service: 3},
        "usable_backends": {service: 1},
        "draining_backends": {service: 2},
        "connections": {service: 33},
        "waiting_bytes": {service: 700},
        "engine_requests": {},
        "engine_queued_requests": {service: 1.5},
        "first_byte_seconds": {(name, "0.95"): 0.75},
        "misses_objective": {service: False},
        "target": {(name, "connections"): 16, (name, "requests"): 4},
        "min_backends": {service: 1},
        "max_backends": {service: 8},
    }


def test_without_targets_there_are_neither_a_number_nor_bounds(snapshot):
    plain = replace(snapshot.services[0], scaling=Scaling())
    found = samples(replace(snapshot, services=(plain,)))
    assert {name for name, rows in found.items() if rows} == {
        "usable_backends", "draining_backends",
    }  # fmt: skip
