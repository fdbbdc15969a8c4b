"""Rings for the clients of zones: there before anybody is led to them, in regions of their own."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from agent.dataplane import contents
from agent.model import Forward, Scheduler
from agent.reconcile.apply import Applier
from agent.reconcile.diff import (
    ClearBackend,
    DeleteMark,
    DeleteService,
    DeleteZonePrefix,
    DeleteZoneRing,
    PutBackend,
    PutMark,
    PutService,
    PutZonePrefix,
    PutZoneRing,
    diff,
)
from agent.state.tables import MarkEntry, ServiceEntry, ServiceSlot, TableContents, ZoneRingKey
from tests.unit.dataplane.fakes import SMALL, FakeTables
from tests.unit.dataplane.test_contents import entry

VIP = ip_address("203.0.113.10")
SLOT, MARK = ServiceSlot(VIP, 80, 6), ServiceSlot(VIP, 0, 0)
SERVICE = ServiceEntry(3, 77, Forward.IPIP, Scheduler.MAGLEV, 0, bytes((5, 0)) * 101, zones=True)
EAST, WEST = ZoneRingKey(3, 1), ZoneRingKey(3, 2)
P4, P6 = ip_network("10.1.0.0/16"), ip_network("2001:db8:1::/48")
FULL = TableContents(
    {5: entry("10.0.0.21")}, {SLOT: SERVICE}, {MARK: MarkEntry()},
    zones={P4: 1, P6: 2}, zone_rings={EAST: bytes((5, 0)) * 7, WEST: bytes((5, 0)) * 101},
)  # fmt: skip


def bring(tables: FakeTables, applier: Applier, wanted: TableContents) -> None:
    for step in diff(contents.read(tables), wanted):
        applier.apply(step)
    assert contents.read(tables) == wanted


def regions(tables: FakeTables) -> dict[object, int]:
    rows = [*contents.service_rows(tables), *contents.zone_ring_rows(tables)]
    lines = tables.size.lines_per_ring
    return {key: int(row["ring_line"]) // lines for key, row in rows if key != MARK}


def test_rings_come_before_the_prefixes_that_lead_to_them_and_go_after():
    assert [type(step) for step in diff(TableContents(), FULL)] == [
        PutBackend, PutService, PutZoneRing, PutZoneRing, PutZonePrefix, PutZonePrefix, PutMark,
    ]  # fmt: skip
    assert [type(step) for step in diff(FULL, TableContents())] == [
        DeleteZonePrefix, DeleteZonePrefix, DeleteZoneRing, DeleteZoneRing, DeleteService,
        DeleteMark, ClearBackend,
    ]  # fmt: skip


def test_the_tables_hold_them_and_the_service_says_so():
    tables = FakeTables()
    applier = Applier(tables)
    bring(tables, applier, FULL)
    assert len(set(regions(tables).values())) == 3
    bring(tables, applier, TableContents())


def test_a_new_ring_is_written_beside_the_one_in_use():
    tables = FakeTables()
    applier = Applier(tables)
    bring(tables, applier, FULL)
    for n in range(1, 30):
        before = regions(tables)
        rings = tables.rings.copy()
        bring(tables, applier, replace(FULL, zone_rings={**FULL.zone_rings, EAST: bytes((5, n))}))
        after = regions(tables)
        assert after[EAST] not in before.values()
        assert {**after, EAST: 0} == {**before, EAST: 0}
        at = before[EAST] * tables.size.lines_per_ring * 32
        assert np.array_equal(tables.rings[at : at + 32], rings[at : at + 32])


def test_all_that_fit_have_a_ring_and_still_can_flip():
    tables = FakeTables(replace(SMALL, services=4, zone_rings=6))
    applier = Applier(tables)
    slots = [ServiceSlot(VIP, port, 6) for port in (1, 2, 3)]
    services = {slot: replace(SERVICE, id=n) for n, slot in enumerate(slots, 1)}
    keys = [ZoneRingKey(n, zone) for n in (1, 2, 3) for zone in (1, 2)]
    for turn in range(6):
        ring = bytes((6 + turn, 0)) * 101
        # other zones each time: what is not wanted gives way first
        chosen = [ZoneRingKey(key.service_id, key.zone + 2 * turn) for key in keys]
        wanted = TableContents(
            {5: entry("10.0.0.21")},
            {slot: replace(each, ring=ring) for slot, each in services.items()},
            FULL.marks,
            zones={P4: 1 + 2 * turn},
            zone_rings=dict.fromkeys(chosen, ring),
        )
        bring(tables, applier, wanted)


@pytest.mark.parametrize("prefix", [P4, P6, ip_network("0.0.0.0/0"), ip_network("::/0")])
def test_a_prefix_is_found_again(prefix):
    tables = FakeTables()
    Applier(tables).apply(PutZonePrefix(prefix, 70_000))
    assert contents.read(tables).zones == {prefix: 70_000}
