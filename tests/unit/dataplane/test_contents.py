"""Values to table rows and back."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import pytest

from agent.dataplane import abi, contents, keys
from agent.model import Forward, Scheduler
from agent.state.tables import BackendEntry, MarkEntry, OriginEntry, ServiceEntry, ServiceSlot
from tests.unit.dataplane.fakes import FakeTables


def entry(address: str, **changes: object) -> BackendEntry:
    fields: dict = {
        "service_id": 3,
        "address": ip_address(address),
        "usable": True,
        "alive": True,
        "forward": Forward.IPIP,
        "ifindex": 7,
        "mac": "02:00:00:00:00:aa",
        "source_mac": "02:00:00:00:00:bb",
        "mtu": 1500,
        "timeout_ticks": (0, 8, 225, 8, 0, 15, 225, 8),
        "source": ip_address("10.0.0.1"),
    }
    return BackendEntry(**(fields | changes))


@pytest.mark.parametrize(
    "value",
    [
        entry("10.0.0.21"),
        entry("fd00::21", source=ip_address("fd00::1")),
        entry("10.0.0.21", source=None, forward=Forward.DSR, ifindex=0),
        entry("10.0.0.21", source=ip_address("fd00::1")),
        entry("fd00::21", source=ip_address("10.0.0.1")),
        entry("10.0.0.21", usable=False),
        entry("10.0.0.21", usable=False, alive=False, mac="00:00:00:00:00:00", mtu=0),
        entry("10.0.0.21", mtu=65_535, timeout_ticks=(0, *(8191,) * 7)),
        entry("10.0.0.21", forward=Forward.FULLNAT, port=8080, weight=1000),
        entry("10.0.0.21", vlans=((0x88A8, 7), (0x8100, 4094)), counts_load=True),
        entry("fd00::21", vlans=((0x8100, 1),), weight=1, bytes_per_connection=1000),
    ],
)
def test_a_backend_comes_back_as_it_went(value: BackendEntry):
    tables = FakeTables()
    tables.backends[5] = contents.backend_row(value)[0]
    tables.backend_load[5] = contents.load_row(value)[0]
    assert contents.read(tables).backends == {5: value}


def test_addresses_are_in_network_order():
    row = contents.backend_row(entry("10.0.0.21"))
    assert row["addr"].tobytes()[:4] == IPv4Address("10.0.0.21").packed
    row = contents.backend_row(entry("fd00::21"))
    assert row["addr"].tobytes() == IPv6Address("fd00::21").packed


@pytest.mark.parametrize("slots", [0, 1, 101])
def test_a_service_comes_back_with_its_ring(slots: int):
    tables = FakeTables()
    ring = np.arange(1, slots + 1, dtype=np.uint16)
    first = 2 * tables.size.lines_per_ring
    tables.rings[first * 32 : first * 32 + slots] = ring
    value = ServiceEntry(3, 0xFFFFFFFF, Forward.DSR, Scheduler.MAGLEV, 2**64 - 1, ring.tobytes())
    slot = ServiceSlot(ip_address("203.0.113.10"), 80, 6)
    tables.put_service(slot, contents.service_row(value, first))
    assert contents.read(tables).services == {slot: value}


@pytest.mark.parametrize(
    "value",
    [MarkEntry(), MarkEntry(ranges=True), MarkEntry(any_port=True), MarkEntry(nat_source=9)],
)
def test_marks_are_no_services(value: MarkEntry):
    tables = FakeTables()
    mark = ServiceSlot(ip_address("203.0.113.10"), 0, 0)
    tables.put_service(mark, contents.mark_row(value))
    found = contents.read(tables)
    assert (found.marks, found.services) == ({mark: value}, {})


def test_a_service_comes_back_with_all_that_it_says():
    tables = FakeTables()
    plain = ServiceEntry(3, 77, Forward.DSR, Scheduler.MAGLEV, 0, b"")
    for value in (
        replace(plain, scheduler=Scheduler.LEAST_LOAD, draws=8, waiting=True, reset=True),
        replace(plain, forward=Forward.FULLNAT, quic_id_bytes=8, port_last=65_535),
        replace(plain, vip_bits=0),
        replace(plain, vip_bits=128, scheduler=Scheduler.SOURCE, source_bits=128, bound=320,
                load_weight=70_000),
    ):  # fmt: skip
        tables.service_load["weight"][3] = value.load_weight
        slot = ServiceSlot(ip_address("203.0.113.10"), 80, 6)
        tables.put_service(slot, contents.service_row(value, 0))
        assert contents.read(tables).services == {slot: value}


@pytest.mark.parametrize("vip", ["203.0.113.10", "2001:db8::10"])
@pytest.mark.parametrize("blocks", [(), (1, 2, 3, 4, 5, 6, 7, 65_535)])
def test_an_origin_comes_back_as_it_went(vip: str, blocks: tuple[int, ...]):
    tables = FakeTables()
    value = OriginEntry(ip_address(vip), 0xFFFFFFFF, 65_535, 65_534, 443, blocks)
    slot = ServiceSlot(ip_address(vip), 8080, 6)
    row = contents.origin_row(value)
    tables.put(keys.origins_table(slot), keys.packed_slot(slot), row.tobytes())
    assert contents.read(tables).origins == {slot: value}


def test_sources_are_as_many_as_the_first_element_says():
    tables = FakeTables()
    tables.nat_sources["addr"][0] = contents.words(ip_address("10.0.0.1"))
    tables.nat_sources["addr"][1] = contents.words(ip_address("10.0.0.2"))
    tables.nat_sources["addr"][8] = contents.words(ip_address("fd00::1"))
    tables.nat_sources["count"][0], tables.nat_sources["count"][8] = 1, 1
    assert contents.read(tables).nat_sources == {
        0: ip_address("10.0.0.1"),
        8: ip_address("fd00::1"),
    }


def test_what_the_agent_says_of_a_load_is_in_fixed_point():
    row = contents.load_row(entry("10.0.0.21", weight=100, bytes_per_connection=1000))[0]
    assert (row["weight"], row["inverse_weight"], row["per_byte"]) == (100, 10_486, 16_777)
    assert (row["kappa"], row["open"], row["queue"]) == (256, 0, 0)
    assert contents.load_row(entry("10.0.0.21"))[0]["inverse_weight"] == 0xFFFFFFFF


def test_rows_of_a_later_version_are_left_out():
    tables = FakeTables()
    row = np.zeros(1, dtype=abi.SERVICE)
    row["scheduler"], row["forward"] = 99, 1
    tables.put_service(ServiceSlot(ip_address("203.0.113.10"), 80, 6), row)
    assert contents.read(tables).services == {}
