"""The rings of a service: its own, and those for the clients of zones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from agent.model import Backend, BackendRef, Config, Health, Scheduler, Service, Zone
from agent.rings import maglev, smooth
from agent.state.identities import Identities, assign
from agent.state.rings import KeptRings, Rings, rings_of, slots_for
from agent.state.tables import TableContents
from tests.unit.state.world import TABLES, surroundings, web

LARGE = replace(TABLES, ring_slots=4099)
EAST = Zone("east", (ip_network("10.1.0.0/16"),))
WEST = Zone("west", (ip_network("10.2.0.0/16"),))
COMPARING = [Scheduler.LEAST_CONN, Scheduler.LEAST_LOAD]


def member(number: int, zone: str | None = None, **fields: object) -> Backend:
    return Backend(f"b{number}", ip_address(f"10.0.0.{number}"), zone=zone, **fields)


def built(
    service: Service, *down: str, zones: tuple[Zone, ...] = (), kept: KeptRings | None = None
) -> tuple[Rings, Identities]:
    config = Config("test", "eth0", tables=LARGE, services=(service,), zones=zones)
    ids = assign(config, TableContents(), frozenset(), lambda: 77)
    around = surroundings(config, dict.fromkeys(down, Health.DOWN))
    verdicts = [around.eligibility[BackendRef("web", b.name)] for b in service.backends]
    return rings_of(config, service, ids, verdicts, kept), ids


def ids_in(ring: bytes) -> list[int]:
    return np.frombuffer(ring, dtype=np.uint16).tolist()


def shares(ring: bytes) -> dict[int, float]:
    names = ids_in(ring)
    return {ident: count / len(names) for ident, count in Counter(names).items()}


@pytest.mark.parametrize("scheduler", Scheduler)
def test_without_zones_and_priorities_a_ring_is_what_it_ever_was(scheduler: Scheduler):
    service = web(member(1), member(2, weight=250), member(3, weight=300), scheduler=scheduler)
    found, _ = built(service, "b3", zones=(EAST,))
    members = tuple(
        maglev.Member(ip_address(f"10.0.0.{n}").packed, weight, n)
        for n, weight in ((1, 100), (2, 250))
    )
    match scheduler:
        case Scheduler.ROUND_ROBIN:
            ring = smooth.build(members, LARGE.ring_slots)
        case Scheduler.LEAST_CONN:
            ring = smooth.each_once(members)
        case _:
            ring = maglev.build(members, slots_for(3, LARGE.ring_slots))
    assert found == Rings(ring.tobytes(), {}, 350)


@pytest.mark.parametrize("scheduler", Scheduler)
def test_each_zone_has_a_ring_and_the_service_its_own(scheduler: Scheduler):
    service = web(member(1, "east"), member(2, "west"), member(3), scheduler=scheduler)
    found, ids = built(service, zones=(EAST, WEST, Zone("far", EAST.clients)))
    rings = {key.zone: set(ids_in(ring)) for key, ring in found.by_zone.items()}
    assert rings == {ids.zones["east"]: {1}, ids.zones["west"]: {2}}
    assert {key.service_id for key in found.by_zone} == {1}
    assert set(ids_in(found.own)) == {1, 2, 3}


@pytest.mark.parametrize("scheduler", Scheduler)
def test_a_ring_has_the_share_that_spills_over(scheduler: Scheduler):
    service = web(
        member(1, "east"), member(2, "east"), member(3, weight=30), member(4, weight=90),
        scheduler=scheduler,
    )  # fmt: skip
    found, _ = built(service, "b2", zones=(EAST,))
    (ring,) = found.by_zone.values()
    assert shares(ring) == pytest.approx({1: 0.7, 3: 0.075, 4: 0.225}, abs=1e-3)


@pytest.mark.parametrize("scheduler", COMPARING)
def test_those_that_compare_find_the_levels_one_after_the_other(scheduler: Scheduler):
    service = web(*(member(n, priority=n // 3) for n in range(2, 8)), scheduler=scheduler)
    found, _ = built(service, "b2", "b3", "b4")  # nobody, 1 of 3, 2 of 2
    first = {1: 0, 2: 1, 3: 1, 4: 1, 5: 2, 6: 2}
    order = [first[ident] for ident in ids_in(found.own)]
    assert order == sorted(order)
    assert order.count(1) / len(order) == pytest.approx(1.4 / 3, abs=1e-3)
    assert set(order) == {1, 2}
    assert len(order) > 256, "so that the kernel draws, and does not go through all"


def test_a_ring_of_one_level_is_not_reordered():
    service = web(member(1, "east"), member(2, "east"), member(3), scheduler=Scheduler.LEAST_LOAD)
    found, _ = built(service, zones=(EAST,))
    (ring,) = found.by_zone.values()
    members = tuple(maglev.Member(ip_address(f"10.0.0.{n}").packed, 100, n) for n in (1, 2))
    assert ring == maglev.build(members, LARGE.ring_slots).tobytes()


@pytest.mark.parametrize(
    ("backends", "slots"),
    [(1, 251), (2, 251), (3, 401), (8, 809), (9, 1601), (10, 1601), (512, 51_203), (600, 65_537)],
)
def test_a_ring_has_a_hundred_slots_a_backend_and_no_more_than_the_table(backends: int, slots: int):
    assert slots_for(backends, 65_537) == slots
    assert slots_for(backends, 127) == 127


def test_who_is_down_makes_no_ring_smaller():
    """Another size would move flows that are not recorded."""
    service = web(*(member(n) for n in range(1, 9)), scheduler=Scheduler.MAGLEV)
    found, _ = built(service, "b1", "b2", "b3", "b4", "b5", "b6")
    assert len(ids_in(found.own)) == slots_for(8, LARGE.ring_slots)


def test_only_rings_of_other_members_are_built_again():
    service = web(member(1), member(2), scheduler=Scheduler.MAGLEV)
    kept = KeptRings()
    first, ids = built(service, kept=kept)
    again, _ = built(replace(service, draws=4), kept=kept)
    assert again.own is first.own
    heavier = replace(service, backends=(member(1), member(2, weight=300)))
    other, _ = built(heavier, kept=kept)
    assert other.own != first.own
    assert other == built(heavier)[0]
    kept.forget({ids.service_id(service) + 1})
    assert built(heavier, kept=kept)[0].own is not other.own


def test_the_weight_is_of_all_that_are_in_some_ring():
    service = web(
        member(1, "east", weight=10), member(2, "west", weight=20), member(3, weight=40),
        member(4, priority=1, weight=80),
    )  # fmt: skip
    assert built(service, zones=(EAST, WEST))[0].weight == 70
    assert built(service, "b3", zones=(EAST, WEST))[0].weight == 110, "30 of 70 are too few"


def test_nobody_usable_is_no_ring():
    service = web(member(1, "east"), member(2))
    assert built(service, "b1", "b2", zones=(EAST,))[0] == Rings(b"")
