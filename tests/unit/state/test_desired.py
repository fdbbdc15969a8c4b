"""The tables that a configuration in its surroundings should have."""

from dataclasses import replace
from ipaddress import ip_address

import numpy as np

from agent.model import AdminState, Config, DownFlows, Forward, Health, Timeouts
from agent.rings import maglev
from agent.state.desired import NO_MAC, desired, desired_backends, outer_source
from agent.state.identities import Identities, assign, slot_of
from agent.state.tables import ServiceSlot, TableContents
from tests.unit.state.world import A, B, hop, surroundings, web


def ids_of(config: Config) -> Identities:
    return assign(config, TableContents(), frozenset(), lambda: 77)


def tables(config: Config, **around) -> TableContents:
    return desired(config, ids_of(config), surroundings(config, **around))


def ring_of(found: TableContents) -> np.ndarray:
    (entry,) = found.services.values()
    return np.frombuffer(entry.ring, dtype=np.uint16)


def test_a_service_its_mark_its_backends_and_its_ring(config: Config):
    found = tables(config)
    slot = ServiceSlot(ip_address("203.0.113.10"), 80, 6)
    assert set(found.services) == {slot}
    assert found.marks == {ServiceSlot(slot.vip, 0, 0)}
    assert {e.address for e in found.backends.values()} == {A.address, B.address}
    counts = np.bincount(ring_of(found))
    assert list(counts) == [0, 25, 76], "weights 100 and 300 of 101 slots"
    assert found.services[slot].salt == 77


def test_the_ring_names_only_usable_backends(config: Config):
    for health in (Health.DOWN, Health.CHECKING):
        found = tables(config, health={"a": health})
        assert set(ring_of(found)) == {2}
        assert not found.backends[1].usable
        assert found.backends[1].alive


def test_a_backend_that_is_no_use_is_in_the_table_all_the_same(config: Config):
    found = tables(config, hops={"a": None})
    assert (found.backends[1].usable, found.backends[1].alive) == (False, False)
    assert (found.backends[1].mac, found.backends[1].mtu) == (NO_MAC, 0)


def test_nobody_usable_is_an_empty_ring(config: Config):
    assert len(ring_of(tables(config, health={"a": Health.DOWN, "b": Health.DOWN}))) == 0
    assert len(ring_of(tables(replace(config, services=(web(),))))) == 0


def test_the_ring_follows_addresses_not_names_or_order(config: Config):
    other = replace(
        config, services=(web(replace(B, name="x"), replace(A, name="y"), name="renamed"),)
    )
    first, second = tables(config), tables(other)
    swap = np.array([0, 2, 1], dtype=np.uint16)
    assert np.array_equal(ring_of(first), swap[ring_of(second)])


def test_reroute_and_maintenance_say_that_flows_are_given_up(config: Config):
    reroute = replace(config, services=(web(A, B, down_flows=DownFlows.REROUTE),))
    assert not tables(reroute, health={"a": Health.DOWN}).backends[1].alive
    out = replace(config, services=(web(replace(A, admin=AdminState.MAINTENANCE), B),))
    assert not tables(out).backends[1].alive


def test_our_own_interface_is_zero_and_another_is_named(config: Config):
    found = tables(config, hops={"b": hop("10.0.0.22", ifindex=9)})
    assert (found.backends[1].ifindex, found.backends[2].ifindex) == (0, 9)


def test_the_hash_seed_is_the_groups(config: Config):
    (entry,) = tables(replace(config, hash_seed=2**63)).services.values()
    assert entry.pick_seed == 2**63


def test_timeouts_are_ticks_by_state(config: Config):
    timeouts = Timeouts(embryonic_s=8, acked_s=12, established_s=400, closing_s=20)
    found = tables(replace(config, services=(web(A, timeouts=timeouts),)))
    assert found.backends[1].timeout_ticks == (0, 2, 100, 5, 0, 3, 100, 5)


def test_outer_headers_come_from_the_configured_source_or_the_route(config: Config):
    ipip = replace(config, services=(web(A, forward=Forward.IPIP),))
    assert tables(ipip).backends[1].source == ip_address("10.0.0.1")
    assert tables(replace(ipip, ipip_source_v4=ip_address("10.9.9.9"))).backends[1].source == (
        ip_address("10.9.9.9")
    )
    assert tables(config).backends[1].source is None, "dsr has no outer header"


def test_outer_sources_are_of_the_backends_family(config: Config):
    both = replace(
        config, ipip_source_v4=ip_address("10.9.9.9"), ipip_source_v6=ip_address("fd00::9")
    )
    assert outer_source(both, ip_address("fd00::21"), None) == ip_address("fd00::9")
    assert outer_source(both, A.address, None) == ip_address("10.9.9.9")
    assert outer_source(config, A.address, None) is None


def test_without_a_source_ipip_is_unreachable_and_says_which_setting_helps(config: Config):
    ipip = replace(config, services=(web(A, forward=Forward.IPIP),))
    around = surroundings(ipip, hops={"a": hop("10.0.0.21", source=None)})
    (verdict,) = around.eligibility.values()
    assert "ipip_source: {ipv4: …}" in verdict.reason
    assert not desired(ipip, ids_of(ipip), around).backends[1].usable


def test_huge_mtus_fit_the_table(config: Config):
    assert tables(config, hops={"a": hop("10.0.0.21", mtu=65_536)}).backends[1].mtu == 65_535


def test_the_backend_table_alone_is_that_of_the_whole(config: Config):
    around = surroundings(config)
    whole = desired(config, ids_of(config), around)
    assert desired_backends(config, ids_of(config), around) == whole.backends


def test_two_services_do_not_mix(config: Config):
    both = replace(config, services=(web(A), web(A, B, name="two", vip="203.0.113.11")))
    found = tables(both)
    for service in both.services:
        entry = found.services[slot_of(service.key)]
        named = set(np.frombuffer(entry.ring, dtype=np.uint16))
        assert {found.backends[int(i)].service_id for i in named} == {entry.id}


def test_an_empty_configuration_wants_empty_tables(config: Config):
    assert tables(replace(config, services=())) == TableContents()


def test_expected_shares_are_those_of_the_ring(config: Config):
    assert maglev.shares(ring_of(tables(config)))[2] == 76 / 101
