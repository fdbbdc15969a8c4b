"""Ids: kept while they are held, rested before they are given out again."""

import itertools
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from agent.errors import DataplaneError
from agent.model import Backend, Config, Zone
from agent.state.desired import desired
from agent.state.identities import Identities, assign, slot_of
from agent.state.tables import TableContents, ZoneRingKey
from tests.unit.state.world import TABLES, A, B, surroundings, web


def ids_of(config: Config, actual: TableContents | None = None, resting=()) -> Identities:
    salts = itertools.count(1000)
    return assign(config, actual or TableContents(), frozenset(resting), lambda: next(salts))


def held(config: Config, ids: Identities) -> TableContents:
    return desired(config, ids, surroundings(config))


def numbers(ids: Identities) -> set[int]:
    return {ident for own in ids.backends.values() for ident in own.values()}


def test_ids_start_at_one(config: Config):
    found = ids_of(config)
    assert found.services == {slot_of(config.services[0].key): (1, 1000)}
    assert found.backends == {1: {(A.address, 0): 1, (B.address, 0): 2}}


def test_what_the_tables_hold_keeps_its_id(config: Config):
    first = ids_of(config, resting=(1, 2, 3))
    again = ids_of(config, held(config, first))
    assert again == first
    assert numbers(first) == {4, 5}


def test_a_change_of_anything_but_the_address_keeps_the_id(config: Config):
    first = ids_of(config)
    other = replace(config, services=(web(replace(B, weight=1), replace(A, name="new")),))
    assert ids_of(other, held(config, first)).backends == first.backends


def test_a_renamed_service_keeps_its_id(config: Config):
    first = ids_of(config)
    renamed = replace(config, services=(replace(config.services[0], name="new"),))
    assert ids_of(renamed, held(config, first)) == first


def test_one_address_in_two_services_is_two_backends(config: Config):
    both = replace(config, services=(*config.services, web(A, name="two", vip="203.0.113.11")))
    found = ids_of(both)
    assert len(numbers(found)) == 3


def test_an_id_is_not_given_out_while_its_last_owner_is_in_the_tables(config: Config):
    actual = held(config, ids_of(config))
    other = replace(config, services=(web(Backend("c", ip_address("10.0.0.23"))),))
    assert numbers(ids_of(other, actual)) == {3}


def test_a_service_at_another_vip_is_another_service(config: Config):
    first = ids_of(config)
    moved = replace(config, services=(web(A, B, vip="203.0.113.11"),))
    found = ids_of(moved, held(config, first))
    assert next(iter(found.services.values()))[0] == 2
    assert numbers(found) == {3, 4}


def test_one_address_with_two_ports_is_two_backends(config: Config):
    both = replace(config, services=(web(replace(A, port=8080), replace(A, name="a2", port=8081)),))
    found = ids_of(both)
    assert found.backends == {1: {(A.address, 8080): 1, (A.address, 8081): 2}}
    assert ids_of(both, held(both, found)) == found
    service = both.services[0]
    assert [found.backend_id(service, b) for b in service.backends] == [1, 2]


def test_a_range_or_prefix_that_becomes_longer_stays_the_same_service(config: Config):
    service = web(A, B)
    for key, longer in (
        (replace(service.key, port_last=90), replace(service.key, port_last=99)),
        (service.key, replace(service.key, port_last=90)),
        (replace(service.key, vip_bits=32), replace(service.key, vip_bits=31)),
    ):
        before = replace(config, services=(replace(service, key=key),))
        after = replace(config, services=(replace(service, key=longer),))
        first = ids_of(before)
        assert ids_of(after, held(before, first)) == first


def test_source_addresses_are_taken_over_with_their_numbers(config: Config):
    sources = {0: ip_address("10.0.0.1")}
    assert ids_of(config, TableContents(nat_sources=sources)).nat_sources == sources


def test_resting_ids_are_passed_over(config: Config):
    assert numbers(ids_of(config, resting=(1, 3))) == {2, 4}


def test_a_full_table_is_refused_with_the_setting_that_helps(config: Config):
    many = tuple(Backend(f"b{n}", ip_address("10.1.0.0") + n) for n in range(1, 33))
    full = replace(config, services=(web(*many[:31]),))
    assert len(numbers(ids_of(full))) == 31
    with pytest.raises(DataplaneError, match="31 backends fit") as caught:
        ids_of(replace(config, services=(web(*many),)))
    assert caught.value.where == "tables.backends"
    services = tuple(web(name=f"s{n}", vip=f"203.0.113.{n}") for n in range(1, TABLES.services + 1))
    with pytest.raises(DataplaneError, match="7 services fit"):
        ids_of(replace(config, services=services))


def test_after_a_pass_services_that_are_the_same_objects_keep_what_they_have(config: Config):
    """The tables are not asked: with thousands of backends, that takes longest."""
    first = ids_of(config)
    actual = held(config, first)
    same = replace(config, services=(config.services[0],))
    assert assign(same, actual, frozenset(), lambda: 7, (config, first)) is first
    heavier = replace(config, services=(web(replace(A, weight=7), B),))
    assert assign(heavier, actual, frozenset(), lambda: 7, (config, first)) is first
    third = Backend("c", ip_address("10.0.0.23"))
    for services in (
        (web(A, B, third),),
        (web(B),),
        (config.services[0], web(third, name="two", vip="203.0.113.11")),
        (replace(config.services[0], name="new"), web(A, name="two", vip="203.0.113.11")),
        (),
    ):
        other = replace(config, services=services)
        known = assign(other, actual, frozenset({3}), lambda: 7, (config, first))
        assert known == assign(other, actual, frozenset({3}), lambda: 7)


def in_zones(config: Config, *zones: Zone) -> Config:
    """Each zone has a backend."""
    members = [Backend(z.name, ip_address(f"10.0.1.{n}"), zone=z.name) for n, z in enumerate(zones)]
    return replace(config, services=(web(*members),), zones=zones)


P, Q, R = (ip_network(f"10.{n}.0.0/16") for n in (1, 2, 3))


def test_zones_with_clients_have_ids(config: Config):
    one = in_zones(config, Zone("west", (P,)), Zone("east", (Q, R)), Zone("nobody", ()))
    assert ids_of(one).zones == {"east": 1, "west": 2}
    assert ids_of(one, held(one, ids_of(one))).zones == {"east": 1, "west": 2}


def test_a_zone_is_where_its_prefixes_are_whatever_it_is_called(config: Config):
    one = in_zones(config, Zone("a", (P,)), Zone("b", (Q, R)))
    actual = held(one, ids_of(one))
    swapped = in_zones(config, Zone("a", (Q,)), Zone("b", (P,)))
    assert ids_of(swapped, actual).zones == {"a": 2, "b": 1}
    split = in_zones(config, Zone("a", (Q,)), Zone("b", (R, P)), Zone("c", ()))
    assert ids_of(split, actual).zones == {"a": 2, "b": 1}
    merged = in_zones(config, Zone("all", (P, Q, R)))
    assert ids_of(merged, actual).zones == {"all": 2}, "most of its prefixes are there"


def test_a_new_zone_gets_an_id_that_nothing_names(config: Config):
    one = in_zones(config, Zone("a", (P,)))
    actual = held(one, ids_of(one))
    other = in_zones(config, Zone("b", (Q,)))
    assert ids_of(other, actual).zones == {"b": 2}
    leftover = replace(actual, zones={}, zone_rings={ZoneRingKey(1, 2): b"\1\0"})
    assert ids_of(other, leftover).zones == {"b": 1}


def test_more_rings_for_zones_than_fit_name_the_key(config: Config):
    small = replace(config, tables=replace(TABLES, zone_rings=1))
    zones = (Zone("a", (P,)), Zone("b", (Q,)))
    assert ids_of(in_zones(small, zones[0])).zones == {"a": 1}
    with pytest.raises(DataplaneError, match="2 rings for clients of a zone") as caught:
        ids_of(in_zones(small, *zones))
    assert caught.value.where == "tables.zone_rings"
    assert "zone_rings" in caught.value.remedy
