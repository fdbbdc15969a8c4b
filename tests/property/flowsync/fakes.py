"""Nodes of a pair without a kernel: tables in plain memory, services and ids of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import numpy as np

from agent.dataplane import abi, flowhash
from agent.dataplane.constants import Clock, HashKeys, Sizes, sizes
from agent.flowsync.export import SYNCED, Exporter
from agent.flowsync.identity import Identities, id_map
from agent.flowsync.install import Arrival, Installer, Outcome
from agent.flowsync.ledger import Ledger
from agent.flowsync.natplaces import NatPlaces
from agent.flowsync.records import RECORD, Records, joined
from agent.flowsync.view import View
from agent.model import Nat, Tables
from agent.state.tables import ServiceSlot

JIFFIES = 1 << 24
CLOCK = Clock(1000, 12)
TICK_MS = 4096
LIMITS = (0, 8, 220, 8, 0, 15, 220, 8)  # ticks by state
SERVICES = tuple(ServiceSlot(ip_address(vip), port, protocol) for vip, port, protocol in (
    ("203.0.113.10", 80, 6), ("203.0.113.10", 0, 17), ("2001:db8::10", 443, 6),
    ("203.0.113.32", 80, 6), ("2001:db8::20", 80, 6), ("203.0.113.10", 81, 6),
))  # fmt: skip
PREFIXES = (3, 4)  # of these the addresses below prefixes
FULLNAT = (2, 5)
BACKENDS = 3  # of each service
SOURCES = tuple(ip_address(a) for a in ("10.0.0.5", "10.0.0.6", "fd00::5", "fd00::6"))


@dataclass
class FakeTables:
    """What of the shared tables flow sync touches."""

    size: Sizes
    ident: str
    flows: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        slots = self.size.flow_buckets * abi.FLOW_WAYS
        self.flows = np.zeros(slots, dtype=np.uint64)
        self.flows_cold = np.zeros(slots, dtype=abi.FLOW_COLD)
        self.flows_warm = np.zeros(slots, dtype=abi.FLOW_WARM)
        self.nat_slots = np.zeros(self.size.nat_slots, dtype=abi.NAT_SLOT)
        self.backends = np.zeros(self.size.backends, dtype=abi.BACKEND)

    def nat_sources_of(self, nat: np.ndarray) -> np.ndarray:
        return self.nat_slots["source"][nat].astype(np.int64)


class FakeNode:
    """One end. ``order``: the ids of services and backends, permuted: a list of distinct numbers
    from 1 on, as long as there are backends.
    """

    def __init__(self, seed: int, order: Sequence[int], flows: int = 4096) -> None:
        draw = np.random.default_rng(seed)
        key, mul0, mul1 = (int(n) for n in draw.integers(1, 2**63, 3))
        size = sizes(Tables(flows=flows, services=16, backends=64), 2, Nat(20_000, 20_063))
        self.tables = FakeTables(size, f"tables of {seed}")
        services = dict(zip(sorted(order[: len(SERVICES)], key=order.index), SERVICES, strict=True))
        places = [
            (ident, ip_address(("10.1.0.0", "fd00:1::")[slot.vip.version == 6]) + n + 1, 0)
            for ident, slot in services.items()
            for n in range(BACKENDS)
        ]
        backends = dict(zip(order, places, strict=True))
        numbers = draw.permutation(2)
        sources = {
            int(8 * half + numbers[n]): SOURCES[2 * half + n] for half in (0, 1) for n in (0, 1)
        }
        self.ids = Identities(self.tables.ident, flows, services, backends, sources)
        salts = {ident: int(draw.integers(1, 2**32)) for ident in services}
        mine = {SERVICES.index(slot): ident for ident, slot in services.items()}
        prefixes = [mine[n] for n in PREFIXES]
        keys = flowhash.ServiceKeys.of(HashKeys(key, mul0 | 1, mul1 | 1), salts, prefixes)
        blocks = iter(draw.permutation(32) + 1)
        every = np.zeros((64, 16), dtype=np.int64)
        for ident, (owner, address, _) in backends.items():
            if services[owner] in [SERVICES[n] for n in FULLNAT]:
                every[ident, 8 * (address.version == 6) :][:2] = next(blocks), next(blocks)
        self.view = View(self.tables, keys, CLOCK, self.ids, NatPlaces(every, {}))
        for ident, (owner, _, _) in backends.items():
            row = self.tables.backends[ident : ident + 1]
            row["flags"] = abi.BACKEND_F_ALIVE | abi.BACKEND_F_USABLE
            row["service"], row["timeout_ticks"] = owner, LIMITS
            is_fullnat = services[owner] in [SERVICES[n] for n in FULLNAT]
            row["forward"] = abi.ForwardId.FULLNAT if is_fullnat else abi.ForwardId.DSR
        self.ledger = Ledger(flows)
        self.exporter = Exporter(self.ledger)
        self.installer: Installer

    def meet(self, other: FakeNode) -> None:
        self.installer = Installer(self.ledger, id_map(other.ids, self.ids))

    def take(self, told: Records) -> Outcome:
        arrival = Arrival(1, np.zeros(6, dtype=np.uint8))
        return self.installer.install(self.view, told, JIFFIES, arrival)

    def everything(self) -> Records:
        return joined(list(self.exporter.everything(self.view, JIFFIES, SYNCED)))

    def changed(self) -> Records:
        return self.exporter.changed(self.view, JIFFIES)

    def service_id(self, number: int) -> int:
        return next(i for i, slot in self.ids.services.items() if slot == SERVICES[number])

    def backend_ids(self, number: int) -> list[int]:
        """Of a service, in the order of their addresses."""
        own = self.service_id(number)
        mine = [
            (address, i) for i, (owner, address, _) in self.ids.backends.items() if owner == own
        ]
        return [ident for _, ident in sorted(mine)]


@dataclass(frozen=True)
class FakeFlow:
    """A flow as tests draw it."""

    service: int
    backend: int
    client: int  # the address's last 32 bits
    client_port: int
    state: int
    idle_ticks: int
    age_s: int
    nat: int  # which of the ports, where it is fullnat

    def record(self, node: FakeNode, slot: int) -> Records:
        """As the node with these ids would tell it."""
        of, told = SERVICES[self.service], np.zeros(1, dtype=RECORD)
        is_short = of.vip.version == 4
        client = (ip_address("0.0.0.0") if is_short else ip_address("2001:db8:c::")) + self.client
        vip = of.vip + (self.client % 4 if self.service in PREFIXES else 0)
        told["slot"], told["state"] = slot, self.state
        told["family"], told["l4_proto"] = of.vip.version, of.protocol
        told["client"] = np.frombuffer(client.packed.ljust(16, b"\0"), dtype=np.uint8)
        told["vip"] = np.frombuffer(vip.packed.ljust(16, b"\0"), dtype=np.uint8)
        told["client_port"], told["vip_port"] = self.client_port, of.port or 4711
        told["service"] = node.service_id(self.service)
        told["backend"] = node.backend_ids(self.service)[self.backend]
        told["idle_ms"], told["age_ms"] = self.idle_ticks * TICK_MS, self.age_s * 1000
        if self.service in FULLNAT:
            first = 0 if is_short else 8
            told["nat_source"], told["nat_port"] = first + self.nat % 2, 20_000 + self.nat // 2
        return told

    @property
    def tuple5(self) -> tuple[int, int, int]:
        return self.service, self.client, self.client_port
