"""Applies the steps of ``diff`` to the shared tables, each so that a packet at any moment sees the
old state or the new one.
"""

from __future__ import annotations

from itertools import chain

import numpy as np

from agent.dataplane import abi, addressfilter, contents, keys
from agent.dataplane.tables import SharedTables, Table
from agent.model import Address
from agent.reconcile.diff import (
    ClearBackend,
    DeleteMark,
    DeleteOrigin,
    DeletePrefix,
    DeleteQuicId,
    DeleteRange,
    DeleteService,
    DeleteZonePrefix,
    DeleteZoneRing,
    PutBackend,
    PutMark,
    PutOrigin,
    PutPrefix,
    PutQuicId,
    PutRange,
    PutService,
    PutZonePrefix,
    PutZoneRing,
    SetNatSources,
    Step,
)
from agent.reconcile.regions import Regions
from agent.state.tables import (
    BackendEntry,
    ServiceEntry,
    ServiceSlot,
    TableContents,
    ZoneRingKey,
)

_GONE = ("packets", "bytes", "opened", "closed", "established", "reply_packets", "reply_bytes")
_LOAD_WORD = 6  # of struct backend_load: per_byte and inverse_weight


class Applier:
    """Writes the tables of one instance."""

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self._regions = Regions(tables)

    def apply(self, step: Step) -> None:
        """Apply one step. OSError and DataplaneError leave the tables as they were."""
        tables = self._tables
        match step:
            case PutBackend(ident, entry, fresh):
                self._put_backend(ident, entry, fresh)
            case PutService(slot, entry, ring_changed, fresh):
                self._put_service(slot, entry, ring_changed, fresh)
            case PutMark(slot, mark):
                self._show(slot.vip)
                self._put(keys.services_table(slot), slot, contents.mark_row(mark))
            case PutOrigin(slot, origin):
                self._show(slot.vip)
                self._put(keys.origins_table(slot), slot, contents.origin_row(origin))
            case PutPrefix(prefix):
                bits = addressfilter.prefix_bits(prefix)
                addressfilter.set_bits(tables.addresses["prefix"], bits)
                first = contents.words(prefix.network_address).tobytes()
                tables.put(keys.prefixes_table(prefix), keys.packed_prefix(prefix), first)
            case PutRange(block, first_port):
                value = keys.packed_first(first_port, block.vip.version)
                tables.put("ranges", keys.packed_block(block), value)
            case PutZoneRing(key, ring):
                self._put_zone_ring(key, ring)
            case PutZonePrefix(prefix, zone):
                packed = keys.packed_prefix(prefix)
                tables.put(keys.zones_table(prefix), packed, zone.to_bytes(4, "little"))
            case PutQuicId(quic_id, ident):
                tables.put("quic_ids", keys.packed_quic(quic_id), ident.to_bytes(4, "little"))
            case SetNatSources(sources):
                self._set_nat_sources(sources)
            case ClearBackend(ident, service_id):
                self._clear_backend(ident, service_id)
            case _:
                self._delete(step)

    def _show(self, address: Address) -> None:
        """Add an address to the filter first, because what the filter lacks is not looked up."""
        bit = addressfilter.exact_bit(address)
        addressfilter.set_bits(self._tables.addresses["exact"], (bit,))

    def hide_gone(self, held: TableContents) -> None:
        """Leave in the address filter only what the tables hold, after a pass removed entries."""
        addresses = {slot.vip for slot in (*held.marks, *held.origins)}
        exact = addressfilter.words_of(addressfilter.exact_bit(a) for a in addresses)
        prefixes = (addressfilter.prefix_bits(prefix) for prefix in held.prefixes)
        self._tables.addresses["exact"] = exact
        self._tables.addresses["prefix"] = addressfilter.words_of(chain.from_iterable(prefixes))

    def _put(self, table: str, slot: ServiceSlot, row: Table) -> None:
        self._tables.put(table, keys.packed_slot(slot), row.tobytes())

    def _delete(self, step: Step) -> None:
        tables = self._tables
        match step:
            case DeleteService(slot) | DeleteMark(slot):
                tables.delete(keys.services_table(slot), keys.packed_slot(slot))
                self._regions.give_up(slot)
            case DeleteOrigin(slot):
                tables.delete(keys.origins_table(slot), keys.packed_slot(slot))
            case DeletePrefix(prefix):
                tables.delete(keys.prefixes_table(prefix), keys.packed_prefix(prefix))
            case DeleteRange(block):
                tables.delete("ranges", keys.packed_block(block))
            case DeleteZoneRing(key):
                tables.delete("zone_rings", keys.packed_zone_ring(key))
                self._regions.give_up(key)
            case DeleteZonePrefix(prefix):
                tables.delete(keys.zones_table(prefix), keys.packed_prefix(prefix))
            case DeleteQuicId(quic_id):
                tables.delete("quic_ids", keys.packed_quic(quic_id))

    def _put_backend(self, ident: int, entry: BackendEntry, fresh: bool) -> None:
        """Write a backend in words of 8 bytes, the one with the flags last unless it takes the
        backend away.

        The weight is written before new flows may come, and what the packet path counts is set to 0
        before it counts.
        """
        target = self._tables.backends[ident : ident + 1].view(np.uint64)
        row = contents.backend_row(entry).view(np.uint64)
        if fresh:
            target[0] = 0
            self._start_counting(ident)
        if not entry.usable:
            target[0] = row[0]
        load = self._tables.backend_load[ident : ident + 1]
        given = contents.load_row(entry)
        load["kappa"], load["weight"] = given["kappa"], given["weight"]
        load.view(np.uint64)[_LOAD_WORD] = given.view(np.uint64)[_LOAD_WORD]
        changed = np.flatnonzero(target[1:] != row[1:]) + 1
        target[changed] = row[changed]
        target[0] = row[0]

    def _start_counting(self, ident: int) -> None:
        tables = self._tables
        tables.backend_count[:, ident] = np.zeros((), dtype=abi.BACKEND_COUNTERS)
        tables.backend_load[ident] = np.zeros((), dtype=abi.BACKEND_LOAD)
        tables.backend_latency[ident] = np.zeros((), dtype=abi.BACKEND_LATENCY)
        tables.backend_samples[ident] = np.zeros((), dtype=abi.BACKEND_SAMPLE)
        tables.sample_sources[ident] = np.zeros((), dtype=abi.SAMPLE_SOURCE)

    def _put_service(
        self, slot: ServiceSlot, entry: ServiceEntry, ring_changed: bool, fresh: bool
    ) -> None:
        tables = self._tables
        if fresh:
            tables.service_count[:, entry.id] = np.zeros((), dtype=abi.SERVICE_COUNTERS)
            tables.service_load[entry.id] = np.zeros((), dtype=abi.SERVICE_LOAD)
            tables.service_heads[entry.id] = np.zeros((), dtype=abi.SERVICE_HEADS)
        old = self._regions.of(slot)
        region = self._write_ring(entry.ring) if ring_changed or old is None else old
        tables.service_load["weight"][entry.id] = entry.load_weight
        line = region * tables.size.lines_per_ring
        self._put(keys.services_table(slot), slot, contents.service_row(entry, line))
        self._regions.take(slot, region)

    def _put_zone_ring(self, key: ZoneRingKey, ring: bytes) -> None:
        region = self._write_ring(ring)
        row = contents.zone_ring_row(ring, region * self._tables.size.lines_per_ring)
        self._tables.put("zone_rings", keys.packed_zone_ring(key), row.tobytes())
        self._regions.take(key, region)

    def _set_nat_sources(self, sources: dict[int, Address]) -> None:
        """Write addresses before the count that lets the packet path use them, and lower the count
        before addresses go.
        """
        rows = self._tables.nat_sources
        for first in (0, abi.NAT_SOURCES):
            own = {n: a for n, a in sources.items() if first <= n < first + abi.NAT_SOURCES}
            rows["count"][first] = min(int(rows["count"][first]), len(own))
            for number, address in own.items():
                rows["addr"][number] = contents.words(address)
            rows["count"][first] = len(own)

    def _write_ring(self, ring: bytes) -> int:
        """Fill a region that nothing names; return which one."""
        choice = self._regions.next_free()
        first = choice * self._tables.size.lines_per_ring * abi.RING_LINE_SLOTS
        values = np.frombuffer(ring, dtype=np.uint16)
        self._tables.rings[first : first + len(values)] = values
        return choice

    def _clear_backend(self, ident: int, service_id: int) -> None:
        tables = self._tables
        target = tables.backends[ident : ident + 1].view(np.uint64)
        target[0] = 0  # neither usable nor alive
        counts = tables.backend_count[:, ident]
        total = tables.service_count[-1:, service_id]
        for name in _GONE:
            total[f"gone_{name}"] += counts[name].sum()
        target[1:] = 0
        self._start_counting(ident)
