"""What the agent tells about itself at one moment; the API, lbctl and metrics are views of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.failover.status import FailoverStatus
from agent.failover.syncstatus import PeerSync
from agent.model import (
    Address,
    Backend,
    BackendState,
    HealthStatus,
    NextHop,
    Service,
    ServiceState,
)
from agent.state.guardview import Guarded
from agent.state.moves import Lacking
from agent.state.skew import Skew
from agent.state.slo import Watch
from agent.state.tables import ServiceSlot
from agent.telemetry.report import GpuReport


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
class Reported:
    """What a backend's engine and GPUs say of themselves; None: not told.

    ``fresh``: the engine's report counts; ages are of the newest reports.
    """

    asked: bool = True  # the engine; False: the GPUs alone
    fresh: bool = False
    age_s: float | None = None
    every_s: float | None = None  # how often it is asked
    running: float | None = None  # requests
    waiting: float | None = None
    kv_usage: float | None = None  # share of the KV cache, 0 to 1
    gpu_share: float | None = None  # of the loaded models, what lies in GPU memory
    prompt_tokens: float | None = None  # since the engine began
    cached_tokens: float | None = None  # of them, those that its prefix cache held
    cached_share: float | None = None  # of those of the last minute
    dropped: int = 0  # values of the newest reports that cannot be true
    problem: str = ""  # why there was no report the last time; empty: there was
    gpus: tuple[GpuReport, ...] = ()
    gpus_age_s: float | None = None
    gpus_problem: str = ""


@dataclass(frozen=True, slots=True)
class LearnedSpeed:
    """How fast a backend has turned out to be; ``confidence`` is from 0, nothing known, to 1.

    ``weight_share``: what its weight is multiplied by. ``bytes_per_connection`` None: as
    configured. ``samples``: answers by age, one of a minute counts half.
    """

    weight_share: float
    bytes_per_connection: int | None
    confidence: float
    seconds_per_byte: float
    seconds_per_connection: float
    base_seconds: float
    samples: float


@dataclass(frozen=True, slots=True)
class Home:
    """What the homes of a service's clients are worth.

    ``escape_bytes``: how many waiting bytes a home may have more than another backend.
    ``known_share``: of the requests of late, those whose client the backend had answered before.
    ``new_s``, ``known_s``: what a usual request takes by itself at a backend that does not know its
    client, and at one that does; None: not known.
    """

    escape_bytes: int
    known_share: float | None = None
    new_s: float | None = None
    known_s: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What a backend has in front of it, and how long it takes.

    Waiting bytes and requests, and the times, are None where the service does not count them.
    """

    open: int = 0  # flows embryonic, acked or established
    busy: int = 0  # flows that await an answer, or had a packet in the last 8 to 12 s
    idle_resets: int = 0  # flows that were reset to rebalance, since the agent began
    resets: int = 0  # likewise, because they could not go on
    ejections: int = 0  # how often its clients have failed so much that it got no more
    score: float | None = None  # what its scheduler compares, lower is better; None: nothing
    waiting_bytes: int | None = None  # of requests that wait for their answer
    awaiting: int | None = None  # those requests; of one flow, one
    unanswered_bytes: int | None = None  # of requests that have waited too long to weigh anything
    errors: int | None = None  # answers with status 429 or 5xx; None: they cannot be read
    hangups: int | None = None  # requests that the server left without an answer; None: not seen
    first_byte: Latency | None = None  # from a request to the first byte of its answer
    handshake: Latency | None = None  # from SYN to ACK
    hot: bool = False  # it reports more than it can take
    reported: Reported | None = None  # None: nobody asks it
    learned: LearnedSpeed | None = None  # None: its speed is not learned


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
    not_replied: int = 0  # that it would have answered, had there not been too many
    skew: Skew | None = None  # of busy connections; None: too few to say
    draws: int | None = None  # least-load: backends compared now
    spill_over: tuple[str, ...] = ()  # where new flows go beyond their first level, and why
    challenges: bool = False  # new clients have to show now that they are at their address
    cookies: bool = False  # and get SYN cookies for that
    cookies_taken: int = 0  # connections that these have begun
    cookies_problem: str = ""  # why `syn_cookies` gives none
    cookies_keys: tuple[str, ...] = ()  # names of those that this balancer has, the signing first
    first_byte: str | None = None  # token, head or unknown; None: its answers have no times
    home: Home | None = None  # None: its clients have none
    slo: tuple[Watch, ...] = ()


@dataclass(frozen=True, slots=True)
class RecentTimes:
    """How long all of a service's backends took in about the last minute; None: there were none."""

    count: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Connections of a service that were begun in the last ``span_s`` seconds, and those whose
    handshake was ended.
    """

    begun: int
    established: int
    span_s: float


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """What a list of services tells of one. None: it is not counted."""

    service: Service
    state: ServiceState
    reason: str
    since: float
    backends_up: int
    backends_total: int
    flows: int
    rates: Rates
    waiting_bytes: int | None
    first_byte: RecentTimes | None
    handshakes: Handshakes | None


@dataclass(frozen=True, slots=True)
class Page:
    """Backends, with their services, or services; how many match, and how many there are."""

    at: float
    backends: tuple[tuple[Service, BackendSnapshot], ...]
    services: tuple[ServiceRow, ...]
    matched: int
    total: int


@dataclass(frozen=True, slots=True)
class NatPorts:
    """The ports of a source address of fullnat towards a server: how many there are, and how many
    flows have. Servers that share a block have the same ports.
    """

    source: Address
    server: ServiceSlot  # address, port (0: several) and protocol of backends
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
    nat_ports: tuple[NatPorts, ...] = ()
    nat_problems: tuple[str, ...] = ()  # servers towards which nearly all ports are in use
    events_lost: int = 0  # that `lbctl trace` missed


@dataclass(frozen=True, slots=True)
class FailoverView:
    """What the agent knows of failover. ``process`` is the last answer of the failover process."""

    configured: bool = False
    process: FailoverStatus | None = None
    problem: str = ""  # why there is no answer; empty: there is
    sync: tuple[PeerSync, ...] = ()
    sync_problem: str = ""  # why flows are not exchanged though they should be
    sync_strangers: Mapping[str, int] = field(default_factory=dict)  # refused at once, by reason
    sync_counts: Mapping[str, int] = field(default_factory=dict)  # of the packet path; else empty
    lacking: Lacking = field(default_factory=Lacking)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, at one moment; ``services`` may be some of them only. How many are in which state
    is told of all.
    """

    at: float  # seconds since the epoch
    version: str
    name: str
    pid: int
    started: float
    config_path: str
    config_problem: str  # why the last reload was refused; empty: it was not
    changes_since_file: int  # runtime changes that the file does not have
    reconcile_problem: str  # what the last pass could not do; empty: nothing
    defects: int  # passes and reloads that an error of the agent's own has ended
    events: Mapping[tuple[str, str], int]  # what was said, by event and level
    dataplane: DataplaneSnapshot
    services: tuple[ServiceSnapshot, ...] = field(default=())
    service_states: Mapping[ServiceState, int] = field(default_factory=dict)
    backend_states: Mapping[BackendState, int] = field(default_factory=dict)
    rates: Rates = Rates()
    failover: FailoverView = FailoverView()
    link_problems: tuple[str, ...] = ()  # interfaces that take no packets
    vip_problems: tuple[str, ...] = ()  # other hosts that answer for VIPs
    guard: Guarded = field(default_factory=Guarded)
    unsaved_problem: str = ""  # why changes are in memory only; empty: they are saved
