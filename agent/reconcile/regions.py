"""Owns the regions of the table of rings: which service, or which zone's clients of a service, have
which region.
"""

from __future__ import annotations

from collections import deque

from agent.dataplane import contents
from agent.dataplane.tables import SharedTables
from agent.errors import DataplaneError
from agent.state.tables import ServiceSlot, ZoneRingKey

type Owner = ServiceSlot | ZoneRingKey


class Regions:
    """The owners of the regions, read from the tables once and tracked from then on."""

    def __init__(self, tables: SharedTables) -> None:
        lines = tables.size.lines_per_ring
        self._held: dict[Owner, int] = {
            slot: int(row["ring_line"]) // lines
            for slot, row in contents.service_rows(tables)
            if not slot.is_mark
        }
        for key, row in contents.zone_ring_rows(tables):
            self._held[key] = int(row["ring_line"]) // lines
        used = set(self._held.values())
        self._free = deque(r for r in range(tables.size.ring_lines // lines) if r not in used)
        self._resting: int | None = None  # the region that an owner left last

    def of(self, owner: Owner) -> int | None:
        """Return the region of the owner's ring; None: it has no ring."""
        return self._held.get(owner)

    def next_free(self) -> int:
        """Return a region that nothing names, other than the one given up last.

        A packet that read its service before the last switch may still be drawing there.
        DataplaneError: no region is free.
        """
        choice = next((region for region in self._free if region != self._resting), None)
        if choice is None:
            raise DataplaneError(
                "no ring is free", where="tables.services", remedy="raise `tables: {services: …}`"
            )
        return choice

    def take(self, owner: Owner, region: int) -> None:
        """Note that the tables say that the owner's ring is in this region now."""
        if (before := self._held.get(owner)) == region:
            return
        self._free.remove(region)
        self._held[owner] = region
        if before is not None:
            self._free.append(before)
            self._resting = before

    def give_up(self, owner: Owner) -> None:
        """Note that the tables do not name the owner's ring any more."""
        before = self._held.pop(owner, None)
        if before is not None:
            self._free.append(before)
            if isinstance(owner, ZoneRingKey):
                self._resting = before
