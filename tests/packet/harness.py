"""A loaded data plane that is attached to nothing, and what tests do with it.

Services come in by the agent's own path: eligibility, desired state, diff, apply.
"""

from __future__ import annotations

import asyncio
import enum
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np

from agent.dataplane import abi, contents, counters, flowhash, libbpf, pins, survey
from agent.dataplane.explain import DataplaneView
from agent.dataplane.flows import Names
from agent.dataplane.program import Dataplane, require_root
from agent.model import (
    Address,
    Backend,
    BackendRef,
    Config,
    Forward,
    Health,
    HealthStatus,
    NextHop,
    Protocol,
    Service,
    ServiceKey,
    Tables,
)
from agent.reconcile.apply import Applier
from agent.reconcile.diff import diff
from agent.reconcile.reconciler import Pass, Reconciler
from agent.state.desired import Surroundings
from agent.state.identities import Identities, slot_of
from agent.state.situation import verdicts
from agent.state.snapshot import BackendCounts
from agent.state.tables import TableContents
from tests.packet.frames import BALANCER4, BALANCER6, BALANCER_MAC, VIP4, VIP6

PREFIX = "st-packet"
CANDIDATES = 1 << 18  # drawn at once to find flows of a bucket
SMALL = Tables(flows=65_536, services=16, backends=256, ring_slots=4099)


class Verdict(enum.IntEnum):
    """``enum xdp_action``."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot of the flow table in which a flow was found."""

    index: int
    word: int
    backend_id: int
    state: abi.FlowState
    idle_ticks: int


def instance_name(what: str = "all") -> str:
    """One per process, so that two test runs do not meet."""
    return f"{PREFIX}-{what}-{os.getpid()}"


def remove_leftovers() -> None:
    """Unpin what test runs left behind that were killed."""
    root = pins.BPFFS / "steelyard"
    for folder in root.glob(f"{PREFIX}-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):  # noqa: PTH110 (a string it is)
            pins.remove(pins.pins_of(folder.name))


def all_features() -> tuple[Service, ...]:
    """Services that between them need every feature."""
    return (
        Service("any", ServiceKey(IPv6Address(VIP6), 0, Protocol.TCP), forward=Forward.IPIP),
        Service("v4", ServiceKey(IPv4Address(VIP4), 80, Protocol.TCP)),
    )


def load(config: Config, services: tuple[Service, ...]) -> Dataplane:
    """Tables and program, attached to nothing. Fails where there is no root or no BPF."""
    require_root()
    dataplane = Dataplane(config)
    dataplane.load(services)
    return dataplane


def backend(name: str, address: str = "", weight: int = 100, **fields: object) -> Backend:
    """A backend; without an address it gets one that follows from its name."""
    number = sum(ord(c) * 31**i for i, c in enumerate(name)) % 65_000 + 1
    return Backend(
        name, ip_address(address or f"10.1.{number >> 8}.{number & 255}"), weight, **fields
    )


def service(
    *backends: Backend,
    name: str = "web",
    vip: str = VIP4,
    port: int = 80,
    protocol: Protocol = Protocol.TCP,
    **fields: object,
) -> Service:
    """A service with these backends."""
    key = ServiceKey(ip_address(vip), port, protocol)
    return Service(name, key, backends=backends, **fields)


def mac_of(address: Address) -> str:
    """Of a backend's next hop."""
    return ":".join(("02", "aa", *(f"{b:02x}" for b in address.packed[-4:])))


class Rig:
    """The data plane in the hands of one test."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.dataplane = dataplane
        self.tables = dataplane.tables
        self.clock = dataplane.clock
        self.config = Config(dataplane.pins.folder.parent.name, dataplane.interface, tables=SMALL)
        self.now_s = 1000.0
        self.ids = Identities({}, {})
        self.reset()

    # -- what is configured

    def reset(self) -> None:
        """Empty tables, no counts."""
        applier = Applier(self.tables)
        for step in diff(contents.read(self.tables), TableContents()):
            applier.apply(step)
        self.tables.flows[:] = 0
        self.tables.backend_count[:] = np.zeros((), dtype=abi.BACKEND_COUNTERS)
        self.tables.service_count[:] = np.zeros((), dtype=abi.SERVICE_COUNTERS)
        self.reconciler = Reconciler(self.tables, lambda: self.now_s)

    def serve(
        self,
        *services: Service,
        down: Collection[str] = (),
        mtu: int = 1500,
        ifindexes: Mapping[str, int] | None = None,
        **config: object,
    ) -> Pass:
        """Make the tables hold these services; backends named in ``down`` fail their checks.

        ``ifindexes``: the interface of a backend's next hop where it is not the balancer's own.
        """
        self.config = replace(self.config, services=services, **config)
        health, hops = {}, {}
        for each in services:
            for member in each.backends:
                state = Health.DOWN if member.name in down else Health.UP
                health[BackendRef(each.name, member.name)] = HealthStatus(state, "test", 0.0)
                hops[member.address] = NextHop(
                    member.address,
                    ifindex=(ifindexes or {}).get(member.name, self.dataplane.ifindex),
                    mac=mac_of(member.address),
                    source_mac=BALANCER_MAC,
                    mtu=mtu,
                    on_link=True,
                    source=ip_address(BALANCER4 if member.address.version == 4 else BALANCER6),
                )
        found = verdicts(self.config, health, hops)
        around = Surroundings(found, hops, self.dataplane.ifindex, self.clock.ticks)
        done = asyncio.run(self.reconciler.run(self.config, around))
        self.ids = done.ids
        return done

    def service_id(self, name: str = "web") -> int:
        return next(
            self.ids.services[slot_of(s.key)][0] for s in self.config.services if s.name == name
        )

    def salt(self, name: str = "web") -> int:
        return next(
            self.ids.services[slot_of(s.key)][1] for s in self.config.services if s.name == name
        )

    def backend_id(self, name: str, service: str = "web") -> int:
        for each in self.config.services:
            for member in each.backends:
                if (each.name, member.name) == (service, name):
                    return self.ids.backends[self.service_id(service), member.address]
        raise KeyError(name)

    def address_of(self, name: str) -> Address:
        return next(b.address for s in self.config.services for b in s.backends if b.name == name)

    def make_unusable(self, name: str, service: str = "web") -> None:
        """What the first 8 bytes of a change do, before any ring is rebuilt."""
        self.tables.backends["flags"][self.backend_id(name, service)] = abi.BACKEND_F_ALIVE

    # -- packets

    def send(self, frame: bytes) -> libbpf.TestRun:
        """Run the program on a frame, as if it had come in."""
        return libbpf.test_run(self.dataplane.program.fd, frame)

    def verdict(self, frame: bytes) -> Verdict:
        return Verdict(self.send(frame).verdict)

    def backend_of(self, frame: bytes) -> str:
        """Send a frame that must be forwarded; the name of the backend whose MAC it gets."""
        done = self.send(frame)
        assert done.verdict == Verdict.TX, Verdict(done.verdict).name
        return self.name_of_mac(done.data[:6])

    def name_of_mac(self, mac: bytes) -> str:
        for each in self.config.services:
            for member in each.backends:
                if mac == bytes.fromhex(mac_of(member.address).replace(":", "")):
                    return member.name
        raise AssertionError(f"no backend has the MAC {mac.hex(':')}")

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

    def slot(
        self, client: str, client_port: int = 40_000, port: int = 80, service: str = "web"
    ) -> Slot | None:
        """Where the flow is recorded, by Python's mirror of the hash."""
        value = flowhash.flow_hash(
            self.dataplane.keys, self.salt(service), ip_address(client), client_port, port
        )
        bucket = (value >> 32) & (self.dataplane.size.flow_buckets - 1)
        for index in range(bucket * abi.FLOW_WAYS, (bucket + 1) * abi.FLOW_WAYS):
            word = self.tables.flows[index : index + 1]
            if word[0] and int(word[0]) >> 32 == value & 0xFFFFFFFF:
                return Slot(
                    index,
                    int(word[0]),
                    int(survey.backend_of(word)[0]),
                    abi.FlowState(int(survey.state_of(word)[0])),
                    int(survey.idle_ticks(word, self.now_ticks())[0]),
                )
        return None

    def state(self, client: str, client_port: int = 40_000, **where: object) -> abi.FlowState:
        found = self.slot(client, client_port, **where)  # type: ignore[arg-type]
        return found.state if found else abi.FlowState.FREE

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
        is_open = np.isin(survey.state_of(words), (1, 2, 5))
        return int((survey.backend_of(words[is_open]) == self.backend_id(name, service)).sum())

    def survey(self, later_ticks: int = 0) -> survey.Survey:
        return survey.survey(
            self.tables.flows, self.tables.backends, self.now_ticks() + later_ticks
        )

    # -- what the agent would say

    def names(self) -> Names:
        services, salts, backends = {}, {}, {}
        for each in self.config.services:
            ident, salt = self.ids.services[slot_of(each.key)]
            services[ident], salts[ident] = each.name, salt
            for member in each.backends:
                backends[self.ids.backends[ident, member.address]] = BackendRef(
                    each.name, member.name
                )
        return Names(services, backends, salts)

    def view(self) -> DataplaneView:
        dataplane = self.dataplane
        held = contents.read(self.tables)
        return DataplaneView(
            self.tables,
            held,
            self.names(),
            dataplane.keys,
            dataplane.clock,
            dataplane.now_jiffies(),
        )
