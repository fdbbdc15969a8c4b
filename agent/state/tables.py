"""The contents of the shared tables as values: what reconcile compares and applies."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.model import Address, Forward, Scheduler


@dataclass(frozen=True, slots=True)
class ServiceSlot:
    """A key of the service maps; port 0 is any port, protocol 0 the mark of a VIP."""

    vip: Address
    port: int
    protocol: int

    @property
    def is_mark(self) -> bool:
        return self.protocol == 0


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """One element of the backend table."""

    service_id: int
    address: Address
    usable: bool
    alive: bool
    forward: Forward
    ifindex: int  # 0: out where it came in
    mac: str
    source_mac: str
    mtu: int
    timeout_ticks: tuple[int, ...]  # by flow state
    source: Address | None  # of the outer header


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One service and the ring that it draws from: ``ring`` holds 16-bit backend ids."""

    id: int
    salt: int
    forward: Forward
    scheduler: Scheduler
    pick_seed: int
    ring: bytes


@dataclass(frozen=True, slots=True)
class TableContents:
    """Everything that reconcile looks after."""

    backends: dict[int, BackendEntry] = field(default_factory=dict)
    services: dict[ServiceSlot, ServiceEntry] = field(default_factory=dict)
    marks: frozenset[ServiceSlot] = frozenset()
