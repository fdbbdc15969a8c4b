"""Where rings lie."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from agent.dataplane import contents, keys
from agent.errors import DataplaneError
from agent.model import Forward, Scheduler
from agent.reconcile.regions import Regions
from agent.state.tables import ServiceEntry, ServiceSlot, ZoneRingKey
from tests.unit.dataplane.fakes import FakeTables

ONE, TWO = (ServiceSlot(ip_address("203.0.113.10"), port, 6) for port in (80, 81))
ZONE = ZoneRingKey(3, 1)


def regions(tables: FakeTables) -> Regions:
    return Regions(tables)  # type: ignore[arg-type]


def test_what_the_tables_say_is_taken_over():
    tables = FakeTables()
    lines = tables.size.lines_per_ring
    entry = ServiceEntry(3, 77, Forward.IPIP, Scheduler.MAGLEV, 0, b"\5\0")
    tables.put_service(ONE, contents.service_row(entry, 2 * lines))
    row = contents.zone_ring_row(b"\5\0", 0)
    tables.put("zone_rings", keys.packed_zone_ring(ZONE), row.tobytes())
    found = regions(tables)
    assert (found.of(ONE), found.of(ZONE), found.of(TWO)) == (2, 0, None)
    assert found.next_free() == 1


def test_the_region_that_was_given_up_last_is_not_written_to_next():
    found = regions(FakeTables())
    found.take(ONE, found.next_free())
    for _ in range(50):
        before = found.of(ONE)
        fresh = found.next_free()
        assert fresh != before
        found.take(ONE, fresh)
        assert found.next_free() != before


def test_a_ring_that_stays_where_it_is_takes_nothing():
    found = regions(FakeTables())
    region = found.next_free()
    found.take(ONE, region)
    found.take(ONE, region)
    assert (found.of(ONE), found.next_free()) == (region, region + 1)


def test_all_regions_can_be_had_and_one_that_is_given_up_again():
    tables = FakeTables()
    found = regions(tables)
    count = tables.size.ring_lines // tables.size.lines_per_ring
    slots = [ServiceSlot(ONE.vip, port, 6) for port in range(count)]
    for slot in slots:
        found.take(slot, found.next_free())
    assert {found.of(slot) for slot in slots} == set(range(count))
    with pytest.raises(DataplaneError, match="no ring is free"):
        found.next_free()
    found.give_up(slots[3])
    assert found.next_free() == 3
    found.give_up(slots[3])  # it has none: nothing happens
    found.take(TWO, 3)
    with pytest.raises(DataplaneError):
        found.next_free()


def test_where_only_the_region_given_up_last_is_left_there_is_none():
    """A packet may still be drawing there."""
    tables = FakeTables()
    found = regions(tables)
    count = tables.size.ring_lines // tables.size.lines_per_ring
    for port in range(count - 1):
        found.take(ServiceSlot(ONE.vip, port, 6), found.next_free())
    first = ServiceSlot(ONE.vip, 0, 6)
    found.take(first, found.next_free())
    with pytest.raises(DataplaneError, match="no ring is free"):
        found.next_free()
