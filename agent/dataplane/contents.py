"""Reads the shared tables as values, and turns values into table rows.

Reconciliation compares and writes these values, one entry each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, keys
from agent.dataplane.tables import SharedTables, Table
from agent.model import Address, Forward, Scheduler
from agent.state import loads
from agent.state.snapshot import NatPorts
from agent.state.tables import (
    BackendEntry,
    MarkEntry,
    OriginEntry,
    ServiceEntry,
    ServiceSlot,
    TableContents,
    ZoneRingKey,
)

FORWARD_IDS = {forward: abi.ForwardId[forward.name] for forward in Forward}
SCHEDULER_IDS = {scheduler: abi.SchedulerId[scheduler.name] for scheduler in Scheduler}
_FORWARDS = {int(ident): forward for forward, ident in FORWARD_IDS.items()}
_SCHEDULERS = {int(ident): scheduler for scheduler, ident in SCHEDULER_IDS.items()}

_BACKEND = struct.Struct("=2I6s6s8sBBH8HHHB11x16s16s32x")  # struct backend
_CACHED_BACKENDS = 16_384


def read(tables: SharedTables) -> TableContents:
    """Return what the tables hold, without rows that no agent of this version wrote."""
    marks: dict[ServiceSlot, MarkEntry] = {}
    services: dict[ServiceSlot, ServiceEntry] = {}
    for slot, row in service_rows(tables):
        if slot.is_mark:
            marks[slot] = _mark_entry(row)
        elif _is_ours(row):
            services[slot] = _service_entry(tables, row)
    return TableContents(
        backends=_backends(tables),
        services=services,
        marks=marks,
        prefixes=frozenset(
            keys.prefix_of(key)
            for name in ("prefixes4", "prefixes6")
            for key, _ in tables.items(name)
        ),
        ranges={
            keys.block_of(key, family): first
            for key, value in tables.items("ranges")
            for first, family in (keys.first_of(value),)
        },
        origins={
            keys.slot_of(key): _origin_entry(value, 4 if name == "origins4" else 6)
            for name in ("origins4", "origins6")
            for key, value in tables.items(name)
        },
        quic_ids={
            keys.quic_of(key): int.from_bytes(value, "little")
            for key, value in tables.items("quic_ids")
        },
        nat_sources=_nat_sources(tables),
        zones={
            keys.prefix_of(key): int.from_bytes(value, "little")
            for name in ("zones4", "zones6")
            for key, value in tables.items(name)
        },
        zone_rings={
            key: _ring(tables, int(row["ring_line"]), int(row["ring_slots"]))
            for key, row in zone_ring_rows(tables)
        },
    )


def read_part(tables: SharedTables, of: TableContents) -> TableContents:
    """Return what the tables hold of the backends, services and zones' rings that ``of`` has."""
    slots = {
        slot: tables.get(keys.services_table(slot), keys.packed_slot(slot)) for slot in of.services
    }
    rows = {
        slot: np.frombuffer(value, dtype=abi.SERVICE)[0]
        for slot, value in slots.items()
        if value is not None
    }
    rings = {key: tables.get("zone_rings", keys.packed_zone_ring(key)) for key in of.zone_rings}
    places = {
        key: np.frombuffer(value, dtype=abi.ZONE_RING)[0]
        for key, value in rings.items()
        if value is not None
    }
    wanted = np.array(sorted(of.backends), np.int64)
    return TableContents(
        backends=_backend_entries(tables, wanted[tables.backends["service"][wanted] > 0]),
        services={slot: _service_entry(tables, row) for slot, row in rows.items() if _is_ours(row)},
        zone_rings={
            key: _ring(tables, int(row["ring_line"]), int(row["ring_slots"]))
            for key, row in places.items()
        },
    )


def _is_ours(row: Table) -> bool:
    """Return whether an agent of this version wrote the row."""
    return int(row["forward"]) in _FORWARDS and int(row["scheduler"]) in _SCHEDULERS


def zone_ring_rows(tables: SharedTables) -> Iterator[tuple[ZoneRingKey, Table]]:
    """Yield the key of every zone's ring, and the row that says where the ring is."""
    for key, value in tables.items("zone_rings"):
        yield keys.zone_ring_of(key), np.frombuffer(value, dtype=abi.ZONE_RING)[0]


def _ring(tables: SharedTables, line: int, slots: int) -> bytes:
    first = line * abi.RING_LINE_SLOTS
    return tables.rings[first : first + slots].tobytes()


def service_rows(tables: SharedTables) -> Iterator[tuple[ServiceSlot, Table]]:
    """Yield every key and row of both service maps, the marks included."""
    for name in ("services4", "services6"):
        for key, value in tables.items(name):
            yield keys.slot_of(key), np.frombuffer(value, dtype=abi.SERVICE)[0]


def _mark_entry(row: Table) -> MarkEntry:
    flags = int(row["flags"])
    return MarkEntry(
        ranges=bool(flags & abi.SERVICE_F_RANGES),
        any_port=bool(flags & abi.SERVICE_F_ANY_PORT),
        nat_source=int(row["ring_line"]) if flags & abi.SERVICE_F_NAT_SOURCE else None,
    )


def _service_entry(tables: SharedTables, row: Table) -> ServiceEntry:
    ident, flags, bound = int(row["id"]), int(row["flags"]), int(row["bound"])
    return ServiceEntry(
        id=ident,
        salt=int(row["flow_salt"]),
        forward=_FORWARDS[int(row["forward"])],
        scheduler=_SCHEDULERS[int(row["scheduler"])],
        pick_seed=int(row["pick_seed"]),
        ring=_ring(tables, int(row["ring_line"]), int(row["ring_slots"])),
        draws=int(row["draws"]),
        source_bits=int(row["source_bits"]),
        bound=bound,
        load_weight=int(tables.service_load["weight"][ident]) if bound else 0,
        waiting=bool(flags & abi.SERVICE_F_WAITING),
        reset=bool(flags & abi.SERVICE_F_RESET),
        quic_id_bytes=int(row["quic_id_len"]),
        port_last=int(row["port_last"]),
        vip_bits=int(row["vip_bits"]) if flags & abi.SERVICE_F_PREFIX else None,
        zones=bool(flags & abi.SERVICE_F_ZONES),
        challenge=bool(flags & abi.SERVICE_F_CHALLENGE),
        cookies=bool(row["cookies"]),
        holds=bool(row["holds"]),
        limits_new=bool(int(row["limits"]) & abi.SERVICE_LIMITS_NEW),
        limits_packets=bool(int(row["limits"]) & abi.SERVICE_LIMITS_PACKETS),
        limits_held=bool(int(row["limits"]) & abi.SERVICE_LIMITS_HELD),
    )


def _backends(tables: SharedTables) -> dict[int, BackendEntry]:
    return _backend_entries(tables, np.flatnonzero(tables.backends["service"]))


def _backend_entries(tables: SharedTables, used: npt.NDArray[np.int64]) -> dict[int, BackendEntry]:
    rows, load = tables.backends[used].tobytes(), tables.backend_load[used]
    given = zip(load["per_byte"].tolist(), load["weight"].tolist(), strict=True)
    size = _BACKEND.size
    return {
        ident: _backend_entry(rows[n * size : (n + 1) * size], *both)
        for n, (ident, both) in enumerate(zip(used.tolist(), given, strict=True))
    }


@lru_cache(maxsize=_CACHED_BACKENDS)
def _backend_entry(raw: bytes, per_byte: int, weight: int) -> BackendEntry:
    """Return the entry in the bytes of a row.

    It is cached, because most rows have not changed since the last reading.
    """
    flags, ifindex, mac, source_mac, vlan, tags, forward, mtu, *rest = _BACKEND.unpack(raw)
    ticks, (service, port, family, address, source) = tuple(rest[:8]), rest[8:]
    return BackendEntry(
        service_id=service,
        address=_address(address, family) or IPv4Address(0),
        usable=bool(flags & abi.BACKEND_F_USABLE),
        alive=bool(flags & abi.BACKEND_F_ALIVE),
        forward=_FORWARDS.get(forward, Forward.DSR),
        ifindex=ifindex,
        mac=mac.hex(":"),
        source_mac=source_mac.hex(":"),
        mtu=mtu,
        timeout_ticks=ticks,
        source=_address(source),
        port=int.from_bytes(port.to_bytes(2, "little"), "big"),
        vlans=tuple(struct.unpack_from(">HH", vlan, 4 * n) for n in range(min(tags, 2))),
        counts_load=bool(flags & abi.BACKEND_F_LOAD),
        weight=weight,
        bytes_per_connection=loads.bytes_per_connection(per_byte),
    )


@lru_cache(maxsize=_CACHED_BACKENDS)
def _origin_entry(value: bytes, family: int) -> OriginEntry:
    row = np.frombuffer(value, dtype=abi.ORIGIN)[0]
    return OriginEntry(
        vip=_address(row["vip"].tobytes(), family) or IPv4Address(0),
        salt=int(row["flow_salt"]),
        service_id=int(row["service"]),
        backend_id=int(row["backend"]),
        port=int(row["port"]),
        blocks=tuple(row["block"].tolist()) if row["block"].any() else (),
    )


def _nat_sources(tables: SharedTables) -> dict[int, Address]:
    found: dict[int, Address] = {}
    for family, first in ((4, 0), (6, abi.NAT_SOURCES)):
        count = min(int(tables.nat_sources["count"][first]), abi.NAT_SOURCES)
        for number in range(first, first + count):
            address = _address(tables.nat_sources["addr"][number].tobytes(), family)
            found[number] = address or IPv4Address(0)
    return found


def nat_ports(tables: SharedTables, used: npt.NDArray[np.int64]) -> tuple[NatPorts, ...]:
    """Return how many ports of fullnat flows use towards each server.

    ``used``: the ports in use, by block.
    """
    sources = _nat_sources(tables)
    found = [
        NatPorts(sources[number], server, int(used[block - 1]), tables.size.nat_ports)
        for family, first in ((4, 0), (6, abi.NAT_SOURCES))
        for key, value in (tables.items(f"origins{family}") if sources else ())
        for server in (keys.slot_of(key),)
        for number, block in enumerate(_origin_entry(value, family).blocks, first)
        if number in sources and 0 < block <= len(used)
    ]
    return tuple(sorted(found, key=lambda one: (str(one.source), str(one.server))))


def _address(raw: bytes, family: int | None = None) -> Address | None:
    """Return an address of either family.

    Without ``family``, it is IPv6 if a byte beyond the first four is set, and None if no byte is.
    """
    if family is None:
        if not any(raw):
            return None
        family = 6 if any(raw[4:]) else 4
    return IPv4Address(raw[:4]) if family == 4 else IPv6Address(raw)


def words(address: Address | None) -> Table:
    """Return an address as the tables hold it, four words; zeros for None."""
    raw = (address.packed if address else b"").ljust(16, b"\0")
    return np.frombuffer(raw, dtype=">u4")


def _mac(text: str) -> Table:
    return np.frombuffer(bytes.fromhex(text.replace(":", "")), dtype=np.uint8)


def backend_row(entry: BackendEntry) -> Table:
    """Return the table row of a backend."""
    row = np.zeros(1, dtype=abi.BACKEND)
    row["flags"] = (
        entry.alive * abi.BACKEND_F_ALIVE
        | entry.usable * abi.BACKEND_F_USABLE
        | entry.counts_load * abi.BACKEND_F_LOAD
    )
    row["ifindex"] = entry.ifindex
    row["mac"] = _mac(entry.mac)
    row["source_mac"] = _mac(entry.source_mac)
    row["forward"] = FORWARD_IDS[entry.forward]
    row["family"] = entry.address.version
    row["mtu"] = entry.mtu
    row["timeout_ticks"] = entry.timeout_ticks
    row["service"] = entry.service_id
    row["port"] = entry.port
    row["tags"] = len(entry.vlans)
    row["vlan"] = [number for tag in entry.vlans for number in tag] + [0] * (
        4 - 2 * len(entry.vlans)
    )
    row["addr"] = words(entry.address)
    row["source_addr"] = words(entry.source)
    return row


def load_row(entry: BackendEntry) -> Table:
    """Return the fields that the agent writes of a backend's load; the rest is 0."""
    row = np.zeros(1, dtype=abi.BACKEND_LOAD)
    row["kappa"] = loads.KAPPA
    row["per_byte"] = loads.per_byte(entry.bytes_per_connection)
    row["inverse_weight"] = loads.inverse_weight(entry.weight)
    row["weight"] = entry.weight
    return row


def service_row(entry: ServiceEntry, ring_line: int) -> Table:
    """Return the value of a service map, for a ring that starts at ``ring_line``."""
    row = np.zeros(1, dtype=abi.SERVICE)
    row["pick_seed"] = entry.pick_seed
    row["id"] = entry.id
    row["flow_salt"] = entry.salt
    row["ring_line"] = ring_line
    row["ring_slots"] = len(entry.ring) // 2
    row["scheduler"] = SCHEDULER_IDS[entry.scheduler]
    row["forward"] = FORWARD_IDS[entry.forward]
    row["flags"] = (
        entry.waiting * abi.SERVICE_F_WAITING
        | entry.reset * abi.SERVICE_F_RESET
        | (entry.vip_bits is not None) * abi.SERVICE_F_PREFIX
        | entry.zones * abi.SERVICE_F_ZONES
        | entry.challenge * abi.SERVICE_F_CHALLENGE
    )
    row["draws"] = entry.draws
    row["source_bits"] = entry.source_bits
    row["quic_id_len"] = entry.quic_id_bytes
    row["bound"] = entry.bound
    row["port_last"] = entry.port_last
    row["vip_bits"] = entry.vip_bits or 0
    row["cookies"] = entry.cookies
    row["holds"] = entry.holds
    row["limits"] = (
        entry.limits_new * abi.SERVICE_LIMITS_NEW
        | entry.limits_packets * abi.SERVICE_LIMITS_PACKETS
        | entry.limits_held * abi.SERVICE_LIMITS_HELD
    )
    return row


def zone_ring_row(ring: bytes, ring_line: int) -> Table:
    """Return the value of the map of zones' rings, for a ring that starts at ``ring_line``."""
    row = np.zeros(1, dtype=abi.ZONE_RING)
    row["ring_line"], row["ring_slots"] = ring_line, len(ring) // 2
    return row


def mark_row(entry: MarkEntry) -> Table:
    """Return the value of a service map for a mark."""
    row = np.zeros(1, dtype=abi.SERVICE)
    row["flags"] = (
        entry.ranges * abi.SERVICE_F_RANGES
        | entry.any_port * abi.SERVICE_F_ANY_PORT
        | (entry.nat_source is not None) * abi.SERVICE_F_NAT_SOURCE
    )
    row["ring_line"] = entry.nat_source or 0
    return row


def origin_row(entry: OriginEntry) -> Table:
    """Return the value of an origins map."""
    row = np.zeros(1, dtype=abi.ORIGIN)
    row["vip"] = words(entry.vip)
    row["flow_salt"] = entry.salt
    row["service"] = entry.service_id
    row["backend"] = entry.backend_id
    row["port"] = entry.port
    if entry.blocks:
        row["block"] = entry.blocks
    return row
