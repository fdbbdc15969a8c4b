"""Values to table rows and back."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import pytest

from agent.dataplane import abi, contents
from agent.model import Forward, Scheduler
from agent.state.tables import BackendEntry, ServiceEntry, ServiceSlot
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
    ],
)
def test_a_backend_comes_back_as_it_went(value: BackendEntry):
    tables = FakeTables()
    tables.backends[5] = contents.backend_row(value)[0]
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


def test_marks_are_no_services():
    tables = FakeTables()
    mark = ServiceSlot(ip_address("203.0.113.10"), 0, 0)
    tables.put_service(mark, np.zeros(1, dtype=abi.SERVICE))
    found = contents.read(tables)
    assert (found.marks, found.services) == ({mark}, {})


def test_rows_of_a_later_version_are_left_out():
    tables = FakeTables()
    row = np.zeros(1, dtype=abi.SERVICE)
    row["scheduler"], row["forward"] = 99, 1
    tables.put_service(ServiceSlot(ip_address("203.0.113.10"), 80, 6), row)
    assert contents.read(tables).services == {}
