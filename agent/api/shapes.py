"""Defines the shapes of the API's JSON bodies, from which its OpenAPI document is made.

The views build the bodies of answers, and ``requests`` checks those of requests. The tests check
that each real answer has exactly the keys of its shape, with values of these types. A docstring
explains the keys that do not explain themselves.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

from pydantic import Field

from agent.api import requests
from agent.config.edit import EditOp
from agent.config.origins import Origin
from agent.config.plan import Action, Kind
from agent.failover.model import Method, Mode, Role
from agent.failover.syncstatus import LinkState
from agent.model import (
    AdminState,
    AffinityBy,
    BackendState,
    CheckKind,
    Detect,
    DownFlows,
    Forward,
    GuardMode,
    Health,
    NoBackend,
    NodeKind,
    Protocol,
    Scheduler,
    ServiceState,
    SynProtection,
    TelemetryKind,
    Via,
)
from agent.state.alerts import Outcome
from agent.state.events import EventKind, Fate
from agent.state.scaling import Cause
from agent.state.threats import Sign

type Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
type Counts = dict[str, int]
type Level = Literal["info", "warning", "error"]
type FlowState = Literal["embryonic", "acked", "established", "closing"]


class Problem(TypedDict):
    """What is wrong, where, and how to fix it."""

    message: str
    where: str
    remedy: str


class ErrorDetail(Problem):
    """The first problem. `problems` lists all of them if there are several."""

    problems: NotRequired[list[Problem]]


class Error(TypedDict):
    """The body of every refusal."""

    error: ErrorDetail


class Rates(TypedDict):
    """Events per second in the last sampling window."""

    new_flows_per_s: float
    packets_per_s: float
    bits_per_s: float
    drops_per_s: float


class AgentStatus(TypedDict):
    """The agent. Each problem is an empty text while there is none.

    `changes_since_file`: the number of runtime changes that are not in the file.
    """

    name: str
    version: str
    pid: int
    uptime_s: float
    started_at: Time
    config_file: str
    config_problem: str
    changes_since_file: int
    reconcile_problem: str
    unsaved_problem: str
    audit_problem: str
    discovery_problems: list[str]


class FlowTable(TypedDict):
    """The flow table: how many slots it has, and how many of them flows of each state use."""

    slots: int
    established: int
    acked: int
    embryonic: int
    closing: int
    used_share: float


class NatPorts(TypedDict):
    """The source ports of one address towards one server (fullnat)."""

    source: str
    server: str
    used_ports: int
    ports: int


class DataplaneStatus(TypedDict):
    """The program in the kernel. `hook`: native, tc, generic, external or none."""

    interface: str
    backend_interfaces: list[str]
    attached: bool
    hook: str
    hook_reason: str
    driver: str
    program_id: int
    abi_version: int
    features: list[str]
    compile_ms: float
    instructions: int
    machine_code_bytes: int
    verified_instructions: int
    flow_table: FlowTable
    nat_ports: list[NatPorts]
    nat_problems: list[str]
    passed_packets: Counts
    trace_events_lost_total: int
    link_problems: list[str]
    vip_problems: list[str]


class ServiceStates(TypedDict):
    """The number of services in each state."""

    total: int
    up: int
    degraded: int
    down: int


class BackendStates(TypedDict):
    """The number of backends in each state."""

    total: int
    up: int
    drain: int
    maintenance: int
    checking: int
    down: int
    ejected: int
    unreachable: int


class UnservedService(TypedDict):
    """A service without a backend that takes new flows; `clients`: what its clients get."""

    service: str
    reason: str
    since: Time
    since_s: float
    clients: NoBackend


class UnconnectedService(TypedDict):
    """A service to which no client gets a connection.

    `begun`: connections that clients began in the last half minute.
    """

    service: str
    begun: int
    backends_up: int


class ServiceObjective(TypedDict):
    """A latency objective, and the answers of the last minute.

    `percentile` % of the answers should begin within `within_s`. The share of late answers is null
    if there were no answers.
    """

    objective: str
    percentile: int
    within_s: float
    is_missed: bool
    answers_last_minute: int
    late_share_last_minute: float | None


class LateService(ServiceObjective):
    """A service whose answers begin later than its objective allows."""

    service: str


class Server(TypedDict):
    """A server with all its addresses."""

    name: str
    addresses: list[str]


class Trouble(TypedDict):
    """Servers with the same trouble, and how many backends they have with and without it."""

    servers: list[Server]
    servers_total: int
    state: BackendState
    reason: str
    since: Time
    since_s: float
    services: list[str]
    services_total: int
    backends: int
    other_backends: int


class RecentEvents(TypedDict):
    """The number of events of the last hour, by level."""

    warning: int
    error: int


class InstanceSummary(TypedDict):
    """The role of this node in one failover instance. `master`: the master's address, if known."""

    name: str
    role: Role
    since_s: float
    why: str
    master: str | None
    mode: Mode
    problems: list[str]


class PeerSummary(TypedDict):
    """One peer of flow sync. `lag_s`: the age of our newest state that the peer has completely."""

    peer: str
    name: str
    state: LinkState
    why: str
    since_s: float
    lag_s: float | None


class FailoverSummary(TypedDict):
    """Failover and flow sync in a few lines; `GET /v1/failover` has the rest."""

    configured: bool
    problem: str
    instances: list[InstanceSummary]
    flow_sync: list[PeerSummary]


class MetricsStatus(TypedDict):
    """Where the metrics are served, and how many seconds ago they were last read."""

    listen: str | None
    last_read_s: float | None


class FleetMembership(TypedDict):
    """How a balancer stands to its fleet.

    `version` runs since `since`; 0: the balancer never took one. `wanted_version`: the one that
    should run here; null: not known, or the fleet has none. `trying`: the balancers that try
    another version. `frozen`: why the balancer takes no versions; null: it does. `problem`: why it
    does not follow its fleet; empty: it does. `store_away_s`: how long the store has not answered;
    null: it does.
    """

    name: str
    node: str
    version: int
    since: Time
    wanted_version: int | None
    stable_version: int | None
    newest_version: int | None
    trying: list[str]
    frozen: str | None
    refused_version: int | None
    problem: str
    store_away_s: float | None


class TierLoad(TypedDict):
    """What HAProxy does, over all its workers. The tier itself answered what it `refused`, and
    engines did not answer what `failed`. `current`: requests at engines now; `queued`: requests
    that wait for one.
    """

    connections: int
    current: int
    queued: int
    requests_per_s: float
    refused_per_s: float
    failed_per_s: float


class TierStatus(TypedDict):
    """The tier of the balancer's host. `load`: null while HAProxy or the tier does not answer."""

    problems: list[str]
    load: TierLoad | None


class Status(TypedDict):
    """The state of the whole balancer.

    `unserved`, `unconnected`, `late` and `troubles` have at most 100 entries each. `threats`: how
    many sources behave unlike all others of a service. `fleet`: null if the balancer belongs to
    none. `tier`: null if its host has none.
    """

    agent: AgentStatus
    dataplane: DataplaneStatus
    services: ServiceStates
    backends: BackendStates
    unserved: list[UnservedService]
    unconnected: list[UnconnectedService]
    late: list[LateService]
    troubles: list[Trouble]
    troubles_total: int
    threats: int
    rates: Rates
    events_last_hour: RecentEvents
    failover: FailoverSummary
    fleet: FleetMembership | None
    tier: TierStatus | None
    metrics: MetricsStatus


class NextHop(TypedDict):
    """Where packets for a backend go. `mac`: null while it is not resolved."""

    mac: str | None
    ifindex: int
    on_link: bool
    mtu: int


class RecentLatency(TypedDict):
    """How many there were in the last minute, and how long they took."""

    count: int
    p50_ms: float | None
    p99_ms: float | None


class Latency(TypedDict):
    """Times that a backend took, since it was added and in the last minute."""

    count_total: int
    mean_ms: float | None
    last_minute: RecentLatency


class Gpu(TypedDict):
    """One GPU of a backend's host. Null: not reported."""

    gpu: str
    uuid: str
    lost: bool
    clock_ratio: float | None
    throttled_by: list[str]
    power_capped: bool
    xid: int | None
    recovery_action: str | None
    utilization_ratio: float | None
    memory_used_ratio: float | None
    temperature_c: float | None


class Reported(TypedDict):
    """What a backend's engine and GPUs report. Null: not reported.

    `fresh`: the engine's report is new enough to count. `values_dropped`: values in the newest
    reports that cannot be true.
    """

    source: TelemetryKind
    fresh: bool
    age_s: float | None
    asked_every_s: float | None
    requests_running: float | None
    requests_waiting: float | None
    kv_cache_used_ratio: float | None
    prompt_tokens_total: float | None
    cached_tokens_total: float | None
    cached_ratio: float | None
    models_in_gpu_memory_ratio: float | None
    values_dropped: int
    problem: str
    gpus_source: NodeKind
    gpus_age_s: float | None
    gpus_problem: str
    gpus: list[Gpu]


class Learned(TypedDict):
    """The learned speed of a backend. `weight_ratio`: the factor by which its weight is multiplied.

    `confidence`: from 0, nothing is known, to 1. `samples`: the number of answers, weighted by age.
    """

    weight_ratio: float
    bytes_per_connection: int | None
    confidence: float
    samples: float
    us_per_byte: float
    ms_per_connection: float
    base_ms: float


class Traffic(TypedDict):
    """Totals since a backend was added. Replies are seen with nat and fullnat only."""

    packets_total: int
    bytes_total: int
    new_flows_total: int
    closed_flows_total: int
    established_flows_total: int
    reply_packets_total: int
    reply_bytes_total: int


class Backend(Traffic):
    """One backend of one service.

    `weight_effective` is what the scheduler uses, and `weight_reason` says why. `share_expected`
    and `share_actual` are parts of the service's new flows from 0 to 1, the latter in the last
    minute. Null: not measured, or not used by this service.
    """

    service: str
    name: str
    address: str
    port: int | None
    backup: bool
    priority: int
    zone: str | None
    discovered: bool
    state: BackendState
    reason: str
    state_changes_last_hour: int
    since: Time
    since_s: float
    admin_state: AdminState
    health: Health
    health_reason: str
    health_since: Time
    certificate_until: Time | None
    health_latency_ms: float | None
    next_hop: NextHop | None
    weight_configured: int
    weight_effective: int
    weight_reason: str
    share_expected: float
    share_actual: float | None
    flows_established: int
    open_connections: int
    busy_connections: int
    idle_resets_total: int
    waiting_bytes: int | None
    waiting_requests: int | None
    unanswered_bytes: int | None
    error_answers_total: int | None
    hangups_total: int | None
    ejections_total: int
    load_score: float | None
    hot: bool
    reported: Reported | None
    learned: Learned | None
    first_byte: Latency | None
    handshake: Latency | None
    rates: Rates
    answers_total: int


class ServiceHeading(TypedDict):
    """What identifies a service. `port`: a number, a range such as `8000-8010`, or `any`."""

    name: str
    vip: str
    port: int | str
    protocol: Protocol
    forward: Forward
    scheduler: Scheduler


class Handshakes(TypedDict):
    """Connections that were begun in the last `span_s` seconds, and completed handshakes."""

    begun: int
    established: int
    span_s: float


class ServiceRow(ServiceHeading):
    """One service in a list."""

    state: ServiceState
    reason: str
    since: Time
    since_s: float
    backends_up: int
    backends_total: int
    flows_established: int
    waiting_bytes: int | None
    first_byte_last_minute: RecentLatency | None
    handshakes: Handshakes | None
    rates: Rates


class SchedulerSettings(TypedDict):
    """The settings that the service's scheduler uses."""

    draws: NotRequired[int]
    bytes_per_connection: NotRequired[int]
    source_bits: NotRequired[int | None]
    source_bound: NotRequired[float]


class Outlier(TypedDict):
    """When backends are ejected because too many of their clients fail."""

    eject_s: float
    threshold: float
    window_s: float
    requests: int
    most_ejected: int


class BySignal(TypedDict):
    """A value for each kind of load. Null: not known, or no target."""

    connections: float | None
    waiting_bytes: float | None
    requests: float | None
    queued: float | None


class Scale(TypedDict):
    """How many backends a service should have. Null: not known, or no target is configured."""

    service: str
    wanted_backends: int | None
    wanted_because: Cause | None
    wanted_by: BySignal
    min_backends: int
    max_backends: int | None
    usable_backends: int
    draining_backends: int
    held_clients: int | None
    load: BySignal
    load_per_backend: BySignal
    target_per_backend: BySignal
    first_byte_p95_s: float | None
    misses_objective: bool | None


class Affinity(TypedDict):
    """What it is worth to send clients back to their home backends.

    `escape`: the configured bytes, or `auto`. `escape_bytes`: how many more waiting bytes a home
    may have than another backend.
    """

    by: AffinityBy
    prefix: int | None
    escape: int | Literal["auto"]
    escape_bytes: int
    known_ratio: float | None
    new_ms: float | None
    known_ms: float | None


class Limits(TypedDict):
    """The limits of a service, written as in the configuration. Null: no limit."""

    new_flows_per_source: str | None
    new_flows_per_prefix: str | None
    new_flows: str | None
    packets_per_source: str | None
    open_flows_per_source: int | None
    waiting_per_source: int | str | None


class Skew(TypedDict):
    """The backend with the most busy connections for its weight."""

    ratio: float
    backend: str
    busy_connections: int
    busy_connections_at_the_mean: float


class Timeouts(TypedDict):
    """Idle seconds after which a flow in a state may be forgotten."""

    embryonic: float
    acked: float
    established: float
    closing: float


class HealthCheck(TypedDict):
    """How backends are checked, with only the settings that a check of this type uses.

    `port`: null if backends are checked on different ports.
    """

    type: CheckKind
    via: NotRequired[Via]
    port: NotRequired[int | None]
    interval_s: NotRequired[float]
    timeout_s: NotRequired[float]
    rise: NotRequired[int]
    fall: NotRequired[int]
    jitter: NotRequired[float]
    method: NotRequired[str]
    path: NotRequired[str]
    host: NotRequired[str | None]
    expect_status: NotRequired[str]
    tls: NotRequired[bool]
    verify_tls: NotRequired[bool]
    model: NotRequired[str | None]
    every_s: NotRequired[float]
    answer_within_s: NotRequired[float]
    grpc_service: NotRequired[str | None]
    send: NotRequired[str | None]
    expect: NotRequired[str | None]
    query: NotRequired[str]
    record: NotRequired[str]
    command: NotRequired[str]


class Service(ServiceHeading, Traffic):
    """One service with its backends.

    `held_clients`: clients that wait for a backend. `draws_in_use`: how many backends `least-load`
    compares now. `spill_over`: where new flows go beyond their first level, and why.
    `first_byte_is`: what the first byte of an answer means. `drops_total`: packets by reason. Null:
    not counted, or not used by this service.
    """

    scheduler_settings: SchedulerSettings
    draws_in_use: int | None
    spill_over: list[str]
    no_backend: NoBackend
    held_clients: int | None
    panic: float
    outlier: Outlier | None
    slo: list[ServiceObjective]
    scale: Scale
    syn_protection: SynProtection
    challenges_clients: bool
    syn_cookies: bool
    gives_cookies: bool
    cookies_problem: str
    cookies_keys: list[str]
    first_byte_is: Literal["token", "head", "unknown"] | None
    affinity: Affinity | None
    discover: str | None
    cookie_connections_total: int
    guard: GuardMode
    allow: list[str]
    deny: list[str]
    limits: Limits
    detect: Detect
    trusted: list[str]
    down_flows: DownFlows
    reset_after_s: float
    slow_start_s: float
    quic_id_bytes: int | None
    counts_waiting_bytes: bool
    learns_speed: bool
    telemetry: TelemetryKind
    node_telemetry: NodeKind
    model: str | None
    state: ServiceState
    reason: str
    since: Time
    since_s: float
    backends_up: int
    backends_total: int
    flows_established: int
    open_connections: int
    busy_connections: int
    skew: Skew | None
    idle_resets_total: int
    waiting_bytes: int | None
    waiting_requests: int | None
    rates: Rates
    replied_packets_total: int
    not_replied_packets_total: int
    flows_not_recorded_total: int
    drops_total: Counts
    timeouts_s: Timeouts
    health_check: HealthCheck
    backends: list[Backend]


class Services(TypedDict):
    """All services."""

    services: list[Service]


class BackendPage(TypedDict):
    """A page of backends. `matched`: how many match the query; `total`: how many there are."""

    backends: list[Backend]
    matched: int
    total: int


class ServicePage(TypedDict):
    """A page of services. `matched`: how many match the query; `total`: how many there are."""

    services: list[ServiceRow]
    matched: int
    total: int


class Setting(TypedDict):
    """A setting with the layer that decided it. `backend`: null for settings of the service."""

    backend: str | None
    field: str
    value: object
    origin: Origin


class Origins(TypedDict):
    """The settings of a service that are not at their default."""

    service: str
    settings: list[Setting]


class Scales(TypedDict):
    """The wanted number of backends of all services."""

    services: list[Scale]


class FieldChange(TypedDict):
    """The change of one value, written as in the configuration. Null: not set."""

    field: str
    old: object
    new: object


class Change(TypedDict):
    """One service or backend that is added, changed or removed, or a change of global settings.

    `effect`: what the change does to traffic.
    """

    action: Action
    kind: Kind
    service: str
    backend: str | None
    fields: list[FieldChange]
    effect: str


class Changes(TypedDict):
    """Changes of the configuration."""

    changes: list[Change]


class Made(Changes):
    """The changes that were made, or with `dry_run` would be made.

    `unsaved_problem`: why they are only in memory; empty: they are saved.
    """

    applied: bool
    unsaved_problem: str


class Configuration(TypedDict):
    """The running configuration, written as in the file, and how it differs from the file."""

    config: dict[str, object]
    changes_since_file: list[Change]


class Flow(TypedDict):
    """One recorded flow. Null: does not apply, or is not counted by this service."""

    service: str
    protocol: Protocol
    client: str
    client_port: int
    vip: str
    port: int
    backend: str
    state: FlowState
    age_s: float
    idle_s: float
    nat_source: str | None
    nat_source_port: int | None
    awaiting_answer: bool | None
    waiting_bytes: int | None
    handshake_ms: float | None
    talk: Literal["plain", "tls", "http2"] | None


class Flows(TypedDict):
    """Recorded flows: those `shown`, and how many `matched` the query."""

    flows: list[Flow]
    matched: int
    shown: int


class Draw(TypedDict):
    """One draw from the ring, with the values that the scheduler compares."""

    slot: int
    backend: str
    usable: bool
    load_score: float | None
    open_connections: int | None
    most_open_connections: int | None
    cpu: int | None


class Ring(TypedDict):
    """The ring of the service, and what was drawn from it."""

    slots: int
    draws: list[Draw]


class Explanation(TypedDict):
    """What happens to the next packet of a flow, and why.

    `depends_on`: what could lead to another backend a moment later (`load` or `turn`).
    """

    verdict: Literal["forward", "pass", "drop", "reset"]
    service: str | None
    backend: str | None
    reason: str
    scheduler: str | None
    depends_on: str | None
    steps: list[str]
    recorded_flow: Flow | None
    ring: Ring


class TraceEvent(TypedDict):
    """One decision of the data plane. Null: does not apply."""

    event: EventKind
    at: Time
    protocol: str
    client: str
    client_port: int | None
    vip: str
    port: int | None
    length_bytes: int
    tcp_flags: str | None
    service: str | None
    backend: str | None
    backend_address: str | None
    scheduler: str | None
    reason: str | None
    fate: Fate | None
    flow_state: str | None
    waited_bytes: int | None
    waited_us: int | None


class TraceLost(TypedDict):
    """How many events this client has missed so far. It comes at least every second."""

    lost_in_ring: int
    lost_by_client: int


class Event(TypedDict):
    """One line of the agent's log. `number` continues to count across restarts."""

    number: int
    at: Time
    level: Level
    event: str
    service: str | None
    backend: str | None
    fields: dict[str, str]


type RoleName = Literal["viewer", "operator", "admin"]


class RoleGroups(TypedDict):
    """The groups that have each role, as the configuration says."""

    viewer: list[str]
    operator: list[str]
    admin: list[str]


class Whoami(TypedDict):
    """Who the caller is. `groups`: those of the caller's groups that have a role. `roles`: the
    groups that have each role; without any, whoever can open the socket is an admin.

    For a client of `lb-agent api`, `user` is its certificate, `address` its address (else null),
    `uid` the user of that process, and `roles` has the certificates with each role.
    """

    user: str
    uid: int
    role: RoleName
    groups: list[str]
    address: str | None
    roles: RoleGroups


class RemoteApi(TypedDict):
    """Where `lb-agent api` is to serve the API over TLS; `address` null: nowhere.

    `certificate`, `key_file`, `client_ca` and `crl_file` are paths of files.
    """

    address: str | None
    port: int | None
    certificate: str | None
    key_file: str | None
    client_ca: str | None
    crl_file: str | None


class AuditHead(TypedDict):
    """The number and the hash of the last record."""

    number: int
    hash: str


class AuditRecord(TypedDict):
    """One record of the audit log.

    `number`, `previous` and `hash` are its place in the chain. `kind`: an `order` is recorded
    before the change is made, and the `outcome` with the same `change` afterwards. `by`, `uid`,
    `pid` and `role`: who asked for it; `source`: from where. `what`: the request. `request`: its
    plain fields, and the SHA-256 of its body. `left_out`: how many requests like this `denied` one
    were not recorded. `count`: how many records were lost. `configuration`: the SHA-256 of the file
    with which the agent has started.
    """

    number: int
    previous: str
    hash: str
    kind: Literal["begin", "start", "order", "outcome", "denied", "lost"]
    at: Time
    change: NotRequired[str]
    by: NotRequired[str]
    uid: NotRequired[int]
    pid: NotRequired[int]
    role: NotRequired[RoleName]
    source: NotRequired[str]
    what: NotRequired[str]
    request: NotRequired[dict[str, object]]
    outcome: NotRequired[Literal["ok", "refused", "failed"]]
    effect: NotRequired[str]
    left_out: NotRequired[int]
    count: NotRequired[int]
    version: NotRequired[str]
    configuration: NotRequired[str]


class Audit(TypedDict):
    """Records of the audit log, the oldest first.

    `file`: where the newest ones are. `problem`: why changes are not recorded; empty: they are.
    """

    file: str
    problem: str
    head: AuditHead
    records: list[AuditRecord]


class Events(TypedDict):
    """Events, the oldest first."""

    events: list[Event]


class Version(TypedDict):
    """One version of the running configuration. `changes` has the first of `changes_count`."""

    number: int
    at: Time
    how: str
    who: str
    message: str
    changes: list[str]
    changes_count: int


class History(TypedDict):
    """The stored versions, the oldest first."""

    versions: list[Version]


class Revert(TypedDict):
    """A setting of a backend that goes back by itself. `back`: null for what its source says."""

    service: str
    backend: str
    field: str
    set_to: object
    back: object
    at: Time
    in_s: float


class Reverts(TypedDict):
    """The changes that end by themselves, the first to end at the top."""

    reverts: list[Revert]


class Override(TypedDict):
    """What an operator decided about a target. Null: what its source says."""

    weight: int | None
    state: AdminState | None


class Target(TypedDict):
    """A server that a source has named. `left_s`: how long ago the source left it out."""

    name: str
    address: str
    port: int | None
    weight: int
    state: AdminState
    backup: bool
    priority: int
    zone: str | None
    left_s: float | None
    override: Override | None


class Refused(TypedDict):
    """An entry of a source's answer that is no backend, and the reason."""

    target: str
    why: str


class Source(TypedDict):
    """The source of a service's backends. `held`: how many targets an answer has that is not used.

    `left_out` has at most 1000 entries of each kind.
    """

    service: str
    source: str
    match: dict[str, str]
    min: int
    max: int
    most_removed: float
    asked: Time | None
    asked_s: float | None
    answered: Time | None
    answered_s: float | None
    problem: str
    problem_since_s: float | None
    held: int | None
    targets: list[Target]
    left_out: list[Refused]
    left_out_total: int


class Sources(TypedDict):
    """The sources of backends."""

    sources: list[Source]


class NamedBlock(TypedDict):
    """A prefix that is blocked, and until when."""

    prefix: str
    why: str
    since: Time
    until: Time


class Block(NamedBlock):
    """A prefix that is blocked, with the time that is left."""

    left_s: float


class AddressList(TypedDict):
    """A list of prefixes. `read_s`: how long ago its files were read."""

    name: str
    prefixes: int
    files: list[str]
    read_s: float | None
    used_by: list[str]
    dropped_packets_total: int
    would_drop_packets_total: int
    problem: str


class Limit(TypedDict):
    """One limit of a service. `sources`: how many sources are at the limit."""

    service: str
    limit: str
    at_most: str
    dropped_packets_total: int
    would_drop_packets_total: int
    sources: int


class GuardedService(TypedDict):
    """The lists that a service uses."""

    name: str
    guard: GuardMode
    allow: list[str]
    deny: list[str]
    detect: Detect
    trusted: list[str]


class Threat(TypedDict):
    """A source that behaves unlike all others of a service.

    `value`: what it has of `sign`; `usual`: the median of the `others`; `usual_itself`: what the
    source usually has, 0: unknown or little. New flows are per second.
    `action`: what the service does about such sources. `address_proven`: false if somebody else
    could have forged the address.
    """

    service: str
    source: str
    sign: Sign
    value: float
    usual: float
    others: int
    usual_itself: float
    why: str
    since: Time
    since_s: float
    action: Detect
    address_proven: bool


class AlertsSeen(TypedDict):
    """The alerts of one signature with the same outcome.

    `source` and `server` are those of the last one, which was `last_s` ago. `text`: the
    signature's. `outcome`: `blocked`, if the source is blocked by this or an earlier alert;
    `logged`, if the configuration wants no block; `unproven`, if somebody else may have sent it;
    `spared`, if the source is trusted, ours or a proxy; `bounded`, if as many sources are blocked
    as may be; `failed`, if blocking did not work, for which `problem` of the alerts has the reason.
    """

    signature: int
    text: str
    severity: int
    outcome: Outcome
    source: str
    server: str
    alerts: int
    last: Time
    last_s: float


class AlertCount(TypedDict):
    """How many alerts of a severity had an outcome."""

    severity: int
    outcome: Outcome
    alerts: int


class Alerts(TypedDict):
    """The alerts of Suricata since the agent began; the latest 50 signatures and outcomes.

    `file` is null if none are read. `blocked_total`: how many sources they have blocked.
    `unreadable_lines_total`: lines that are none of Suricata's. `skipped_bytes_total`: what was
    left out because there was too much to read.
    """

    file: str | None
    problem: str
    recent: list[AlertsSeen]
    counts: list[AlertCount]
    blocked_total: int
    unreadable_lines_total: int
    skipped_bytes_total: int


class Guard(TypedDict):
    """Blocks, lists, limits and threats, of which it has at most 1,000.

    `nodes`: how much of the guard's table is used, of `nodes_total`. `threats_blocked_total`: how
    many sources were blocked because of a threat. `in_force`: false while the program that
    enforces blocks is still being compiled.
    """

    blocks: list[Block]
    lists: list[AddressList]
    limits: list[Limit]
    threats: list[Threat]
    threats_total: int
    alerts: Alerts
    services: list[GuardedService]
    blocked_packets_total: int
    would_block_packets_total: int
    not_allowed_packets_total: int
    would_not_allow_packets_total: int
    threats_blocked_total: int
    in_force: bool
    nodes: int
    nodes_total: int
    problem: str
    unsaved_problem: str


class ServiceVerdict(TypedDict):
    """What a service does with a new flow: `served`, or why not."""

    name: str
    verdict: str


class GuardTest(TypedDict):
    """What the guard does with an address."""

    address: str
    block: NamedBlock | None
    lists: list[str]
    services: list[ServiceVerdict]


class TopSource(TypedDict):
    """A source, with its open flows and the bytes of its requests that wait for their answer."""

    source: str
    flows: int
    waiting_bytes: int


class Top(TypedDict):
    """The sources with the most, and how many sources there are."""

    sources: list[TopSource]
    sources_total: int


class Blocked(TypedDict):
    """What was blocked. `told_balancers`: how many other balancers were informed."""

    blocked: list[str]
    flows_ended: int
    told_balancers: int
    unsaved_problem: str


class Unblocked(TypedDict):
    """What is served again. `told_balancers`: how many other balancers were informed."""

    unblocked: list[str]
    told_balancers: int
    unsaved_problem: str


class FailoverProcess(TypedDict):
    """The failover process. `agent_seen_s`: how long ago the agent's last heartbeat came."""

    pid: int
    version: str
    uptime_s: float
    realtime: bool
    memory_locked: bool
    agent_seen_s: float | None
    config_problem: str


class RouterProblem(TypedDict):
    """A mismatch that can lead to two masters, or something that this node cannot do."""

    kind: str
    text: str
    since_s: float
    last_s: float
    count: int


class Router(TypedDict):
    """One virtual router of a failover instance. `family`: 4 or 6; null with `announce`."""

    name: str
    instance: str
    method: Method
    group: str
    interface: str
    family: int | None
    vrid: int
    version: int
    role: Role
    since: Time
    since_s: float
    why: str
    mode: Mode
    priority_effective: int
    priority_configured: int
    priority_reasons: list[str]
    advert_interval_s: float
    vips: list[str]
    unicast_peers: list[str]
    master: str | None
    master_priority: int | None
    problems: list[RouterProblem]
    transitions_total: Counts
    adverts_sent_total: int
    adverts_received_total: int
    adverts_discarded_total: Counts
    announcements_total: int


class SyncPeer(TypedDict):
    """One peer of flow sync.

    `lag_s`: the age of our newest state that the peer has completely; `behind_s`: the age of the
    peer's newest state that we have completely.
    """

    address: str
    name: str
    version: str
    state: LinkState
    why: str
    since_s: float
    lag_s: float | None
    behind_s: float | None
    rtt_ms: float | None
    flows_sent_total: int
    flows_received_total: int
    flows_installed_total: int
    flows_dropped_total: Counts
    flows_gone_sent_total: int
    flows_gone_received_total: int
    peer_installed_total: int
    peer_dropped_total: Counts
    bytes_sent_total: int
    bytes_received_total: int
    full_resyncs_sent_total: int
    full_resyncs_received_total: int
    connections_total: int
    refused_total: Counts
    last_error: str


class MoveLacking(TypedDict):
    """The last move that was made although the other balancer may have lacked flows."""

    why: str
    age_s: float


class FlowSync(TypedDict):
    """Flow sync. `strangers_total`: connections of hosts that are not peers, by reason.

    `untold_total`: flows that became established while the ring buffer to the agent was full.
    `packets_total`: packets passed between balancers, by what became of them.
    """

    problem: str
    peers: list[SyncPeer]
    strangers_total: Counts
    moves_lacking_flows_total: int
    last_move_lacking_flows: MoveLacking | None
    untold_total: int
    packets_total: Counts


class Failover(TypedDict):
    """Failover: instances, the failover process, and flow sync."""

    configured: bool
    problem: str
    process: FailoverProcess | None
    instances: list[Router]
    flow_sync: FlowSync


class Moved(TypedDict):
    """The result of an order about the VIPs. `flows_sent`: how many flows were sent last."""

    text: str
    flows_sent: int
    applied: bool


type Reason = Annotated[str, Field(max_length=requests.MAX_WHY)]


class ChangeBody(TypedDict, total=False):
    """How to make a change, and why.

    `dry_run`: only report what would change. `confirmed`: make it although it cuts open flows.
    `message`: the reason, for the history.
    """

    dry_run: bool
    confirmed: bool
    message: Reason


class EditFields(TypedDict):
    """One change. `values`: keys of the service or backend, written as in the configuration.

    `services.apply` replaces all services: its `values` have the list `services`.
    """

    op: EditOp
    service: NotRequired[str | None]
    backend: NotRequired[str | None]
    values: NotRequired[dict[str, object]]


type ForSeconds = Annotated[float, Field(gt=0, le=requests.MAX_FOR_S)]


class Canary(TypedDict):
    """The balancers of the fleet that try a change first, and for how long (seconds).

    Without `bake_s` an operator decides how the rollout ends.
    """

    nodes: Annotated[list[str], Field(min_length=1, max_length=requests.MAX_CANARIES)]
    bake_s: NotRequired[Annotated[float, Field(ge=0, le=requests.MAX_BAKE_S)]]


class EditBody(EditFields, ChangeBody):
    """One change.

    `values`: keys of the service or backend, written as in the configuration. `services.apply`
    replaces all services: its `values` have the list `services`. `for_s`: how long a change of the
    weight or the state of a backend holds. `dry_run`: only report what would change.
    `confirmed`: make it although it cuts open flows. `message`: the reason, for the history.
    """

    for_s: NotRequired[ForSeconds | None]
    canary: NotRequired[Canary | None]


class EditsBody(ChangeBody):
    """Several changes, of which all or none are made.

    Each of `edits` has `op`, `service`, `backend` and `values`. The other fields are as for one
    change.
    """

    edits: Annotated[list[EditFields], Field(min_length=1, max_length=requests.MAX_EDITS)]
    for_s: NotRequired[ForSeconds | None]
    canary: NotRequired[Canary | None]


class RollbackBody(ChangeBody):
    """The version to restore, of all services or of one. The other fields are as in an edit."""

    version: int
    service: NotRequired[str | None]


type Prefixes = Annotated[list[str], Field(min_length=1, max_length=requests.MAX_PREFIXES)]


class BlockBody(TypedDict):
    """The addresses and prefixes to block, for how long (600 s if it is left out), and why.

    `confirmed`: block them although a prefix is very large.
    """

    prefixes: Prefixes
    for_s: NotRequired[float]
    why: NotRequired[Reason]
    confirmed: NotRequired[bool]


class UnblockBody(TypedDict):
    """The addresses and prefixes to serve again."""

    prefixes: Prefixes


class MoveBody(TypedDict, total=False):
    """Which instance to move, and how. Without `instance`: all of them.

    `force`: even if the other balancer lacks flows. `dry_run`: only report how the VIPs would move.
    """

    instance: str | None
    force: bool
    dry_run: bool
    message: Reason
