"""Turns table rows into values and back: what reconcile reads and writes, one entry each."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import numpy as np

from agent.dataplane import abi
from agent.dataplane.tables import SharedTables, Table
from agent.model import Address, Forward, Scheduler
from agent.state.tables import BackendEntry, ServiceEntry, ServiceSlot, TableContents

FORWARD_IDS = {Forward.DSR: abi.ForwardId.DSR, Forward.IPIP: abi.ForwardId.IPIP}
SCHEDULER_IDS = {Scheduler.MAGLEV: abi.SchedulerId.MAGLEV}
_FORWARDS = {int(ident): forward for forward, ident in FORWARD_IDS.items()}
_SCHEDULERS = {int(ident): scheduler for scheduler, ident in SCHEDULER_IDS.items()}


def read(tables: SharedTables) -> TableContents:
    """What the tables hold. Rows that no agent of this version wrote are left out."""
    marks = set()
    services: dict[ServiceSlot, ServiceEntry] = {}
    for slot, row in tables.services():
        if slot.is_mark:
            marks.add(slot)
        elif int(row["forward"]) in _FORWARDS and int(row["scheduler"]) in _SCHEDULERS:
            services[slot] = _service_entry(tables, row)
    used = np.flatnonzero(tables.backends["service"])
    backends = {int(i): _backend_entry(tables.backends[i]) for i in used}
    return TableContents(backends, services, frozenset(marks))


def _service_entry(tables: SharedTables, row: Table) -> ServiceEntry:
    first, slots = int(row["ring_line"]) * abi.RING_LINE_SLOTS, int(row["ring_slots"])
    return ServiceEntry(
        id=int(row["id"]),
        salt=int(row["flow_salt"]),
        forward=_FORWARDS[int(row["forward"])],
        scheduler=_SCHEDULERS[int(row["scheduler"])],
        pick_seed=int(row["pick_seed"]),
        ring=tables.rings[first : first + slots].tobytes(),
    )


def _backend_entry(row: Table) -> BackendEntry:
    flags = int(row["flags"])
    source = _address(row["source_addr"])
    return BackendEntry(
        service_id=int(row["service"]),
        address=_address(row["addr"], int(row["family"])) or IPv4Address(0),
        usable=bool(flags & abi.BACKEND_F_USABLE),
        alive=bool(flags & abi.BACKEND_F_ALIVE),
        forward=_FORWARDS.get(int(row["forward"]), Forward.DSR),
        ifindex=int(row["ifindex"]),
        mac=row["mac"].tobytes().hex(":"),
        source_mac=row["source_mac"].tobytes().hex(":"),
        mtu=int(row["mtu"]),
        timeout_ticks=tuple(int(ticks) for ticks in row["timeout_ticks"]),
        source=source,
    )


def _address(words: Table, family: int | None = None) -> Address | None:
    """An address of either family; without ``family`` told by its zeros, None if all are."""
    raw = words.tobytes()
    if family is None:
        if not any(raw):
            return None
        family = 6 if any(raw[4:]) else 4
    return IPv4Address(raw[:4]) if family == 4 else IPv6Address(raw)


def _words(address: Address | None) -> bytes:
    return (address.packed if address else b"").ljust(16, b"\0")


def backend_row(entry: BackendEntry) -> Table:
    """The table row of a backend."""
    row = np.zeros(1, dtype=abi.BACKEND)
    row["flags"] = entry.alive * abi.BACKEND_F_ALIVE | entry.usable * abi.BACKEND_F_USABLE
    row["ifindex"] = entry.ifindex
    row["mac"] = np.frombuffer(bytes.fromhex(entry.mac.replace(":", "")), dtype=np.uint8)
    row["source_mac"] = np.frombuffer(
        bytes.fromhex(entry.source_mac.replace(":", "")), dtype=np.uint8
    )
    row["forward"] = FORWARD_IDS[entry.forward]
    row["family"] = entry.address.version
    row["mtu"] = entry.mtu
    row["timeout_ticks"] = entry.timeout_ticks
    row["service"] = entry.service_id
    row["addr"] = np.frombuffer(_words(entry.address), dtype=">u4")
    row["source_addr"] = np.frombuffer(_words(entry.source), dtype=">u4")
    return row


def service_row(entry: ServiceEntry, ring_line: int) -> Table:
    """The value of a service map, for a ring that starts at ``ring_line``."""
    row = np.zeros(1, dtype=abi.SERVICE)
    row["pick_seed"] = entry.pick_seed
    row["id"] = entry.id
    row["flow_salt"] = entry.salt
    row["ring_line"] = ring_line
    row["ring_slots"] = len(entry.ring) // 2
    row["scheduler"] = SCHEDULER_IDS[entry.scheduler]
    row["forward"] = FORWARD_IDS[entry.forward]
    return row
