"""Desired state for any world: a function of what is configured and seen, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import AdminState, BackendRef
from agent.state.desired import desired
from agent.state.identities import slot_of
from agent.state.tables import TableContents
from tests.property.test_diff import ids_for, worlds


@settings(deadline=None)
@given(worlds())
def test_everything_configured_is_there_once_and_nothing_else(world):
    config, around = world
    found = desired(config, ids_for(config, TableContents()), around)
    assert set(found.services) == {slot_of(s.key) for s in config.services}
    assert {mark.vip for mark in found.marks} == {s.key.vip for s in config.services}
    assert len(found.backends) == sum(len(s.backends) for s in config.services)


@settings(deadline=None)
@given(worlds())
def test_rings_hold_exactly_the_usable_backends(world):
    config, around = world
    ids = ids_for(config, TableContents())
    found = desired(config, ids, around)
    for service in config.services:
        entry = found.services[slot_of(service.key)]
        usable = {
            ids.backends[entry.id, b.address]
            for b in service.backends
            if around.eligibility[BackendRef(service.name, b.name)].usable
        }
        ring = np.frombuffer(entry.ring, dtype=np.uint16)
        assert set(ring.tolist()) == usable
        assert len(ring) == (config.tables.ring_slots if usable else 0)


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
            ident = ids.backends[ids.services[slot_of(service.key)][0], backend.address]
            if backend.admin is not AdminState.ACTIVE or backend.weight == 0:
                assert not found.backends[ident].usable


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
