"""What the agent tells about itself at one moment; the API, lbctl and metrics are views of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.model import Backend, BackendState, HealthStatus, NextHop, Service, ServiceState


@dataclass(frozen=True, slots=True)
class Rates:
    """Events per second over the last sampling window."""

    new_flows_per_s: float = 0.0
    packets_per_s: float = 0.0
    bits_per_s: float = 0.0
    drops_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BackendCounts:
    """Totals since the backend was added, summed over CPUs."""

    packets: int = 0
    bytes: int = 0
    opened: int = 0
    closed: int = 0
    established: int = 0


@dataclass(frozen=True, slots=True)
class BackendSnapshot:
    """One backend of one service."""

    backend: Backend
    id: int  # 0: not in the tables yet
    state: BackendState
    reason: str
    since: float  # seconds since the epoch
    health: HealthStatus
    next_hop: NextHop | None
    weight_effective: int
    weight_reason: str
    share_expected: float  # of the ring, 0 to 1
    share_actual: float | None  # of the new flows of the last minute, 0 to 1; None: none came
    flows: int  # live slots of the flow table that are acked or established
    counts: BackendCounts
    rates: Rates


@dataclass(frozen=True, slots=True)
class ServiceSnapshot:
    """One service; ``drops`` and ``passed`` are packets by reason."""

    service: Service
    id: int
    state: ServiceState
    reason: str
    since: float
    backends: tuple[BackendSnapshot, ...]
    counts: BackendCounts  # of all backends, also of those removed since
    drops: dict[str, int]
    not_recorded: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class DataplaneSnapshot:
    """The program in the kernel."""

    interface: str
    ifindex: int
    attached: bool
    xdp_mode: str  # native, generic or none
    xdp_mode_reason: str
    driver: str
    program_id: int
    abi: int
    features: tuple[str, ...]
    compile_ms: float
    instructions: int
    flow_slots: int
    flows_by_state: dict[str, int]
    passed: dict[str, int]  # packets for no service, by reason


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, at one moment."""

    at: float  # seconds since the epoch
    version: str
    name: str
    pid: int
    started: float
    config_path: str
    config_problem: str  # why the last reload was refused; empty: it was not
    changes_since_file: int  # runtime changes that the file does not have
    reconcile_problem: str  # what the last pass could not do; empty: nothing
    dataplane: DataplaneSnapshot
    services: tuple[ServiceSnapshot, ...] = field(default=())
    rates: Rates = Rates()
