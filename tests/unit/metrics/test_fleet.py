"""A balancer's place in its fleet as metrics: absent where it belongs to none, or is not known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.metrics.collector import render
from agent.metrics.fleet import FLEET_FAMILIES
from agent.state.fleetview import FleetStatus
from agent.state.snapshot import Snapshot

FOLLOWS = FleetStatus(
    name="prod",
    node="lb1",
    version=12,
    since=1_700_000_000.0,
    wanted=12,
    stable=12,
    newest=12,
    trying=(),
    frozen=None,
    refused=None,
    problem="",
    away_since=None,
)


def values(
    snapshot: Snapshot, fleet: FleetStatus | None
) -> dict[str, dict[tuple[str, ...], float]]:
    return {
        family.name.removeprefix("steelyard_fleet_"): {
            tuple(labels): value for labels, value in family.samples(replace(snapshot, fleet=fleet))
        }
        for family in FLEET_FAMILIES
    }


def test_a_balancer_that_follows_its_fleet(snapshot: Snapshot) -> None:
    assert values(snapshot, FOLLOWS) == {
        "info": {("prod", "lb1"): 1},
        "version": {(): 12},
        "wanted_version": {(): 12},
        "store_up": {(): 1},
        "frozen": {(): 0},
        "refused": {(): 0},
    }


@pytest.mark.parametrize(
    ("changed", "name", "value"),
    [
        ({"version": 0}, "version", 0),
        ({"wanted": 13}, "wanted_version", 13),
        ({"away_since": 1_700_000_050.0}, "store_up", 0),
        ({"frozen": ""}, "frozen", 1),  # without a reason
        ({"refused": 13}, "refused", 1),
    ],
)
def test_what_differs_shows_in_one_metric(
    snapshot: Snapshot, changed: dict[str, object], name: str, value: float
) -> None:
    whole, found = values(snapshot, FOLLOWS), values(snapshot, replace(FOLLOWS, **changed))
    assert found.pop(name) == {(): value}
    assert found == {each: rows for each, rows in whole.items() if each != name}


def test_the_wanted_version_is_absent_while_it_is_not_known(snapshot: Snapshot) -> None:
    found = values(snapshot, replace(FOLLOWS, wanted=None))
    assert [name for name, rows in found.items() if not rows] == ["wanted_version"]


def test_without_a_fleet_there_are_no_samples(snapshot: Snapshot) -> None:
    assert not any(values(snapshot, None).values())


def test_an_agent_shows_them_beside_the_others(snapshot: Snapshot) -> None:
    text = render(replace(snapshot, fleet=FOLLOWS)).decode()
    assert 'steelyard_fleet_info{fleet="prod",node="lb1"} 1.0' in text
    assert "steelyard_fleet_wanted_version 12.0" in text
