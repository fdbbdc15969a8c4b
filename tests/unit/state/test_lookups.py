"""What leads packets to a service: marks, prefixes, ranges, answers, QUIC ids, sources."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from agent.dataplane import abi
from agent.model import Backend, Config, Forward, Nat, Protocol, Service, ServiceKey
from agent.state import lookups
from agent.state.identities import Identities, assign
from agent.state.lookups import mark_of
from agent.state.tables import (
    MarkEntry,
    OriginEntry,
    PortBlock,
    QuicId,
    ServiceSlot,
    TableContents,
)
from tests.unit.state.world import TABLES, A, B, hop, web

VIP = ip_address("203.0.113.10")
TCP, UDP = Protocol.TCP, Protocol.UDP
V6 = Backend("v6", ip_address("fd00::21"))


def service(key: ServiceKey, *backends: Backend, name: str = "web", **fields) -> Service:
    return Service(name, key, backends=backends, **fields)


def config(*services: Service, **fields) -> Config:
    return Config("test", "eth0", tables=TABLES, services=services, **fields)


def ids_of(*services: Service) -> Identities:
    return assign(config(*services), TableContents(), frozenset(), lambda: 77)


def test_a_mark_says_what_its_vip_has():
    exact = service(ServiceKey(VIP, 80, TCP))
    some = service(ServiceKey(VIP, 8000, TCP, 8010))
    every = service(ServiceKey(VIP, 0, UDP))
    mark = mark_of(VIP)
    assert lookups.marks([exact], {}) == {mark: MarkEntry()}
    assert lookups.marks([exact, some], {}) == {mark: MarkEntry(ranges=True)}
    assert lookups.marks([every, exact], {}) == {mark: MarkEntry(any_port=True)}
    assert lookups.marks([some, exact, every], {}) == {mark: MarkEntry(True, True)}


def test_source_addresses_are_marked_with_their_numbers_and_may_be_vips():
    address = ip_address("10.0.0.1")
    some = service(ServiceKey(VIP, 8000, TCP, 8010))
    found = lookups.marks([some], {0: address, 1: VIP})
    assert found == {
        mark_of(address): MarkEntry(nat_source=0),
        mark_of(VIP): MarkEntry(ranges=True, nat_source=1),
    }


def test_a_prefix_is_its_network():
    wide = service(ServiceKey(ip_address("203.0.113.0"), 80, TCP, vip_bits=28))
    v6 = service(ServiceKey(ip_address("2001:db8::"), 80, TCP, vip_bits=32))
    assert lookups.prefixes([wide, v6, web()]) == {
        ip_network("203.0.113.0/28"),
        ip_network("2001:db8::/32"),
    }


def test_the_blocks_of_a_range_name_its_first_port():
    some = service(ServiceKey(VIP, 8000, TCP, 8010))
    assert lookups.port_blocks([some, web()]) == {
        PortBlock(VIP, 6, 8000, 13): 8000,
        PortBlock(VIP, 6, 8008, 15): 8000,
        PortBlock(VIP, 6, 8010, 16): 8000,
    }


def origin(port: int, backend_id: int = 1) -> OriginEntry:
    return OriginEntry(VIP, 77, 1, backend_id, port)


@pytest.mark.parametrize(
    ("key", "own", "slot", "known_as"),
    [
        (ServiceKey(VIP, 80, TCP), None, ServiceSlot(A.address, 80, 6), 80),
        (ServiceKey(VIP, 80, TCP), 8080, ServiceSlot(A.address, 8080, 6), 80),
        (ServiceKey(VIP, 53, UDP), None, ServiceSlot(A.address, 53, 17), 53),
        (ServiceKey(VIP, 0, TCP), None, ServiceSlot(A.address, 0, 6), 0),
        (ServiceKey(VIP, 8000, TCP, 8010), None, ServiceSlot(A.address, 0, 6), 0),
    ],
)
def test_answers_are_known_by_where_they_come_from(key, own, slot, known_as):
    some = service(key, replace(A, port=own), forward=Forward.NAT)
    assert lookups.origins([some], ids_of(some), {}) == {slot: origin(known_as)}


def test_only_nat_has_answers_to_find_by_the_backend():
    for forward in set(Forward) - {Forward.NAT}:
        some = service(ServiceKey(VIP, 80, TCP), A, forward=forward)
        assert lookups.origins([some], ids_of(some), {}) == {}


def test_a_server_of_both_has_both():
    some = service(ServiceKey(VIP, 80, TCP), A, forward=Forward.NAT)
    slot, six = ServiceSlot(A.address, 80, 6), ServiceSlot(ip_address("fd00::1"), 0, 17)
    blocks = {slot: (3, 0, 0, 0, 0, 0, 0, 0), six: (1, 2, 0, 0, 0, 0, 0, 0)}
    assert lookups.origins([some], ids_of(some), blocks) == {
        slot: replace(origin(80), blocks=blocks[slot]),
        six: OriginEntry(ip_address("::"), blocks=blocks[six]),
    }


def test_quic_ids_name_their_backend():
    some = service(
        ServiceKey(VIP, 443, UDP), replace(A, quic_server_id=b"\x01\x02\x03\x04"), B,
        quic_id_bytes=4,
    )  # fmt: skip
    expected = {QuicId(1, b"\x01\x02\x03\x04\0\0\0\0"): 1}
    assert lookups.quic_ids([some], ids_of(some)) == expected
    assert lookups.quic_ids([replace(some, quic_id_bytes=None)], ids_of(some)) == {}


FULLNAT = service(ServiceKey(VIP, 80, TCP), A, B, forward=Forward.FULLNAT)
ONE, TWO, THREE = (ip_address(f"10.0.0.{n}") for n in (1, 2, 3))
HOPS = {A.address: hop("10.0.0.21", source=TWO), B.address: hop("10.0.0.22", source=ONE)}


def sources(held=None, hops=HOPS, services=(FULLNAT,), **nat):
    return lookups.nat_sources(config(*services, nat=Nat(**nat)), hops, held or {})


def test_fullnat_sends_from_where_the_kernel_would():
    assert sources() == {0: ONE, 1: TWO}
    assert sources(hops={A.address: HOPS[A.address]}) == {0: TWO}
    assert sources(hops={A.address: hop("10.0.0.21", source=None)}) == {}
    assert sources(services=(replace(FULLNAT, forward=Forward.NAT),)) == {}


def test_or_from_where_the_operator_says():
    assert sources(sources_v4=(THREE,)) == {0: THREE}
    assert sources(sources_v6=(ip_address("fd00::9"),)) == {0: ONE, 1: TWO}, "no backend is IPv6"


def test_ipv6_sources_have_numbers_of_their_own():
    both = replace(FULLNAT, backends=(V6,))
    hops = {V6.address: hop("fd00::21", source=ip_address("fd00::1"))}
    assert sources(hops=hops, services=(both,)) == {8: ip_address("fd00::1")}


def test_a_source_keeps_its_number():
    assert sources({0: TWO}) == {0: TWO, 1: ONE}
    assert sources({0: TWO, 1: ONE}) == {0: TWO, 1: ONE}
    assert sources({0: THREE, 1: ONE}, sources_v4=(ONE, TWO)) == {0: TWO, 1: ONE}


def test_a_gap_is_filled():
    assert sources({0: THREE, 1: TWO, 2: ONE}) == {0: ONE, 1: TWO}


def test_the_tables_have_room_for_as_many_sources():
    assert lookups.NAT_SOURCES == abi.NAT_SOURCES


def test_no_more_sources_than_the_table_holds():
    many = tuple(ip_address(f"10.0.1.{n}") for n in range(1, 20))
    assert sources(sources_v4=many) == dict(enumerate(many[:8]))
