"""What a loaded data plane has recorded and counted, by the names that tests use."""

from __future__ import annotations

import time
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

import numpy as np

from agent.dataplane import abi, counters, flowhash, latency, survey
from agent.dataplane.constants import Clock
from agent.dataplane.program import Dataplane
from agent.dataplane.tables import SharedTables
from agent.model import Address, Config
from agent.state.identities import Identities
from agent.state.snapshot import BackendCounts

CANDIDATES = 1 << 18  # drawn at once to find flows of a bucket
_BASE = {
    int(abi.FlowState.ESTABLISHED_AWAITING): abi.FlowState.ESTABLISHED,
    int(abi.FlowState.CLOSING_AWAITING): abi.FlowState.CLOSING,
}


def rested(words: np.ndarray, ticks: int) -> np.ndarray:
    """Words of the flow table as if the last packets had come so many ticks earlier. A stamp counts
    from 0 again after an hour or two, which is nothing to the fields beside it.
    """
    mask = np.uint64(abi.FLOW_STAMP_MASK)
    return words & ~mask | (words - np.uint64(ticks)) & mask


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot of the flow table in which a flow was found; ``awaits``: a request waits in it."""

    index: int
    word: int
    backend_id: int
    state: abi.FlowState
    awaits: bool
    idle_ticks: int


class Records:
    """The reading half of a rig."""

    dataplane: Dataplane
    tables: SharedTables
    clock: Clock
    config: Config
    ids: Identities
    has_paused: bool  # the host, between two packets (tests.packet.pauses)
    _tick: int | None  # the one that a test has to end in

    # -- ids

    def service_id(self, name: str = "web") -> int:
        return next(self.ids.service_id(s) for s in self.config.services if s.name == name)

    def salt(self, name: str = "web") -> int:
        return next(self.ids.salt(s) for s in self.config.services if s.name == name)

    def backend_id(self, name: str, service: str = "web") -> int:
        for each in self.config.services:
            for member in each.backends:
                if (each.name, member.name) == (service, name):
                    return self.ids.backend_id(each, member)
        raise KeyError(name)

    def address_of(self, name: str) -> Address:
        return next(b.address for s in self.config.services for b in s.backends if b.name == name)

    # -- counters

    def counts(self, name: str, service: str = "web") -> BackendCounts:
        ident = self.backend_id(name, service)
        return counters.read(self.tables, [ident], []).of_backend(ident)

    def service_counts(self, name: str = "web") -> counters.ServiceCounts:
        ident = self.service_id(name)
        return counters.read(self.tables, [], [ident]).services[ident]

    def reasons(self) -> dict[str, int]:
        """All packets that were not forwarded, whatever for, that are more than none."""
        by_reason = self.tables.service_count["reason"].sum(axis=(0, 1), dtype=np.uint64)
        return {reason.label: int(by_reason[reason]) for reason in abi.Reason if by_reason[reason]}

    # -- flows

    def now_ticks(self) -> int:
        return self.dataplane.now_jiffies() >> self.clock.shift

    def avoid_tick(self, margin_s: float = 0.5) -> None:
        """Wait until no tick will fall into the next ``margin_s``."""
        left = 2**self.clock.shift - self.dataplane.now_jiffies() % 2**self.clock.shift
        if left / self.clock.hz < margin_s:
            time.sleep(left / self.clock.hz + 0.01)
        self._tick = self.now_ticks()

    def begin(self) -> None:
        """From now on it is noted whether the host disturbs a test."""
        self.has_paused, self._tick = False, None

    @property
    def is_disturbed(self) -> bool:
        """The host has paused, or a tick has fallen where none was to."""
        return self.has_paused or self._tick not in (None, self.now_ticks())

    def slot(
        self,
        client: str,
        client_port: int = 40_000,
        port: int = 80,
        service: str = "web",
        below_prefix: str | None = None,
    ) -> Slot | None:
        """Where the flow is recorded, by Python's mirror of the hash.

        ``below_prefix``: the address that the client talks to, where the VIP is a prefix.
        """
        value = self._hash(client, client_port, port, service, below_prefix)
        bucket = self._bucket(value)
        for index in range(bucket * abi.FLOW_WAYS, (bucket + 1) * abi.FLOW_WAYS):
            word = self.tables.flows[index : index + 1]
            if word[0] and int(word[0]) >> 32 == value & 0xFFFFFFFF:
                state = int(survey.state_of(word)[0])
                return Slot(
                    index,
                    int(word[0]),
                    int(survey.backend_of(word)[0]),
                    _BASE.get(state, abi.FlowState(state)),
                    state in _BASE,
                    int(survey.idle_ticks(word, self.now_ticks())[0]),
                )
        return None

    def lone_ports(self, client: str, count: int, service: str = "web") -> list[int]:
        """Ports of a client whose flows are each in a bucket of its own: none evicts another."""
        found: dict[int, int] = {}  # by bucket
        port = 0
        while len(found) < count:
            port += 1
            found.setdefault(self._bucket(self._hash(client, port, 80, service)), port)
        return list(found.values())

    def _hash(
        self, client: str, client_port: int, port: int, service: str, below: str | None = None
    ) -> int:
        return flowhash.flow_hash(
            self.dataplane.keys,
            self.salt(service),
            ip_address(client),
            client_port,
            port,
            ip_address(below) if below else None,
        )

    def _bucket(self, value: int) -> int:
        return (value >> 32) & (self.dataplane.size.flow_buckets - 1)

    def state(self, client: str, client_port: int = 40_000, **where: object) -> abi.FlowState:
        """The state of a flow, whether or not a request waits in it."""
        found = self.slot(client, client_port, **where)  # type: ignore[arg-type]
        return found.state if found else abi.FlowState.FREE

    def warm(self, client: str, client_port: int = 40_000, **where: object) -> np.void:
        """The warm row of a recorded flow, as of now."""
        found = self.slot(client, client_port, **where)  # type: ignore[arg-type]
        assert found is not None, "the flow is not recorded"
        return self.tables.flows_warm[found.index].copy()

    def load_of(self, name: str, service: str = "web") -> np.void:
        """The load row of a backend, as of now."""
        return self.tables.backend_load[self.backend_id(name, service)].copy()

    def latency(self, name: str, service: str = "web") -> np.void:
        """The latency row of a backend, as of now."""
        return self.tables.backend_latency[self.backend_id(name, service)].copy()

    def nat_slot(self, source: int, port: int) -> np.void:
        """The NAT slot that a flow has of a source port, the source by its number."""
        size, slots = self.dataplane.size, self.tables.nat_slots
        ports = np.arange(len(slots)) % size.nat_ports + size.nat_first_port
        (index,) = np.flatnonzero((slots["owner"] != 0) & (slots["source"] == source)
                                  & (ports == port))  # fmt: skip
        return slots[index].copy()

    def make_idle(self, index: int, ticks: int) -> None:
        """As if the last packet of the flow had come so many ticks ago."""
        word = int(self.tables.flows[index]) & ~abi.FLOW_STAMP_MASK
        self.tables.flows[index] = word | (self.now_ticks() - ticks) & abi.FLOW_STAMP_MASK

    def clients_in_buckets(
        self, buckets: range, count: int, service: str = "web", port: int = 80
    ) -> list[tuple[IPv4Address, int]]:
        """For each of the buckets so many clients whose flows fall into it."""
        keys, size = self.dataplane.keys, self.dataplane.size.flow_buckets
        draw = np.random.default_rng(7)
        found: dict[int, list[tuple[IPv4Address, int]]] = {bucket: [] for bucket in buckets}
        while any(len(clients) < count for clients in found.values()):
            address = draw.integers(0x0B000000, 0x0C000000, CANDIDATES, dtype=np.uint32)
            sport = draw.integers(1024, 65_535, CANDIDATES, dtype=np.uint16)
            saddr = np.zeros((CANDIDATES, 4), dtype=np.uint32)
            saddr[:, 0] = address.byteswap()
            dport = np.full(CANDIDATES, port, dtype=np.uint16).byteswap()
            wire = flowhash.Wire(saddr, sport.byteswap(), dport, np.zeros(CANDIDATES, dtype=bool))
            key = np.full(CANDIDATES, flowhash.flow_key(keys, self.salt(service)), dtype=np.uint64)
            hashes = flowhash.tuple_hashes(wire, key, keys.mul0, keys.mul1)
            bucket = ((hashes >> np.uint64(32)) & np.uint64(size - 1)).astype(np.int64)
            for i in np.flatnonzero((bucket >= buckets.start) & (bucket < buckets.stop)):
                clients = found[int(bucket[i])]
                if len(clients) < count:
                    clients.append((IPv4Address(int(address[i])), int(sport[i])))
        return [client for clients in found.values() for client in clients]

    def clients_in_bucket(
        self, bucket: int, count: int, service: str = "web", port: int = 80
    ) -> list[tuple[IPv4Address, int]]:
        """Clients whose flows share a bucket."""
        return self.clients_in_buckets(range(bucket, bucket + 1), count, service, port)

    def open_slots(self, name: str, service: str = "web") -> int:
        """Slots of a backend that are embryonic, acked or established."""
        words = self.tables.flows[np.flatnonzero(self.tables.flows)]
        is_open = np.isin(survey.state_of(words), survey.OPEN)
        return int((survey.backend_of(words[is_open]) == self.backend_id(name, service)).sum())

    def survey(self, later_ticks: int = 0) -> survey.Survey:
        patience_ns = latency.patience_ns(self.tables.backend_latency)
        now = self.now_ticks() + later_ticks
        return survey.survey(self.tables, now, patience_ns=patience_ns)
