"""Where the ports of fullnat towards each backend are in a node's tables, for many flows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from agent.dataplane import abi
from agent.dataplane.survey import Counts
from agent.dataplane.tables import Table
from agent.model import Forward
from agent.state.tables import BackendEntry, Blocks, ServiceEntry, ServiceSlot, TableContents

_FAMILIES = {4: slice(0, abi.NAT_SOURCES), 6: slice(abi.NAT_SOURCES, 2 * abi.NAT_SOURCES)}


@dataclass(frozen=True, slots=True)
class NatPlaces:
    """``every``: (backends, sources) block + 1 by the backend's id and the number of the source
    address, 0: none; ``of_ports``: by id and port, where a backend that serves several ports has
    blocks for this one.
    """

    every: Counts
    of_ports: dict[tuple[int, int], Counts]

    def blocks(self, backend: Counts, port: Table, number: Counts) -> Counts:
        """Of each flow to a backend's port from the source of that number; -1: there is none."""
        known = (number >= 0) & (number < self.every.shape[1])
        source = np.where(known, number, 0)
        found = self.every[backend, source]
        for (ident, own), blocks in self.of_ports.items():
            those = (backend == ident) & (port == own)
            found = np.where(those & (blocks[source] != 0), blocks[source], found)
        return np.where(known, found, 0) - 1


def nat_places(held: TableContents, backends: int) -> NatPlaces:
    """``held``: what the tables hold; ``backends``: how many rows they have."""
    every = np.zeros((backends, 2 * abi.NAT_SOURCES), dtype=np.int64)
    of_ports: dict[tuple[int, int], Counts] = {}
    services = {entry.id: (slot, entry) for slot, entry in held.services.items()}
    beside = defaultdict[ServiceSlot, list[tuple[int, Blocks]]](list)
    for slot, origin in held.origins.items():
        if origin.blocks and slot.port:
            beside[ServiceSlot(slot.vip, 0, slot.protocol)].append((slot.port, origin.blocks))
    for ident, backend in held.backends.items():
        if backend.forward is not Forward.FULLNAT or backend.service_id not in services:
            continue
        server = _server(backend, *services[backend.service_id])
        # As the packet path looks: the port first, then any port.
        for slot in (server._replace(port=0), server):
            if slot in held.origins:
                row = _row(slot, held.origins[slot].blocks)
                every[ident] = np.where(row != 0, row, every[ident])
        if not server.port:
            for port, blocks in beside[server]:
                of_ports[ident, port] = _row(server, blocks)
    return NatPlaces(every, of_ports)


def _server(backend: BackendEntry, slot: ServiceSlot, service: ServiceEntry) -> ServiceSlot:
    own = 0 if service.port_last else slot.port
    return ServiceSlot(backend.address, backend.port or own, slot.protocol)


def _row(server: ServiceSlot, blocks: Blocks) -> Counts:
    row = np.zeros(2 * abi.NAT_SOURCES, dtype=np.int64)
    if blocks:
        row[_FAMILIES[server.vip.version]] = blocks
    return row
