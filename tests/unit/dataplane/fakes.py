"""Shared tables as plain arrays and a dictionary: no kernel, no root."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address

import numpy as np

from agent.dataplane import abi, flowhash, keys
from agent.dataplane.constants import Clock, HashKeys, sizes
from agent.model import Address, Protocol, Tables
from agent.state.queries import FiveTuple
from agent.state.tables import ServiceSlot

KEYS = HashKeys(0x1234_5678_9ABC_DEF0, 0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F)
CLOCK = Clock(hz=250, shift=10)
SMALL = Tables(flows=1024, services=8, backends=32, ring_slots=101)


class FakeTables:
    """Has what ``SharedTables`` has."""

    def __init__(self, tables: Tables = SMALL, cpus: int = 2) -> None:
        size = self.size = sizes(tables, cpus)
        self.flows = np.zeros(size.flow_buckets * abi.FLOW_WAYS, dtype=np.uint64)
        self.flows_cold = np.zeros(size.flow_buckets * abi.FLOW_WAYS, dtype=abi.FLOW_COLD)
        self.flows_warm = np.zeros(size.flow_buckets * abi.FLOW_WAYS, dtype=abi.FLOW_WARM)
        self.rings = np.zeros(size.ring_lines * abi.RING_LINE_SLOTS, dtype=np.uint16)
        self.backends = np.zeros(size.backends, dtype=abi.BACKEND)
        self.backend_load = np.zeros(size.backends, dtype=abi.BACKEND_LOAD)
        self.service_load = np.zeros(size.services, dtype=abi.SERVICE_LOAD)
        self.service_heads = np.zeros(size.services, dtype=abi.SERVICE_HEADS)
        self.backend_latency = np.zeros(size.backends, dtype=abi.BACKEND_LATENCY)
        self.sample_sources = np.zeros((size.backends, abi.SAMPLES), dtype=abi.SAMPLE_SOURCE)
        self.backend_samples = np.zeros((size.backends, abi.SAMPLES), dtype=abi.BACKEND_SAMPLE)
        self.nat_sources = np.zeros(2 * abi.NAT_SOURCES, dtype=abi.NAT_SOURCE)
        self.trace = np.zeros(1, dtype=abi.TRACE_CONTROL)
        self.peers = np.zeros(abi.PEER_ROWS, dtype=abi.BACKEND)
        self.sync_count = np.zeros(size.rows, dtype=abi.SYNC_COUNTERS)
        self.backend_count = np.zeros((size.rows, size.backends), dtype=abi.BACKEND_COUNTERS)
        self.service_count = np.zeros((size.rows, size.services), dtype=abi.SERVICE_COUNTERS)
        self.guard_roots = np.zeros(1, dtype=abi.GUARD_ROOTS)[0]
        self.guard_nodes = np.zeros(4, dtype=abi.GUARD_NODE)["entry"]
        self.guard_policies = np.zeros(size.services, dtype=abi.GUARD_POLICY)
        self.guard_count = np.zeros(size.rows, dtype=abi.GUARD_COUNTERS)
        self.addresses = np.zeros(1, dtype=abi.ADDRESS_FILTER)[0]
        self.nat_slots = np.zeros(size.nat_slots, dtype=abi.NAT_SLOT)
        self.by_key: dict[str, dict[bytes, bytes]] = defaultdict(dict)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.by_key[table][key] = value

    def delete(self, table: str, key: bytes) -> None:
        self.by_key[table].pop(key, None)

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.by_key[table].get(key)

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(list(self.by_key[table].items()))

    def put_service(self, slot: ServiceSlot, row: np.ndarray) -> None:
        self.put(keys.services_table(slot), keys.packed_slot(slot), row.tobytes())


def word(backend: int, state: abi.FlowState | int, stamp: int, tag: int = 1) -> int:
    """A slot of the flow table."""
    return (
        tag << abi.FLOW_TAG_SHIFT
        | backend << abi.FLOW_BACKEND_SHIFT
        | int(state) << abi.FLOW_STATE_SHIFT
        | stamp & abi.FLOW_STAMP_MASK
    )


def five(
    client: str, client_port: int = 4000, vip: str = "", port: int = 80, udp: bool = False
) -> FiveTuple:
    address = ip_address(client)
    default = "203.0.113.10" if address.version == 4 else "2001:db8::10"
    protocol = Protocol.UDP if udp else Protocol.TCP
    return FiveTuple(protocol, address, client_port, ip_address(vip or default), port)


def record(
    tables: FakeTables,
    flow: FiveTuple,
    *,
    service: int,
    salt: int,
    backend: int,
    state: abi.FlowState | int,
    jiffies: int,
    start: int = 0,
    below_prefix: Address | None = None,
) -> int:
    """Put a flow where the kernel would, its cold record included; the slot's index."""
    value = flowhash.flow_hash(KEYS, salt, flow.client, flow.client_port, flow.port, below_prefix)
    first = ((value >> 32) & (tables.size.flow_buckets - 1)) * abi.FLOW_WAYS
    index = next(i for i in range(first, first + abi.FLOW_WAYS) if not tables.flows[i])
    tables.flows[index] = word(backend, state, jiffies >> CLOCK.shift, value & 0xFFFFFFFF)
    row = tables.flows_cold[index : index + 1]
    for name, address in (("saddr", flow.client), ("daddr", flow.vip)):
        row[name] = np.frombuffer(address.packed.ljust(16, b"\0"), dtype=">u4")
    row["sport"], row["dport"] = flow.client_port, flow.port
    row["service"], row["l4_proto"] = service, flow.protocol.number
    row["family"], row["start"] = flow.client.version, start
    return index
