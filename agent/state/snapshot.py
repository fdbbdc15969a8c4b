"""Defines the agent's snapshot of itself, of which the API, lbctl and the metrics are views."""

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
from agent.state.fleetview import FleetStatus
from agent.state.guardview import Guarded
from agent.state.moves import Lacking
from agent.state.scaling import Scaling
from agent.state.skew import Skew
from agent.state.slo import Watch
from agent.state.sources import SourceState
from agent.state.tables import ServiceSlot
from agent.state.tierview import TierStatus
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
    reply_packets: int = 0  # nat, fullnat: packets from the backend
    reply_bytes: int = 0
    answers: int = 0  # requests for which the first byte of the answer was seen


@dataclass(frozen=True, slots=True)
class Latency:
    """Times that a backend took. ``octaves``: how many took at most as long as each of
    ``latency.OCTAVE_ENDS_S``.

    ``octaves``, ``count`` and ``sum_s`` are since the backend was added; the rest is for about the
    last minute; None: there were none.
    """

    octaves: tuple[int, ...]
    count: int = 0
    sum_s: float = 0.0
    recent_count: int = 0
    recent_p50_ms: float | None = None
    recent_p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """What a backend's engine and GPUs report about themselves; None: not reported.

    ``fresh``: the engine's report is new enough to count; ages are those of the newest reports.
    """

    asked: bool = True  # the engine is asked; False: only the GPUs
    fresh: bool = False
    age_s: float | None = None
    every_s: float | None = None  # how often it is asked
    running: float | None = None  # requests
    waiting: float | None = None
    kv_usage: float | None = None  # share of the KV cache, 0 to 1
    gpu_share: float | None = None  # the part of the loaded models that is in GPU memory
    prompt_tokens: float | None = None  # since the engine started
    cached_tokens: float | None = None  # those of them that were in its prefix cache
    cached_share: float | None = None  # their share in the last minute
    dropped: int = 0  # values in the newest reports that cannot be true
    problem: str = ""  # why there was no report the last time; empty: there was one
    gpus: tuple[GpuReport, ...] = ()
    gpus_age_s: float | None = None
    gpus_problem: str = ""


@dataclass(frozen=True, slots=True)
class LearnedSpeed:
    """The learned speed of a backend; ``confidence`` is from 0, nothing known, to 1.

    ``weight_share``: the factor by which its weight is multiplied. ``bytes_per_connection`` None:
    as configured. ``samples``: the number of answers, weighted by age: one that is a minute old
    counts half.
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
    """What it is worth to send a service's clients back to their home backends (affinity).

    ``escape_bytes``: how many more waiting bytes a home may have than another backend.
    ``known_share``: the share of recent requests whose client the backend had answered before.
    ``new_s``, ``known_s``: how long a usual request takes by itself at a backend that does not know
    its client, and at one that does; None: not known.
    """

    escape_bytes: int
    known_share: float | None = None
    new_s: float | None = None
    known_s: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a backend, and how long it takes to answer.

    Waiting bytes and requests, and the times, are None where the service does not count them.
    """

    open: int = 0  # flows that are embryonic, acked or established
    busy: int = 0  # flows that await an answer, or had a packet in the last 8 to 12 s
    idle_resets: int = 0  # flows that were reset to rebalance, since the agent started
    resets: int = 0  # flows that were reset because they could not go on, since the agent started
    ejections: int = 0  # how often it was ejected because too many of its clients failed
    score: float | None = None  # what its scheduler compares, lower is better; None: nothing
    waiting_bytes: int | None = None  # bytes of requests that wait for their answer
    awaiting: int | None = None  # the number of those requests, at most one per flow
    unanswered_bytes: int | None = None  # bytes of requests that have waited too long to count
    errors: int | None = None  # answers with status 429 or 5xx; None: they cannot be read
    hangups: int | None = None  # requests that the server left without an answer; None: not seen
    first_byte: Latency | None = None  # from a request to the first byte of its answer
    handshake: Latency | None = None  # from SYN to ACK
    hot: bool = False  # it reports more load than it can take
    reported: Reported | None = None  # None: it is not asked
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
    counts: BackendCounts  # of all backends, including those removed since
    drops: dict[str, int]
    not_recorded: int
    rates: Rates
    replied: int = 0  # packets that the balancer answered itself
    not_replied: int = 0  # packets that it did not answer because of the rate limit of replies
    skew: Skew | None = None  # of busy connections; None: too few to tell
    draws: int | None = None  # least-load: backends compared now
    spill_over: tuple[str, ...] = ()  # where new flows go beyond their first level, and why
    challenges: bool = False  # new clients currently have to show that they are at their address
    cookies: bool = False  # and they get SYN cookies for that
    cookies_taken: int = 0  # connections that were established by a SYN cookie
    cookies_problem: str = ""  # why no SYN cookies are given despite `syn_cookies`
    cookies_keys: tuple[str, ...] = ()  # names of this balancer's keys, the signing one first
    first_byte: str | None = None  # token, head or unknown; None: its answers are not timed
    home: Home | None = None  # None: its clients have no homes
    slo: tuple[Watch, ...] = ()
    held: int | None = None  # clients that wait for a backend; None: it lets none wait
    scaling: Scaling = field(default_factory=Scaling)


@dataclass(frozen=True, slots=True)
class RecentTimes:
    """How long a service's backends took in about the last minute; None: there were no answers."""

    count: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Connections of a service that were begun in the last ``span_s`` seconds, and how many
    handshakes were completed.
    """

    begun: int
    established: int
    span_s: float


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """One service in a list of services. None: it is not counted."""

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
    """A page of a list of backends, with their services, or of services.

    ``matched``: how many match the query; ``total``: how many there are.
    """

    at: float
    backends: tuple[tuple[Service, BackendSnapshot], ...]
    services: tuple[ServiceRow, ...]
    matched: int
    total: int


@dataclass(frozen=True, slots=True)
class NatPorts:
    """The ports of a source address of fullnat towards a server: how many there are, and how many
    are used by flows. Servers that share a block have the same ports.
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
    verified_insns: int  # instructions that the verifier processed
    flow_slots: int
    flows_by_state: dict[str, int]
    passed: dict[str, int]  # packets for no service, by reason
    backend_interfaces: tuple[str, ...] = ()  # further interfaces on which packets come in
    nat_ports: tuple[NatPorts, ...] = ()
    nat_problems: tuple[str, ...] = ()  # servers towards which nearly all ports are in use
    events_lost: int = 0  # events that `lbctl trace` missed


@dataclass(frozen=True, slots=True)
class FailoverView:
    """What the agent knows about failover. ``process``: the failover process's last answer."""

    configured: bool = False
    process: FailoverStatus | None = None
    problem: str = ""  # why there is no answer; empty: there is one
    sync: tuple[PeerSync, ...] = ()
    sync_problem: str = ""  # why flows are not exchanged although they should be
    # Connections of hosts that are not peers, refused at once, by reason.
    sync_strangers: Mapping[str, int] = field(default_factory=dict)
    sync_counts: Mapping[str, int] = field(default_factory=dict)  # of the packet path, if it syncs
    lacking: Lacking = field(default_factory=Lacking)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole agent at one moment.

    ``services`` may hold only some of the services; ``service_states`` and ``backend_states`` count
    all of them.
    """

    at: float  # seconds since the epoch
    version: str
    name: str
    pid: int
    started: float
    config_path: str
    config_problem: str  # why the last reload was refused; empty: it was not refused
    changes_since_file: int  # runtime changes that are not in the file
    reconcile_problem: str  # what the last pass could not do; empty: nothing
    defects: int  # passes and reloads that were ended by a bug in the agent
    events: Mapping[tuple[str, str], int]  # log lines, by event and level
    dataplane: DataplaneSnapshot
    services: tuple[ServiceSnapshot, ...] = field(default=())
    service_states: Mapping[ServiceState, int] = field(default_factory=dict)
    backend_states: Mapping[BackendState, int] = field(default_factory=dict)
    rates: Rates = Rates()
    failover: FailoverView = FailoverView()
    link_problems: tuple[str, ...] = ()  # interfaces that receive no packets
    vip_problems: tuple[str, ...] = ()  # other hosts that answer for VIPs
    sources: Mapping[str, SourceState] = field(default_factory=dict)  # of backends, by service
    discovery_problems: tuple[str, ...] = ()  # sources of backends that give no usable answer
    guard: Guarded = field(default_factory=Guarded)
    fleet: FleetStatus | None = None  # None: the balancer belongs to none
    tier: TierStatus | None = None  # None: its host has none
    unsaved_problem: str = ""  # why changes are in memory only; empty: they are saved
    audit_problem: str = ""  # why changes are not in the audit log; empty: they are
