"""Does the steps of ``diff`` to the shared tables, each so that a packet at any moment sees
the old state or the new one.
"""

from __future__ import annotations

import numpy as np

from agent.dataplane import abi
from agent.dataplane.contents import backend_row, service_row
from agent.dataplane.tables import SharedTables
from agent.errors import DataplaneError
from agent.reconcile.diff import (
    ClearBackend,
    DeleteMark,
    DeleteService,
    PutBackend,
    PutMark,
    PutService,
    Step,
)
from agent.state.tables import BackendEntry, ServiceEntry, ServiceSlot

_LINE = 64  # bytes of the backend row that the packet path reads for dsr
_GONE = ("packets", "bytes", "opened", "closed", "established")


class Applier:
    """Writes the tables of one instance."""

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self._last_freed: int | None = None

    def apply(self, step: Step) -> None:
        """Do one step. OSError and DataplaneError leave the tables as they were."""
        match step:
            case PutBackend(ident, entry, fresh):
                self._put_backend(ident, entry, fresh)
            case PutService(slot, entry, ring_changed, fresh):
                self._put_service(slot, entry, ring_changed, fresh)
            case PutMark(slot):
                self._tables.put_service(slot, np.zeros(1, dtype=abi.SERVICE))
            case DeleteService(slot) | DeleteMark(slot):
                self._tables.delete_service(slot)
            case ClearBackend(ident, service_id):
                self._clear_backend(ident, service_id)

    def _put_backend(self, ident: int, entry: BackendEntry, fresh: bool) -> None:
        """Words of 8 bytes, the one with the flags last unless it takes the backend away."""
        target = self._tables.backends[ident : ident + 1].view(np.uint64)
        row = backend_row(entry).view(np.uint64)
        if fresh:
            self._tables.backend_count[:, ident] = np.zeros((), dtype=abi.BACKEND_COUNTERS)
        if not entry.usable:
            target[0] = row[0]
        changed = np.flatnonzero(target[1:] != row[1:]) + 1
        target[changed] = row[changed]
        target[0] = row[0]

    def _put_service(
        self, slot: ServiceSlot, entry: ServiceEntry, ring_changed: bool, fresh: bool
    ) -> None:
        if fresh:
            self._tables.service_count[:, entry.id] = np.zeros((), dtype=abi.SERVICE_COUNTERS)
        old = self._region_of(slot)
        region = self._write_ring(entry.ring) if ring_changed or old is None else old
        line = region * self._tables.size.lines_per_ring
        self._tables.put_service(slot, service_row(entry, line))
        if old is not None and old != region:
            self._last_freed = old

    def _regions(self) -> dict[ServiceSlot, int]:
        lines = self._tables.size.lines_per_ring
        return {
            slot: int(row["ring_line"]) // lines
            for slot, row in self._tables.services()
            if not slot.is_mark
        }

    def _region_of(self, slot: ServiceSlot) -> int | None:
        return self._regions().get(slot)

    def _write_ring(self, ring: bytes) -> int:
        """Fill a region that no service names, and not the one given up last: a packet that
        read its service before the last flip may still be drawing there.
        """
        size = self._tables.size
        used = set(self._regions().values())
        free = [r for r in range(size.ring_lines // size.lines_per_ring) if r not in used]
        choice = next((r for r in free if r != self._last_freed), None)
        if choice is None:
            raise DataplaneError(
                "no ring is free", where="tables.services", remedy="raise `tables: {services: …}`"
            )
        first = choice * size.lines_per_ring * abi.RING_LINE_SLOTS
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
        tables.backend_count[:, ident] = np.zeros((), dtype=abi.BACKEND_COUNTERS)
