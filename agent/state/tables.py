"""Defines the contents of the shared tables as values that reconciliation compares and applies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from agent.model import Address, Forward, Network, Scheduler

# Port blocks of fullnat: block + 1, indexed by the number of the source in its family; 0: none.
type Blocks = tuple[int, ...]

NAT_SOURCES = 8  # source addresses of fullnat per address family; as in bpf/include/abi.h


class ServiceSlot(NamedTuple):
    """A key of the service maps; port 0 is any port, protocol 0 the mark of a VIP.

    It is also a key of the origins: a backend's address, its port (0: any) and the protocol.
    """

    vip: Address
    port: int
    protocol: int

    @property
    def is_mark(self) -> bool:
        return self.protocol == 0


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """One element of the backend table, and the numbers for its load that the agent writes."""

    service_id: int
    address: Address
    usable: bool
    alive: bool
    forward: Forward
    ifindex: int  # 0: send on the interface on which the packet came in
    mac: str
    source_mac: str
    mtu: int
    timeout_ticks: tuple[int, ...]  # by flow state
    source: Address | None  # of the outer header; fullnat: the one that the kernel would use
    port: int = 0  # nat, fullnat: the backend's own port; 0: the packet's
    vlans: tuple[tuple[int, int], ...] = ()  # protocol and id, outer first
    counts_load: bool = False  # a scheduler reads its open connections
    weight: int = 0  # effective
    bytes_per_connection: int = 0  # waiting bytes that weigh as one connection; 0: none do

    @property
    def identity(self) -> tuple[int, Address, int]:
        """What identifies the backend."""
        return self.service_id, self.address, self.port


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One service and the ring that it draws from: ``ring`` holds 16-bit backend ids."""

    id: int
    salt: int
    forward: Forward
    scheduler: Scheduler
    pick_seed: int
    ring: bytes
    draws: int = 0  # least-load: backends compared
    source_bits: int = 0  # source, least-load with affinity: bits of the client's address used
    bound: int = 0  # source: 256ths of the mean load; 0: any
    load_weight: int = 0  # with a bound: sum of the weights of the usable backends
    waiting: bool = False  # request bytes that wait are counted
    reset: bool = False  # answer with a reset if no backend is usable
    holds: bool = False  # new flows wait if no backend is usable
    quic_id_bytes: int = 0
    port_last: int = 0  # the last port of a range
    vip_bits: int | None = None  # the length of a prefix VIP
    challenge: bool = False  # new clients have to show that they are at their address
    cookies: bool = False  # and they get SYN cookies for that
    limits_new: bool = False  # the rate of new flows is limited
    limits_packets: bool = False  # the packet rate of a source is limited
    limits_held: bool = False  # the open flows or waiting bytes of a source are limited
    zones: bool = False  # its rings have levels, and some zones have rings of their own


@dataclass(frozen=True, slots=True)
class MarkEntry:
    """What a mark says about its address, besides that it is a VIP."""

    ranges: bool = False  # it has port ranges
    any_port: bool = False  # it has an any-port service
    nat_source: int | None = None  # not a VIP, but the source address of fullnat with that number


@dataclass(frozen=True, slots=True)
class PortBlock:
    """A part of a port range: the ports that agree with ``port`` in their first ``bits`` bits."""

    vip: Address
    protocol: int
    port: int
    bits: int


@dataclass(frozen=True, slots=True)
class OriginEntry:
    """The service and backend of a packet from a server (nat), and its port blocks (fullnat)."""

    vip: Address
    salt: int = 0
    service_id: int = 0
    backend_id: int = 0  # 0: not a nat backend
    port: int = 0  # the port that clients use; 0: the backend's
    blocks: Blocks = ()


@dataclass(frozen=True, slots=True)
class QuicId:
    """A QUIC server id within a service, padded with zeros to eight bytes."""

    service_id: int
    server_id: bytes


@dataclass(frozen=True, slots=True)
class ZoneRingKey:
    """The key of the ring that a service uses for the clients of a zone."""

    service_id: int
    zone: int


@dataclass(frozen=True, slots=True)
class TableContents:
    """The contents of all tables that reconciliation keeps."""

    backends: dict[int, BackendEntry] = field(default_factory=dict)
    services: dict[ServiceSlot, ServiceEntry] = field(default_factory=dict)
    marks: dict[ServiceSlot, MarkEntry] = field(default_factory=dict)
    prefixes: frozenset[Network] = frozenset()  # of prefix VIPs
    ranges: dict[PortBlock, int] = field(default_factory=dict)  # the range's first port
    origins: dict[ServiceSlot, OriginEntry] = field(default_factory=dict)
    quic_ids: dict[QuicId, int] = field(default_factory=dict)  # backend id
    nat_sources: dict[int, Address] = field(default_factory=dict)  # by number
    zones: dict[Network, int] = field(default_factory=dict)  # zone id by prefix of its clients
    zone_rings: dict[ZoneRingKey, bytes] = field(default_factory=dict)
