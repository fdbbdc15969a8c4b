"""Desired state for any world: a function of what is configured and seen, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import AdminState, NoBackend, Scheduler
from agent.state import ranges
from agent.state.desired import desired
from agent.state.eligibility import CONFIGURED, FAIL_OPEN
from agent.state.identities import slot_of
from agent.state.lookups import mark_of
from agent.state.slowstart import SLOW_START
from agent.state.tables import TableContents, ZoneRingKey
from agent.state.zones import levels
from agent.weights.speeds import MOST
from tests.examples import examples
from tests.property.worlds import ids_for, verdict_of, worlds


@settings(deadline=None)
@given(worlds())
def test_everything_configured_is_there_once_and_nothing_else(world):
    config, around = world
    found = desired(config, ids_for(config, TableContents()), around)
    vips = {s.key.vip for s in config.services}
    assert set(found.services) == {slot_of(s.key) for s in config.services}
    assert {mark.vip for mark in found.marks} == vips | set(found.nat_sources.values())
    assert {mark.vip for mark, e in found.marks.items() if e.nat_source is None} == vips
    assert len(found.backends) == sum(len(s.backends) for s in config.services)
    assert len(found.prefixes) == sum(s.key.vip_bits is not None for s in config.services)


def in_ring(ring: bytes) -> set[int]:
    return set(np.frombuffer(ring, dtype=np.uint16).tolist())


def taking(around, service, zone: str | None, ids) -> set[int]:
    """The backends that have a share of the clients of a zone."""
    verdicts = [verdict_of(around, service, backend) for backend in service.backends]
    return {
        ids.backend_id(service, backend)
        for level in levels(service, verdicts, zone)
        if level.share > 0
        for backend, _ in level.members
    }


@settings(deadline=None)
@given(worlds())
def test_rings_hold_usable_backends_whoever_the_client_is(world):
    config, around = world
    ids = ids_for(config, TableContents())
    found = desired(config, ids, around)
    for service in config.services:
        entry = found.services[slot_of(service.key)]
        near = [ring for key, ring in found.zone_rings.items() if key.service_id == entry.id]
        usable = {
            ids.backend_id(service, b)
            for b in service.backends
            if verdict_of(around, service, b).usable
        }
        ring = np.frombuffer(entry.ring, dtype=np.uint16)
        assert in_ring(entry.ring) == taking(around, service, None, ids) <= usable
        assert bool(usable) == bool(len(ring))
        for zone in config.zones:
            key = ZoneRingKey(entry.id, ids.zones.get(zone.name, 0))
            if key in found.zone_rings:
                drawn = in_ring(found.zone_rings[key])
                assert drawn == taking(around, service, zone.name, ids) <= usable
        if not entry.zones:
            assert in_ring(entry.ring) == usable
            assert not near
            if service.scheduler is Scheduler.LEAST_CONN:
                assert len(ring) == len(usable)
        if service.scheduler in (Scheduler.ROUND_ROBIN, Scheduler.LEAST_CONN) or not usable:
            assert len(ring) <= config.tables.ring_slots
        else:
            assert len(ring) == config.tables.ring_slots


@settings(deadline=None, max_examples=examples(50))
@given(worlds())
def test_clients_of_a_zone_have_rings_where_somebody_is_near_them(world):
    config, around = world
    ids = ids_for(config, TableContents())
    found = desired(config, ids, around)
    wanted = {
        ZoneRingKey(ids.service_id(service), ids.zones[zone.name])
        for service in config.services
        for zone in config.zones
        if zone.clients
        and zone.name in {backend.zone for backend in service.backends}
        and any(verdict_of(around, service, b).usable for b in service.backends)
    }
    assert set(found.zone_rings) == wanted
    assert found.zones == {p: ids.zones[zone.name] for zone in config.zones for p in zone.clients}


@settings(deadline=None)
@given(worlds(), st.integers(1, 65_535))
def test_a_port_leads_to_the_range_that_has_it(world, port: int):
    config, around = world
    found = desired(config, ids_for(config, TableContents()), around)
    for service in config.services:
        key = service.key
        matching = [
            (block.bits, first)
            for block, first in found.ranges.items()
            if (block.vip, block.protocol) == (key.vip, key.protocol.number)
            and ranges.covers(block.port, block.bits, port)
        ]
        if key.port_last is not None:
            assert [first for _, first in matching] == (
                [key.port] if key.port <= port <= key.port_last else []
            )
            assert found.marks[mark_of(key.vip)].ranges


@settings(deadline=None)
@given(worlds())
def test_only_who_gets_new_flows_weighs_and_one_has_all_of_its_weight(world):
    config, around = world
    ids = ids_for(config, TableContents())
    found = desired(config, ids, around)
    for service in config.services:
        for backend in service.backends:
            entry = found.backends[ids.backend_id(service, backend)]
            assert (entry.weight > 0) == entry.usable
            if verdict_of(around, service, backend).weight_reason == CONFIGURED:
                assert entry.weight == backend.weight
            most = MOST if "learned" in verdict_of(around, service, backend).weight_reason else 1
            assert entry.weight <= max(round(most * backend.weight), 1)
        usable = [b for b in service.backends if verdict_of(around, service, b).usable]
        reasons = [verdict_of(around, service, b).weight_reason for b in usable]
        if usable:
            full = any(not reason.startswith(SLOW_START) for reason in reasons)
            assert full, "slow start: the one that is furthest has all of its weight"
        backups = {b.backup for b in usable}
        failing_open = any(
            verdict_of(around, service, b).weight_reason == FAIL_OPEN for b in usable
        )
        assert failing_open or backups in (set(), {True}, {False})


@settings(deadline=None)
@given(worlds())
def test_who_takes_new_flows_keeps_them_and_can_be_reached(world):
    config, around = world
    found = desired(config, ids_for(config, TableContents()), around)
    for entry in found.backends.values():
        if entry.usable:
            assert entry.alive
        if entry.alive:
            assert entry.mac != "00:00:00:00:00:00"


@settings(deadline=None)
@given(worlds())
def test_what_the_operator_took_out_takes_no_new_flow(world):
    config, around = world
    ids = ids_for(config, TableContents())
    found = desired(config, ids, around)
    for service in config.services:
        for backend in service.backends:
            ident = ids.backend_id(service, backend)
            if backend.admin is AdminState.MAINTENANCE:
                assert not found.backends[ident].usable
            if backend.admin is not AdminState.ACTIVE or backend.weight == 0:
                fails_open = service.no_backend is NoBackend.ANY
                assert fails_open or not found.backends[ident].usable


@settings(deadline=None)
@given(worlds(), st.randoms())
def test_the_order_of_the_document_changes_nothing(world, draw):
    config, around = world
    ids = ids_for(config, TableContents())
    services = [
        replace(s, backends=tuple(draw.sample(s.backends, len(s.backends))))
        for s in config.services
    ]
    draw.shuffle(services)
    shuffled = replace(config, services=tuple(services))
    assert desired(shuffled, ids, around) == desired(config, ids, around)


@settings(deadline=None)
@given(worlds())
def test_asking_again_changes_nothing(world):
    config, around = world
    first = desired(config, ids_for(config, TableContents()), around)
    ids = ids_for(config, first)
    assert desired(config, ids, around) == first
