"""The tables that a configuration in its surroundings should have."""

from dataclasses import replace
from ipaddress import ip_address

import numpy as np

from agent.model import (
    NO_MAC,
    AdminState,
    BackendRef,
    Config,
    DownFlows,
    Forward,
    Health,
    NoBackend,
    Scheduler,
    Timeouts,
)
from agent.rings import maglev
from agent.state.desired import desired, desired_backends, outer_source
from agent.state.identities import Identities, assign, slot_of
from agent.state.tables import MarkEntry, ServiceEntry, ServiceSlot, TableContents
from tests.unit.state.world import OUR_IFINDEX, TABLES, A, B, hop, surroundings, web


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
    assert found.marks == {ServiceSlot(slot.vip, 0, 0): MarkEntry()}
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


def test_the_seed_is_that_of_the_surroundings(config: Config):
    (entry,) = tables(replace(config, hash_seed=2**63)).services.values()
    assert entry.pick_seed == 2**63


def test_timeouts_are_ticks_by_state(config: Config):
    timeouts = Timeouts(embryonic_s=8, acked_s=12, established_s=400, closing_s=20)
    found = tables(replace(config, services=(web(A, timeouts=timeouts),)))
    assert found.backends[1].timeout_ticks == (0, 2, 100, 5, 0, 3, 100, 5)


def test_outer_headers_come_from_the_configured_source_or_the_route(config: Config):
    ipip = replace(config, services=(web(A, forward=Forward.IPIP),))
    assert tables(ipip).backends[1].source == ip_address("10.0.0.1")
    assert tables(replace(ipip, tunnel_source_v4=ip_address("10.9.9.9"))).backends[1].source == (
        ip_address("10.9.9.9")
    )
    assert tables(config).backends[1].source is None, "dsr has no outer header"


def test_outer_sources_are_of_the_backends_family(config: Config):
    both = replace(
        config, tunnel_source_v4=ip_address("10.9.9.9"), tunnel_source_v6=ip_address("fd00::9")
    )
    assert outer_source(both, ip_address("fd00::21"), None) == ip_address("fd00::9")
    assert outer_source(both, A.address, None) == ip_address("10.9.9.9")
    assert outer_source(config, A.address, None) is None


def test_without_a_source_ipip_is_unreachable_and_says_which_setting_helps(config: Config):
    ipip = replace(config, services=(web(A, forward=Forward.IPIP),))
    around = surroundings(ipip, hops={"a": hop("10.0.0.21", source=None)})
    (verdict,) = around.eligibility.values()
    assert "tunnel_source: {ipv4: …}" in verdict.reason
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


def only(config: Config, **changes) -> ServiceEntry:
    """The entry of one service with these changes."""
    (entry,) = tables(replace(config, services=(web(A, B, **changes),))).services.values()
    return entry


def test_each_scheduler_has_its_ring(config: Config):
    def order(scheduler: Scheduler) -> list[int]:
        return np.frombuffer(only(config, scheduler=scheduler).ring, dtype=np.uint16).tolist()

    assert order(Scheduler.ROUND_ROBIN) == [2, 1, 2, 2], "weights 100 and 300"
    assert order(Scheduler.LEAST_CONN) == [1, 2]
    for scheduler in (Scheduler.MAGLEV, Scheduler.SOURCE, Scheduler.LEAST_LOAD):
        assert len(order(scheduler)) == TABLES.ring_slots


def test_a_service_says_what_its_scheduler_needs_and_no_more(config: Config):
    plain = only(config, draws=8, source_bits=24)
    assert (plain.draws, plain.source_bits, plain.bound, plain.load_weight) == (0, 0, 0, 0)
    assert only(config, scheduler=Scheduler.LEAST_LOAD, draws=8).draws == 8
    source = only(config, scheduler=Scheduler.SOURCE)
    assert (source.source_bits, source.bound, source.load_weight) == (32, 320, 400)
    unbounded = only(config, scheduler=Scheduler.SOURCE, source_bound=0, source_bits=24)
    assert (unbounded.source_bits, unbounded.bound, unbounded.load_weight) == (24, 0, 0)


def test_flags_of_a_service(config: Config):
    assert only(config).waiting
    assert not only(config, count_waiting=False).waiting
    assert only(config, no_backend=NoBackend.RESET).reset
    assert not only(config, no_backend=NoBackend.ANY).reset
    assert only(config, quic_id_bytes=8).quic_id_bytes == 8


def test_ranges_and_prefixes_are_in_the_services_entry(config: Config):
    service = web(A)
    key = replace(service.key, port_last=90, vip_bits=32)
    found = tables(replace(config, services=(replace(service, key=key),)))
    (entry,) = found.services.values()
    assert (entry.port_last, entry.vip_bits) == (90, 32)
    assert found.prefixes
    assert found.ranges


def test_backends_have_what_the_schedulers_compare(config: Config):
    least = replace(config, services=(web(A, B, scheduler=Scheduler.LEAST_LOAD),))
    a, b = tables(least, health={"b": Health.DOWN}).backends.values()
    assert (a.counts_load, a.weight, a.bytes_per_connection) == (True, 100, 250)
    assert (b.counts_load, b.weight) == (True, 0)
    a, _ = tables(config).backends.values()
    assert not a.counts_load


def test_slow_start_is_in_the_ring_and_in_the_row(config: Config):
    around = surroundings(config)
    ref = BackendRef("web", "b")
    slow = replace(around.eligibility[ref], weight=100)
    around = replace(around, eligibility={**around.eligibility, ref: slow})
    found = desired(config, ids_of(config), around)
    assert found.backends[2].weight == 100
    assert np.bincount(ring_of(found))[1:].max() <= 51, "equal weights"


def test_ports_and_tags_are_those_of_the_backend_and_the_way(config: Config):
    tags = ((0x8100, 7),)
    moved = replace(config, services=(web(replace(A, port=8080), forward=Forward.NAT),))
    (entry,) = tables(moved, hops={"a": hop("10.0.0.21", vlans=tags)}).backends.values()
    assert (entry.port, entry.vlans) == (8080, tags)


def test_with_several_interfaces_the_way_out_is_always_named(config: Config):
    several = replace(config, backend_interfaces=("eth1",))
    assert {e.ifindex for e in tables(several).backends.values()} == {OUR_IFINDEX}


def test_fullnat_has_its_sources_and_their_marks(config: Config):
    full = replace(config, services=(web(A, forward=Forward.FULLNAT),))
    found = tables(full)
    source = ip_address("10.0.0.1")
    assert found.nat_sources == {0: source}
    assert found.marks[ServiceSlot(source, 0, 0)] == MarkEntry(nat_source=0)
    assert found.backends[1].source == source, "so that a restart knows it"
    assert tables(config).nat_sources == {}


def test_backends_that_share_an_address_have_places_of_their_own_in_the_ring(config: Config):
    one, two = replace(A, port=8001), replace(A, name="a2", port=8002)
    both = replace(config, services=(web(one, two, forward=Forward.NAT),))
    counts = np.bincount(ring_of(tables(both)))
    assert counts[1:].min() >= 50
