"""What the agent tells about itself at one moment; the API, lbctl and metrics are views of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.model import (
    Address,
    Backend,
    BackendState,
    HealthStatus,
    NextHop,
    Service,
    ServiceState,
)


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
    reply_packets: int = 0  # nat, fullnat: of the backend
    reply_bytes: int = 0
    answers: int = 0  # requests whose answer's first byte was seen


@dataclass(frozen=True, slots=True)
class Latency:
    """Times that a backend took. ``octaves``: how many took no longer than so many seconds.

    ``octaves``, ``count`` and ``sum_s`` are since the backend was added, the rest of about the
    last minute; None: there were none.
    """

    octaves: tuple[tuple[float, int], ...] = ()
    count: int = 0
    sum_s: float = 0.0
    recent_count: int = 0
    recent_p50_ms: float | None = None
    recent_p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What a backend has in front of it, and how long it takes.

    All but ``open`` and ``score`` are None where the service does not count waiting bytes.
    """

    open: int = 0  # flows embryonic, acked or established
    score: float | None = None  # what its scheduler compares, lower is better; None: nothing
    waiting_bytes: int | None = None  # of requests that wait for their answer
    awaiting: int | None = None  # those requests; of one flow, one
    first_byte: Latency | None = None  # from a request to the first byte of its answer
    handshake: Latency | None = None  # from SYN to ACK


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
    load: Load = Load()


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
    replied: int = 0  # packets that the balancer answered itself


@dataclass(frozen=True, slots=True)
class NatSource:
    """A source address of fullnat, and how many of its ports flows have."""

    address: Address
    used: int
    ports: int


@dataclass(frozen=True, slots=True)
class DataplaneSnapshot:
    """The program in the kernel."""

    interface: str
    ifindex: int
    attached: bool
    hook: str  # native, tc, generic, external or none
    hook_reason: str
    driver: str
    program_id: int
    abi: int
    features: tuple[str, ...]
    compile_ms: float
    instructions: int
    jited_bytes: int
    verified_insns: int  # that the verifier went through
    flow_slots: int
    flows_by_state: dict[str, int]
    passed: dict[str, int]  # packets for no service, by reason
    backend_interfaces: tuple[str, ...] = ()  # more on which packets come in
    nat_sources: tuple[NatSource, ...] = ()
    events_lost: int = 0  # that `lbctl trace` missed


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
