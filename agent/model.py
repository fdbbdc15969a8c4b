"""Defines the terms of the project as types: services, backends, checks and their states.

Everything here is a frozen value. Addresses are ``ipaddress`` objects, times are seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import NamedTuple

from agent.failover.model import Failover

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network

ANY_PORT = 0
MAX_WEIGHT = 1000
MAX_PRIORITY = 7
MAX_ZONE_PREFIXES = 65_536  # client prefixes per address family
MAX_LISTS = 30  # of addresses; as in bpf/include/abi.h
GUE_PORT = 6080
COMPANION_PORT = 9120  # TCP
NO_MAC = "00:00:00:00:00:00"
ANYWHERE = "*"  # for a listener: all addresses of both families


class Protocol(enum.Enum):
    """Layer-4 protocols that can be balanced; ``number`` is the IP protocol number."""

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        return 6 if self is Protocol.TCP else 17


class Forward(enum.Enum):
    """How a packet reaches its backend."""

    DSR = "dsr"
    IPIP = "ipip"
    GUE = "gue"
    NAT = "nat"
    FULLNAT = "fullnat"

    @property
    def is_tunnel(self) -> bool:
        """Whether packets get an outer header."""
        return self in (Forward.IPIP, Forward.GUE)

    @property
    def is_nat(self) -> bool:
        """Whether addresses are rewritten, so that answers come back through the balancer."""
        return self in (Forward.NAT, Forward.FULLNAT)


class Scheduler(enum.Enum):
    """How a backend is chosen for a new flow."""

    MAGLEV = "maglev"
    SOURCE = "source"
    ROUND_ROBIN = "round-robin"
    LEAST_CONN = "least-conn"
    LEAST_LOAD = "least-load"


class NoBackend(enum.Enum):
    """What new flows get when no backend is usable, backups included."""

    DROP = "drop"
    RESET = "reset"  # RST, or ICMP unreachable
    ANY = "any"  # fail open: any backend that is not in maintenance
    HOLD = "hold"  # they wait for the first backend


class SynProtection(enum.Enum):
    """Whether a client that begins a TCP connection first has to show that it is at its address."""

    OFF = "off"
    AUTO = "auto"  # while SYNs look like a flood
    ALWAYS = "always"


class GuardMode(enum.Enum):
    """What happens to packets from sources that are blocked, denied or not allowed."""

    ENFORCE = "enforce"
    DRY_RUN = "dry-run"  # they are counted, but served
    OFF = "off"


class Detect(enum.Enum):
    """What happens to sources that behave unlike all others of a service."""

    OFF = "off"  # nobody looks
    LOG = "log"
    BLOCK = "block"  # for ten minutes; tcp with nat or fullnat


class AdminState(enum.Enum):
    """What the operator wants of a backend."""

    ACTIVE = "active"
    DRAIN = "drain"
    MAINTENANCE = "maintenance"


class Health(enum.Enum):
    """The result of a backend's health checks."""

    UNCHECKED = "unchecked"  # no check is configured
    CHECKING = "checking"  # no verdict yet
    UP = "up"
    DOWN = "down"


class BackendState(enum.Enum):
    """The state of a backend for the data plane, from admin state, health and reachability."""

    UP = "up"
    DRAIN = "drain"
    MAINTENANCE = "maintenance"
    CHECKING = "checking"
    DOWN = "down"
    EJECTED = "ejected"  # an outlier: its clients fail
    UNREACHABLE = "unreachable"  # no next hop


class ServiceState(enum.Enum):
    """UP: all backends that should serve do; DEGRADED: only some do; DOWN: none does."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"


class Via(enum.Enum):
    """What a health check tests besides the server's own address."""

    VIP = "vip"  # the VIP, by the path of clients' packets
    HOST = "host"  # nothing else


class CheckKind(enum.Enum):
    """Protocol of a health check."""

    NONE = "none"
    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"
    COMPLETION = "completion"  # an engine must generate a token
    GRPC = "grpc"  # grpc.health.v1
    UDP = "udp"
    DNS = "dns"
    PING = "ping"  # an ICMP echo
    EXEC = "exec"  # a command


class TelemetryKind(enum.Enum):
    """The source of an engine's report."""

    NONE = "none"
    VLLM = "vllm"
    SGLANG = "sglang"
    TGI = "tgi"
    TRITON = "triton"
    TRTLLM = "trtllm"  # trtllm-serve
    RAY_SERVE = "ray-serve"
    LLAMACPP = "llamacpp"  # llama-server
    LMDEPLOY = "lmdeploy"
    NIM = "nim"  # NVIDIA NIM for LLMs
    DYNAMO = "dynamo"  # NVIDIA Dynamo: a frontend, or a worker
    OLLAMA = "ollama"
    PROMETHEUS = "prometheus"  # any page, by expressions
    AGENT_CHECK = "agent-check"  # HAProxy's text protocol


class NodeKind(enum.Enum):
    """The source of the state of a backend's GPUs."""

    NONE = "none"
    NODE_AGENT = "node-agent"  # `lb-agent node`
    DCGM = "dcgm"  # NVIDIA's dcgm-exporter


class ModelSource(enum.Enum):
    """The list that shows which models a backend has loaded."""

    OPENAI = "openai"  # GET /v1/models
    OLLAMA = "ollama"  # GET /api/ps
    TRITON = "triton"  # POST /v2/repository/index


class Hook(enum.Enum):
    """Where the program hooks in."""

    AUTO = "auto"
    NATIVE = "native"  # XDP in the driver
    TC = "tc"  # clsact ingress
    GENERIC = "generic"  # XDP in the kernel's network stack
    EXTERNAL = "external"  # not attached by the agent: another program calls it


class KernelHeaders(enum.Enum):
    """Which kernel headers BCC compiles against."""

    SHIPPED = "shipped"  # our own few, the same on every host
    HOST = "host"  # those that BCC finds below /lib/modules


class DownFlows(enum.Enum):
    """What happens to the established flows of a backend that goes down."""

    AUTO = "auto"  # reset if its host is gone, kept if it answers
    KEEP = "keep"
    RESET = "reset"
    REROUTE = "reroute"  # their packets go to other backends at once; silent flows are reset


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How a backend's health is checked. ``port`` None: the service's port.

    ``method`` to ``expect_status`` are for http and https; ``path`` and ``host`` are for
    completion, and ``host`` for grpc, too.
    """

    kind: CheckKind = CheckKind.TCP
    port: int | None = None
    interval_s: float = 2.0
    timeout_s: float = 1.0
    rise: int = 2
    fall: int = 3
    jitter: float = 0.1  # share of the interval, 0 to 1
    via: Via = Via.VIP
    method: str = "GET"
    path: str = "/"
    host: str | None = None  # Host header and TLS server name; None: the backend's address
    expect_status: tuple[tuple[int, int], ...] = ((200, 399),)  # inclusive ranges
    tls: bool = False  # completion, grpc
    verify_tls: bool = True
    model: str | None = None  # completion; None: the first that the server lists
    every_s: float = 30.0  # completion: interval; in between, a check only opens a connection
    answer_within_s: float = 10.0  # completion: time limit for the token
    grpc_service: str = ""  # empty: the server as a whole
    send: str = ""  # tcp, udp: a text, or "hex:" and digits
    expect: str | None = None  # tcp, udp: what a reply must contain; None: no reply is needed
    query: str = "."  # dns: a name
    record: str = "SOA"  # dns: a type
    command: tuple[str, ...] = ()  # exec
    run_as: str | None = None  # exec: the user of this host; None: that of the agent


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Idle seconds after which a flow in that state may be forgotten."""

    embryonic_s: float
    acked_s: float
    established_s: float
    closing_s: float


TCP_TIMEOUTS = Timeouts(embryonic_s=30, acked_s=60, established_s=900, closing_s=30)
UDP_TIMEOUTS = Timeouts(embryonic_s=30, acked_s=60, established_s=120, closing_s=30)


@dataclass(frozen=True, slots=True)
class Backend:
    """One server of one service."""

    name: str
    address: Address
    weight: int = 100  # 0 to MAX_WEIGHT; 0: no new flows
    admin: AdminState = AdminState.ACTIVE
    port: int | None = None  # nat, fullnat: its own port; None: the packet's
    backup: bool = False  # gets new flows only when no other backend is usable
    quic_server_id: bytes | None = None
    priority: int = 0  # lower ones get new flows first, 0 to MAX_PRIORITY
    zone: str | None = None  # where it is: clients of that zone are sent to it first
    discovered: bool = False  # a source of the service's ``discover`` has named it


@dataclass(frozen=True, slots=True)
class Target:
    """A server that a source of backends has named, with what the source says about it."""

    address: Address
    port: int | None = None
    name: str | None = None  # None: named after its address and port
    weight: int = 100
    admin: AdminState = AdminState.ACTIVE
    backup: bool = False
    priority: int = 0
    zone: str | None = None


SOURCES = ("file", "http", "dns", "kubernetes")  # fields of Discover, one of which is set


@dataclass(frozen=True, slots=True)
class Discover:
    """Where a service's further backends come from: one of ``SOURCES``, or none.

    ``min``, ``max`` and ``most_removed`` bound what one answer of the source may change.
    """

    file: Path | None = None  # targets as in Prometheus' file_sd, YAML or JSON
    http: str | None = None  # the URL of the same as JSON
    dns: str | None = None  # a name; SRV records if it begins with an underscore, else addresses
    kubernetes: str | None = None  # namespace/service, whose EndpointSlices are watched
    interval_s: float = 30.0  # http: between questions; dns: the longest time between them
    timeout_s: float = 10.0  # http and dns, of one question
    port: int | None = None  # dns: the port of what has only addresses
    server: tuple[str, int] | None = None  # dns: whom to ask; None: as in /etc/resolv.conf
    ca_file: Path | None = None  # http: who signs the source's certificate; None: the system's
    token_file: Path | None = None  # http: sent as a bearer token
    kubeconfig: Path | None = None  # kubernetes; None: as a pod of the cluster
    port_name: str | None = None  # kubernetes, of the slices' ports; None: the only one
    match: tuple[tuple[str, str], ...] = ()  # file and http: labels that a target must have
    min: int = 1  # fewer targets are no answer
    max: int = 1000  # more targets are no answer
    most_removed: float = 0.5  # the share of the targets that one answer may leave out
    drain_s: float = 3600.0  # how long a backend that is left out keeps its open flows

    @property
    def is_on(self) -> bool:
        """Whether there is a source at all."""
        return self.source != ""

    @property
    def source(self) -> str:
        """What is asked, for people; empty: nothing."""
        for kind in SOURCES:
            if getattr(self, kind) is not None:
                return f"{kind} {getattr(self, kind)}"
        return ""


@dataclass(frozen=True, slots=True)
class Override:
    """What an operator decided about a discovered backend; None: what its source says."""

    address: Address
    port: int | None = None
    weight: int | None = None
    admin: AdminState | None = None


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Where and how often the engine of each backend of a service is asked for its load.

    ``port`` None: the port that health checks use. ``path`` None: the engine's usual path.
    ``running``, ``waiting`` and ``kv_usage`` are expressions for PROMETHEUS only.
    """

    kind: TelemetryKind = TelemetryKind.NONE
    port: int | None = None
    path: str | None = None
    tls: bool = False
    interval_s: float = 0.2
    timeout_s: float = 0.4
    running: str | None = None
    waiting: str | None = None
    kv_usage: str | None = None


@dataclass(frozen=True, slots=True)
class NodeTelemetry:
    """Where and how often the state of each backend's GPUs is read; port None: the usual port."""

    kind: NodeKind = NodeKind.NONE
    port: int | None = None
    path: str = "/metrics"
    interval_s: float = 2.0
    timeout_s: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """Only backends that have loaded this model get new flows; port None: that of health checks."""

    name: str
    source: ModelSource = ModelSource.OPENAI
    port: int | None = None
    interval_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Outlier:
    """A backend is ejected if the share ``threshold`` of its clients' newest requests or
    connections fail: it gets no new flows for ``eject_s`` (0: never ejected), longer each time.

    ``requests``: how many it takes to judge, within ``window_s``. ``max_ejected``: the share of a
    service's backends that may be ejected at the same time.
    """

    eject_s: float = 30.0
    threshold: float = 0.5
    window_s: float = 30.0
    requests: int = 10
    max_ejected: float = 0.3


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective of a service: ``percentile`` % of its answers begin within ``within_s``."""

    percentile: int
    within_s: float

    @property
    def name(self) -> str:
        """The objective's name in the configuration."""
        return f"first_byte_p{self.percentile}"

    @property
    def budget(self) -> float:
        """The share of answers that may be later."""
        return (100 - self.percentile) / 100


PERCENTILES = (50, 90, 95, 99)  # the percentiles that an objective can have


class Signal(enum.Enum):
    """The kinds of load by which the wanted number of backends is computed."""

    CONNECTIONS = "connections"
    WAITING_BYTES = "waiting_bytes"
    REQUESTS = "requests"  # running and queued, as engines report
    QUEUED = "queued"  # of these, the queued ones


@dataclass(frozen=True, slots=True)
class Scale:
    """How much load one backend of a service should have; None: no target.

    ``min`` and ``max`` bound the wanted number of backends; ``max`` None: no upper bound.
    """

    connections: int | None = None
    waiting_bytes: int | None = None  # tcp
    requests: int | None = None
    queued: int | None = None
    min: int = 1
    max: int | None = None

    @property
    def targets(self) -> dict[Signal, int]:
        """The targets that are set."""
        found = {signal: getattr(self, signal.value) for signal in Signal}
        return {signal: target for signal, target in found.items() if target is not None}


class AffinityBy(enum.Enum):
    """What decides the home of a new flow."""

    NONE = "none"
    SOURCE = "source"  # the client's address


@dataclass(frozen=True, slots=True)
class Affinity:
    """A client's new flows go to its home, where the caches of its earlier requests are.

    Exception: its home has ``escape_bytes`` more to do than another backend (None: the limit is
    learned from the answers). ``prefix_bits``: how much of the client's address counts; None: all.
    """

    by: AffinityBy = AffinityBy.NONE
    prefix_bits: int | None = None
    escape_bytes: int | None = None

    @property
    def is_any(self) -> bool:
        """Whether clients have homes."""
        return self.by is not AffinityBy.NONE


@dataclass(frozen=True, slots=True)
class Rebalance:
    """Idle flows of overloaded backends are reset, so that clients connect anew.

    ``rate_per_s``: the most flows to reset per second; 0: none. ``skew``: a backend is overloaded
    if it has so many times the mean number of busy connections for its weight.
    """

    rate_per_s: float = 0.0
    idle_s: float = 30.0
    skew: float = 1.5


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone, and the prefixes of the clients in it; the longest prefix wins."""

    name: str
    clients: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class AddressList:
    """A named set of addresses: its prefixes, and those in its files.

    A file has a prefix on each line. With ``column`` it is a CSV file, of which only the rows count
    that have one of the ``values`` in that column.
    """

    name: str
    prefixes: tuple[Network, ...] = ()
    files: tuple[Path, ...] = ()
    column: str | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """The key by which the packet path looks up a service; ``port`` 0 is any port."""

    vip: Address  # for a prefix, its first address
    port: int  # for a range, its first port
    protocol: Protocol
    port_last: int | None = None  # for a range, its last port
    vip_bits: int | None = None  # for a prefix, its length

    @property
    def ports(self) -> str:
        """The ports as the operator writes them: ``80``, ``8000-8010`` or ``any``."""
        if self.port_last is not None:
            return f"{self.port}-{self.port_last}"
        return str(self.port or "any")

    @property
    def address(self) -> str:
        """The VIP as the operator writes it: an address, or a prefix."""
        return str(self.vip) if self.vip_bits is None else f"{self.vip}/{self.vip_bits}"

    def holds(self, address: Address) -> bool:
        """Return whether an address is the VIP, or is in its prefix."""
        if self.vip_bits is None or self.vip.version != address.version:
            return self.vip == address
        shift = self.vip.max_prefixlen - self.vip_bits
        return int(self.vip) >> shift == int(address) >> shift

    def __str__(self) -> str:
        vip = f"[{self.address}]" if self.vip.version == 6 else self.address
        return f"{self.protocol.value}://{vip}:{self.ports}"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many events per period, which may also come all at once."""

    events: int
    period_s: float

    def __str__(self) -> str:
        return f"{self.events}/{RATE_PERIODS[self.period_s]}"


RATE_PERIODS = {1.0: "s", 60.0: "m", 3600.0: "h"}


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a service; None: no limit.

    A source is an IPv4 address or an IPv6 /64; a prefix is a /24 or /48.
    """

    new_flows_per_source: Rate | None = None
    new_flows_per_prefix: Rate | None = None
    new_flows: Rate | None = None
    packets_per_source: Rate | None = None
    open_flows_per_source: int | None = None
    waiting_per_source: int | None = None  # request bytes that wait for their answer

    @property
    def is_any(self) -> bool:
        """Whether there is any limit."""
        return self != Limits()

    @property
    def on_new_flows(self) -> bool:
        """Whether the rate of new flows is limited."""
        return any((self.new_flows_per_source, self.new_flows_per_prefix, self.new_flows))

    @property
    def on_what_is_held(self) -> bool:
        """Whether the open flows or the waiting bytes of a source are limited."""
        return not (self.open_flows_per_source is None and self.waiting_per_source is None)


@dataclass(frozen=True, slots=True)
class Service:
    """A VIP, port and protocol, and the backends behind them."""

    name: str
    key: ServiceKey
    forward: Forward = Forward.DSR
    scheduler: Scheduler = Scheduler.MAGLEV
    timeouts: Timeouts = TCP_TIMEOUTS
    down_flows: DownFlows = DownFlows.AUTO
    reset_after_s: float = 5.0  # how long a backend must be gone before its flows are reset
    health: HealthCheck = HealthCheck()
    backends: tuple[Backend, ...] = ()
    draws: int = 8  # least-load: backends compared, 2 to 8
    bytes_per_connection: int = 250  # least-load: waiting bytes that weigh as one connection
    count_waiting: bool = True  # tcp: count the request bytes that wait for their answer
    source_bits: int | None = None  # source: bits of the client's address that count; None: all
    source_bound: float = 1.25  # source: times the mean load a backend may have; 0: no bound
    slow_start_s: float = 0.0  # a backend that comes up reaches its weight in this time
    no_backend: NoBackend = NoBackend.DROP
    panic: float = 0.0  # if the share of backends that are up is less, all get new flows
    outlier: Outlier = Outlier()  # tcp
    slo: tuple[Objective, ...] = ()  # tcp; by percentile
    scale: Scale = Scale()
    syn_protection: SynProtection = SynProtection.OFF  # tcp
    syn_cookies: bool = False  # with syn_protection; its servers run `lb-agent companion`
    allow: tuple[str, ...] = ()  # lists of the sources that may begin a flow; empty: all may
    deny: tuple[str, ...] = ()  # lists of the sources that may not
    limits: Limits = Limits()
    guard: GuardMode = GuardMode.ENFORCE
    detect: Detect = Detect.LOG
    trusted: tuple[str, ...] = ()  # lists of the sources that are never suspected
    quic_id_bytes: int | None = None  # udp: length of the server id in QUIC connection ids
    telemetry: Telemetry = Telemetry()
    node: NodeTelemetry = NodeTelemetry()
    model: ModelLoaded | None = None
    learn_speed: bool = True  # least-load with tcp: weights follow how fast backends answer
    affinity: Affinity = Affinity()  # least-load with tcp
    rtt_per_connection_s: float = 0.0  # round trip that weighs as one connection; 0: none does
    rebalance: Rebalance = Rebalance()
    discover: Discover = Discover()
    overrides: tuple[Override, ...] = ()  # of discovered backends

    @property
    def gives_cookies(self) -> bool:
        """Whether its SYNs may ever be answered with cookies."""
        return self.syn_cookies and self.syn_protection is not SynProtection.OFF


@dataclass(frozen=True, slots=True)
class Nat:
    """Source addresses and ports of fullnat; no addresses: the one that the kernel would use."""

    sources_v4: tuple[IPv4Address, ...] = ()
    sources_v6: tuple[IPv6Address, ...] = ()
    first_port: int = 10_240  # below the kernel's own ephemeral ports
    last_port: int = 32_767


@dataclass(frozen=True, slots=True)
class Tables:
    """Sizes of the shared tables; a change needs new tables."""

    flows: int = 1_048_576  # slots, a power of two
    services: int = 128
    backends: int = 4096
    ring_slots: int = 65_537  # slots of one ring, prime
    zone_rings: int = 64  # rings for the clients of zones, for all services together
    nat_blocks: int = 32  # fullnat: blocks of ports, one for each source and server
    guard_nodes: int = 131_072  # nodes of the trees of blocks and lists, 64 bytes each


class BackendMetrics(enum.Enum):
    """Which metrics are exported for each single backend."""

    ALL = "all"
    BASIC = "basic"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class StatusPage:
    """Where browsers find the status page; ``listen`` None: it is not served.

    ``token_file``: the file with the password that it asks for; None: no password.
    ``certificate`` and ``key_file``: the files for TLS; None: no TLS.
    """

    listen: tuple[str, int] | None = None
    token_file: Path | None = None
    certificate: Path | None = None
    key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Suricata:
    """Where Suricata writes its alerts, and which of them block their source.

    ``eve`` None: no alerts are read. ``block_severity``: alerts of this severity or a worse one
    (1 is the worst) block; None: none does because of its severity. ``most_blocked``: a share of
    the active sources. ``proxies``: who is believed in `X-Forwarded-For`.
    """

    eve: Path | None = None
    block_severity: int | None = None
    block_signatures: tuple[int, ...] = ()
    log_signatures: tuple[int, ...] = ()
    block_for_s: float = 600.0
    most_blocked: float = 0.05
    proxies: tuple[Network, ...] = ()

    @property
    def blocks(self) -> bool:
        """Whether any alert blocks its source."""
        return self.eve is not None and bool(self.block_severity or self.block_signatures)


class Role(enum.Enum):
    """What a caller of the API may do. Each role includes the ones before it."""

    VIEWER = "viewer"  # read
    OPERATOR = "operator"  # change weights and states, move VIPs, block sources
    ADMIN = "admin"  # everything

    def includes(self, other: Role) -> bool:
        """Return whether a caller with this role may do what the other role may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class RoleNames:
    """Who has which role: groups of the host on the API's socket, or client certificates.

    On the socket, there are no roles without any group: whoever can open it may do everything.
    """

    viewer: tuple[str, ...] = ()
    operator: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    @property
    def by_role(self) -> dict[Role, tuple[str, ...]]:
        """The names with each role."""
        return {Role.VIEWER: self.viewer, Role.OPERATOR: self.operator, Role.ADMIN: self.admin}

    @property
    def are_used(self) -> bool:
        """Whether any name has a role."""
        return any(self.by_role.values())


@dataclass(frozen=True, slots=True)
class RemoteApi:
    """Where `lb-agent api` serves the API over TLS; ``listen`` None: nowhere.

    ``client_ca``: the file with what clients' certificates must be signed by; ``crl_file``: the
    file with those that were revoked. ``user``: the user of `lb-agent api`, which may say who sends
    a request. ``roles``: by common names of clients' certificates.
    """

    listen: tuple[str, int] | None = None
    certificate: Path | None = None
    key_file: Path | None = None
    client_ca: Path | None = None
    crl_file: Path | None = None
    user: str = "steelyard-api"
    roles: RoleNames = field(default_factory=RoleNames)


@dataclass(frozen=True, slots=True)
class Etcd:
    """How etcd is reached: its members' URLs, the files for TLS, and a user where it asks for one.

    ``cert_file`` and ``key_file``: the client certificate; None: none is presented. ``user`` and
    ``password_file``: both or neither. ``prefix``: what the keys of all fleets begin with.
    """

    endpoints: tuple[str, ...] = ()
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    prefix: str = "/steelyard"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet whose services this balancer runs; ``name`` None: it runs those of its own file.

    ``node``: this balancer's name among the others; empty: the host's name. ``history``: how many
    versions are kept at least. ``lease_s``: how long the others believe a report. ``report_s``: the
    shortest interval between reports.
    """

    name: str | None = None
    node: str = ""
    etcd: Etcd = field(default_factory=Etcd)
    history: int = 500
    lease_s: float = 15.0
    report_s: float = 2.0

    @property
    def is_on(self) -> bool:
        """Whether the balancer belongs to a fleet."""
        return self.name is not None


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; ``agent.config`` ensures that it is valid."""

    name: str
    interface: str
    backend_interfaces: tuple[str, ...] = ()  # further interfaces on which packets come in
    hook: Hook = Hook.AUTO
    socket: Path = Path("/run/steelyard/agent.sock")
    socket_group: str | None = None
    socket_roles: RoleNames = field(default_factory=RoleNames)
    api: RemoteApi = field(default_factory=RemoteApi)
    script_user: str | None = None  # runs commands of checks and of failover; None: ours
    audit_required: bool = False  # refuse changes that cannot be recorded in the audit log
    state_dir: Path = Path("/var/lib/steelyard")
    metrics_listen: tuple[str, int] | None = ("127.0.0.1", 9117)
    metrics_backends: BackendMetrics = BackendMetrics.ALL
    status_page: StatusPage = field(default_factory=StatusPage)
    manage_vips: bool = True
    hash_seed: int | None = None
    tunnel_source_v4: IPv4Address | None = None
    tunnel_source_v6: IPv6Address | None = None
    gue_port: int = GUE_PORT  # UDP destination port
    companion_key_file: Path | None = None  # the file with the key of SYN cookies
    companion_port: int = COMPANION_PORT  # the port on servers where `lb-agent companion` answers
    nat: Nat = field(default_factory=Nat)
    kernel_headers: KernelHeaders = KernelHeaders.SHIPPED
    tables: Tables = field(default_factory=Tables)
    services: tuple[Service, ...] = ()
    zones: tuple[Zone, ...] = ()
    lists: tuple[AddressList, ...] = ()
    suricata: Suricata = field(default_factory=Suricata)
    failover: Failover = field(default_factory=Failover)
    fleet: Fleet = field(default_factory=Fleet)

    @property
    def admin_groups(self) -> tuple[str, ...]:
        """The groups of this host whose members may do everything."""
        group = self.socket_group
        return self.socket_roles.admin if group is None else (group, *self.socket_roles.admin)

    @property
    def interfaces(self) -> tuple[str, ...]:
        """All interfaces that get the program; the first one has the VIPs."""
        return (self.interface, *self.backend_interfaces)


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """The health of one backend, the reason, and since when (seconds since the epoch).

    ``silent``: the last check failed, and nothing at all came back from the server's host.
    ``certificate_until``: the expiry of the last certificate that was seen and accepted.
    """

    health: Health
    reason: str
    since: float
    latency_ms: float | None = None
    passes: int = 0  # consecutive
    failures: int = 0  # consecutive
    silent: bool = False
    certificate_until: float | None = None


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where packets for an address go: the MAC of the next hop, and the interface to send on.

    ``on_link``: the address itself is on the segment, as dsr needs. ``mac`` None: not resolved,
    and ``reason`` says why. ``ours``: that is because of this host's interface.
    """

    address: Address
    ifindex: int
    mac: str | None
    source_mac: str
    mtu: int
    on_link: bool
    source: Address | None = None  # the address that the kernel would send from
    reason: str = ""
    vlans: tuple[tuple[int, int], ...] = ()  # tags to put on: protocol and id, outer first
    ours: bool = False


class BackendRef(NamedTuple):
    """Names one backend of one service.

    It is a tuple because it is the key of most of the agent's mappings, and tuples are hashed and
    compared without the interpreter.
    """

    service: str
    backend: str

    def __str__(self) -> str:
        return f"{self.service}/{self.backend}"
