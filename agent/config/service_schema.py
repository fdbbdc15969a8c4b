"""The shape of ``defaults``, ``services`` and ``backends`` in the configuration document."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Annotated, Self

from pydantic import Field, model_validator

from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.defaults import DEFAULT_PROTOCOL, default_check_timeout, default_service
from agent.config.durations import format_duration
from agent.config.failover_kinds import CheckCommand
from agent.config.section import Section
from agent.config.telemetry_schema import (
    AffinitySection,
    ModelSection,
    NodeSection,
    RebalanceSection,
    TelemetrySection,
)
from agent.model import (
    PERCENTILES,
    AdminState,
    CheckKind,
    DownFlows,
    Forward,
    GuardMode,
    HealthCheck,
    Limits,
    NoBackend,
    Objective,
    Outlier,
    Protocol,
    Scheduler,
    ServiceKey,
    SynProtection,
    Via,
)

_CHECK = HealthCheck()
_OUTLIER = Outlier()
_SERVICE = default_service("default", ServiceKey(IPv4Address("192.0.2.1"), 1, Protocol.TCP))


class TimeoutsSection(Section):
    """How long a flow may be idle, by its state, before it is forgotten.

    Durations are a number of seconds or a text such as `30s`, `15m` or `1h`.
    """

    embryonic: kinds.IdleTime | None = Field(
        None, description="The client has sent one packet, as a SYN is. Default: `30s`."
    )
    acked: kinds.IdleTime | None = Field(
        None, description="The client has sent a second packet, but no data. Default: `1m`."
    )
    established: kinds.IdleTime | None = Field(
        None,
        description="The client has sent data. Default: `15m` for tcp, `2m` for udp. Set it above "
        "the longest silence of a live connection.",
    )
    closing: kinds.IdleTime | None = Field(
        None,
        description="A FIN or RST was seen. A new flow may take the place of a silent one after "
        "8 s. Default: `30s`.",
    )


class LimitsSection(Section):
    """How much may be asked of a service.

    What is beyond a limit is dropped, unless `guard` says otherwise, and counts. A source is an
    IPv4 address, or the first 64 bits of an IPv6 one. Of a rate such as `600/m`, up to 600 may
    come at once, and then one each 100 ms. See guard.md.
    """

    new_flows_per_source: kinds.NewFlows = Field(
        None, description="New flows from each source. Default: `none`."
    )
    new_flows_per_prefix: kinds.NewFlows = Field(
        None,
        description="New flows from each network: the first 24 bits of an IPv4 address, 48 of an "
        "IPv6 one. Default: `none`.",
    )
    new_flows: kinds.NewFlows = Field(None, description="New flows in all. Default: `none`.")
    packets_per_source: kinds.NewFlows = Field(
        None,
        description="Packets from each source, those of open flows too. Default: `none`.",
    )
    open_flows_per_source: kinds.MostFlows = Field(
        None,
        description="A source with so many open flows may begin no more. Counted about once a "
        "second, less often with a large flow table. Default: `none`.",
    )
    waiting_per_source: kinds.MostBytes = Field(
        None,
        description="For tcp: a source may begin no flow while so many of its request bytes wait "
        "for their answers. Counted likewise. Default: `none`.",
    )

    def model(self) -> Limits:
        """As the agent knows them."""
        return Limits(**dict(self))


class HealthSection(Section):
    """How the health of the backends is checked."""

    type: Annotated[CheckKind, *kinds.choice(CheckKind)] | None = Field(
        None,
        description="`tcp`: a connection can be opened. `http`, `https`: a request is answered "
        "with an expected status. `completion`: an engine gives a token for a tiny prompt "
        "(OpenAI's API). `grpc`: the server says that it serves (grpc.health.v1). `udp`: a "
        "datagram is not refused, or answered. `dns`: a question is answered. `ping`: an ICMP echo "
        "is answered. `exec`: a command exits with 0. `none`: never checked, always up. Default: "
        "`tcp` for tcp services, `none` for udp. See [health checks](health.md).",
    )
    port: net.Port | None = Field(
        None,
        description="Port to check. Default: the port of the backend, if it has one, else that of "
        "the service, of a range the first. Required for a check of a udp service that is not "
        "`udp`, `dns`, `ping` or `exec`, and of a service for any port whose backends have none.",
    )
    interval: kinds.Interval = Field(
        _CHECK.interval_s, description="Time from one check to the next."
    )
    timeout: kinds.CheckTimeout | None = Field(
        None,
        description="A check that takes longer has failed; time in which the agent has no CPU "
        "does not count, for up to four times as long. Default: `1s`, or `interval` if that "
        "is shorter.",
    )
    rise: kinds.Count = Field(
        _CHECK.rise, description="Successes in a row after which a backend that was down is up."
    )
    fall: kinds.Count = Field(
        _CHECK.fall, description="Failures in a row after which a backend that was up is down."
    )
    jitter: kinds.Share = Field(
        _CHECK.jitter,
        description="Each interval is varied by up to this share, so that checks spread out.",
    )
    via: Annotated[Via, *kinds.choice(Via)] = Field(
        _CHECK.via,
        description="`vip`: for tcp services with `dsr`, `ipip` or `gue`, a check also asks for a "
        "connection to the VIP in a frame as clients' packets have them, so that a backend without "
        "the VIP, or without a tunnel's end, is down. `host`: only the backend's own address is "
        "asked.",
    )
    method: kinds.Method = Field(_CHECK.method, description="Method of the request.")
    path: kinds.RequestPath | None = Field(
        None,
        description="Path of the request, query included. Default: `/`, of `completion` "
        "`/v1/completions`; what ends with `/chat/completions` is asked with a message.",
    )
    host: kinds.HostName | None = Field(
        None,
        description="Host header of the request, and the server name for TLS. Default: the "
        "backend's address.",
    )
    expect_status: kinds.Statuses = Field(
        _CHECK.expect_status,
        description='Statuses of a healthy answer: `200`, `"200-399"`, or a list of those.',
    )
    verify_tls: bool = Field(
        _CHECK.verify_tls,
        description="Whether the certificate must be valid for `host`. Without it, anything that "
        "speaks TLS on that port can pass the check.",
    )
    model: kinds.ModelName | None = Field(
        None,
        description="For `completion`: the model that is asked. Default: the first that the server "
        "lists in `/v1/models`.",
    )
    every: kinds.Interval = Field(
        _CHECK.every_s,
        description="For `completion`: time from one that was answered to the next. Every "
        "`interval` between them, a connection is opened.",
    )
    answer_within: kinds.Interval = Field(
        _CHECK.answer_within_s,
        description="For `completion`: its token may take so long. Where the packet path sees that "
        "the server answered clients meanwhile, a later one is no failure.",
    )
    grpc_service: kinds.GrpcService = Field(
        _CHECK.grpc_service,
        description="For `grpc`: the service that is asked about. Default: the server as a whole.",
    )
    send: kinds.Payload = Field(
        _CHECK.send, description="For `udp`, and for `tcp` once it is connected: what is sent."
    )
    expect: kinds.Payload | None = Field(
        None,
        description="For `tcp` and `udp`: what a reply must have in it. Default: no reply is "
        "wanted; for `udp` only an ICMP error fails then.",
    )
    query: kinds.DnsName = Field(_CHECK.query, description="For `dns`: the name in the question.")
    record: kinds.DnsRecord = Field(
        _CHECK.record, description="For `dns`: the type in the question."
    )
    command: CheckCommand = Field(
        (),
        description="For `exec`: the program and its arguments; no shell. It runs as the agent "
        "does, with the server in `STEELYARD_ADDRESS` and `STEELYARD_PORT`; the first line that it "
        "writes is shown.",
    )

    @model_validator(mode="after")
    def _timeout_fits(self) -> Self:
        if self.timeout is not None and self.timeout > self.interval:
            timeout, interval = format_duration(self.timeout), format_duration(self.interval)
            kinds.refuse(
                f"timeout {timeout} is longer than interval {interval}",
                f"set timeout to at most {interval}, or interval to at least {timeout}",
            )
        return self

    @property
    def timeout_s(self) -> float:
        """The timeout given, or its default."""
        return default_check_timeout(self.interval) if self.timeout is None else self.timeout


class OutlierSection(Section):
    """For tcp: when a backend is ejected, whatever its health check says, because its clients fail.

    What counts, and what does not: [outliers](load.md#outliers).
    """

    eject: kinds.Ejection = Field(
        _OUTLIER.eject_s,
        description="How long it gets no new flows; its open ones stay. Longer by as much each "
        "time that it is ejected again, up to ten times as long. 0: never.",
    )
    threshold: kinds.Share = Field(
        _OUTLIER.threshold,
        description="The share of its newest requests or connections that fails.",
    )
    window: kinds.OutlierWindow = Field(_OUTLIER.window_s, description="Older ones do not count.")
    requests: kinds.Count = Field(
        _OUTLIER.requests, description="So many requests or connections tell, not fewer."
    )
    max_ejected: kinds.Share = Field(
        _OUTLIER.max_ejected,
        description="The share of a service's backends that may be ejected at once; one always "
        "may, and the last one never is. 0: none is.",
    )

    def model(self) -> Outlier:
        """The frozen value."""
        return Outlier(self.eject, self.threshold, self.window, self.requests, self.max_ejected)


class SloSection(Section):
    """For tcp: what the clients of the service are promised.

    Nothing is done to keep it: it is measured, told and alarmed about
    ([objectives](load.md#objectives)). 0s: nothing is promised.
    """

    first_byte_p50: kinds.FirstByte = Field(0.0, description="Half of the first bytes come in it.")
    first_byte_p90: kinds.FirstByte = Field(0.0, description="90 % of the first bytes come in it.")
    first_byte_p95: kinds.FirstByte = Field(0.0, description="95 % of the first bytes come in it.")
    first_byte_p99: kinds.FirstByte = Field(0.0, description="99 % of the first bytes come in it.")

    def model(self) -> tuple[Objective, ...]:
        """The frozen values."""
        within_s = [getattr(self, f"first_byte_p{each}") for each in PERCENTILES]
        return tuple(Objective(*one) for one in zip(PERCENTILES, within_s, strict=True) if one[1])


class DefaultsSection(Section):
    """What holds for every service that does not say otherwise.

    `timeouts`, `health`, `outlier`, `slo`, `limits`, `telemetry`, `node`, `affinity` and
    `rebalance` are merged key by key. A service whose health type, telemetry type, scheduler or
    protocol is another one than that of the defaults does not inherit what it has no use for.
    """

    forward: Annotated[Forward, *kinds.choice(Forward)] = Field(
        Forward.DSR,
        description="How packets reach the backends. `dsr`: with a new MAC address, so the "
        "backends must be on the same segment. `ipip`: in an outer IP header, `gue`: in an outer "
        "IP and UDP header, so they can be anywhere. In these, backends have the VIP on a "
        "loopback interface and answer the client directly. `nat`: the destination is rewritten, "
        "and the balancer is the gateway by which backends answer. `fullnat`: the source too, so "
        "backends answer the balancer; they need nothing, and do not see the client's address.",
    )
    scheduler: Annotated[Scheduler, *kinds.choice(Scheduler)] = Field(
        _SERVICE.scheduler,
        description="How a backend is chosen for a new flow. `least-load`: of some drawn by weight "
        "(`draws`), the one with the least in front of it by its weight: open connections, and the "
        "request bytes that wait for an answer. `least-conn`: the one with the fewest open "
        "connections by its weight. `maglev`: by weighted consistent hashing, the same on every "
        "balancer with the same configuration. `source`: likewise, by the client's address alone. "
        "`round-robin`: in turn, by weight. For udp, `least-load` knows connections alone.",
    )
    draws: kinds.Draws = Field(
        _SERVICE.draws,
        description="For `least-load`: how many backends are compared, at most. More find a better "
        "one; fewer keep balancers that do not see each other's flows from choosing the same one. "
        "With telemetry fewer are compared by themselves, the more requests reach the servers by "
        "another way; without, set it to 8 divided by the number of balancers, at least 2.",
    )
    bytes_per_connection: kinds.RequestBytes = Field(
        _SERVICE.bytes_per_connection,
        description="For `least-load` of tcp: how many waiting request bytes weigh as much as one "
        "open connection. Raise it where bytes say little about the work, as with images or with "
        "prompts that are mostly cached.",
    )
    count_waiting: bool = Field(
        _SERVICE.count_waiting,
        description="For tcp: whether the request bytes that wait for their answer are counted, "
        "and the time to its first byte. Off, packets with payload cost less, and `least-load` "
        "knows connections alone.",
    )
    source_prefix: kinds.PrefixBits | None = Field(
        _SERVICE.source_bits,
        description="For `source`: how many bits of the client's address count: with 24, clients "
        "of one IPv4 /24 go to the same backend. Default: all.",
    )
    source_bound: kinds.Bound = Field(
        _SERVICE.source_bound,
        description="For `source`: a backend with more than this times its share of the open "
        "connections, and with 16 or more of them, is passed over for new ones. 0: never.",
    )
    slow_start: kinds.SlowStart = Field(
        _SERVICE.slow_start_s,
        description="A backend that comes up gets a small share first, and reaches that of its "
        "weight in this time.",
    )
    no_backend: Annotated[NoBackend, *kinds.choice(NoBackend)] = Field(
        _SERVICE.no_backend,
        description="What new flows get when no backend is usable, backups included. `drop`: no "
        "answer. `reset`: a TCP reset, or for udp an ICMP error. `any`: any backend that can be "
        "reached and is not in maintenance, its health notwithstanding.",
    )
    panic: kinds.Share = Field(
        _SERVICE.panic,
        description="While fewer of the backends than this share are up, all get new flows that "
        "can be reached: more likely the checks are wrong, or the few would break down under the "
        "load of all. Backups, and those that the operator or the servers themselves took out, do "
        "not count. 0: never.",
    )
    syn_protection: Annotated[SynProtection, *kinds.choice(SynProtection)] = Field(
        _SERVICE.syn_protection,
        description="For tcp: whether a client that begins a connection has to show first that it "
        "is at its address, which costs it 10 ms to 3 s once in ten minutes. `auto`: while the "
        "service gets a flood of SYNs of which nothing follows. See security.md.",
    )
    syn_cookies: bool = Field(
        _SERVICE.syn_cookies,
        description="With `syn_protection`, for `dsr`, `ipip` and `gue`: clients get SYN cookies "
        "instead of being challenged, which costs them no time, while every server that can get "
        "flows runs `lb-agent companion` with the key of `companion.key_file`.",
    )
    allow: net.ListNames = Field(
        _SERVICE.allow,
        description="If given: only sources that are on one of these `lists` may begin a flow.",
    )
    deny: net.ListNames = Field(
        _SERVICE.deny,
        description="Sources that are on one of these `lists` may not begin a flow, whatever "
        "`allow` says.",
    )
    limits: LimitsSection = Field(
        default_factory=lambda: LimitsSection.model_validate({}),
        description="How much may be asked of the service, and by whom.",
    )
    guard: Annotated[GuardMode, *kinds.choice(GuardMode)] = Field(
        _SERVICE.guard,
        description="What becomes of packets from sources that are not allowed, denied, or "
        "blocked with `lbctl guard block`, and of those beyond `limits`. `enforce`: they are "
        "dropped. `dry-run`: they are served, and counted as what would have been dropped. "
        "`off`: they are served.",
    )
    down_flows: Annotated[DownFlows, *kinds.choice(DownFlows)] = Field(
        _SERVICE.down_flows,
        description="What happens to the open flows of a backend that goes down. `auto`: they are "
        "reset at the client, after `reset_after`, if nothing at all comes back from the server "
        "(connections time out, nobody answers ARP or neighbour discovery, there is no route); a "
        "server that answers, although its check fails, keeps them. `keep`: they go on going "
        "there, and survive if it comes back. `reset`: they are reset after `reset_after`, "
        "whatever the reason. `reroute`: their packets go to other backends at once, which reset "
        "TCP connections that they do not know; clients that only wait are reset after "
        "`reset_after`.",
    )
    reset_after: kinds.ResetAfter = Field(
        _SERVICE.reset_after_s,
        description="How long a backend is down before its flows are reset. When more than half of "
        "several servers fall silent together, at least a minute: it is more likely the network "
        "than all of them, and they may come back.",
    )
    learn_speed: bool = Field(
        _SERVICE.learn_speed,
        description="For `least-load` of tcp: whether weights follow how fast backends answer, as "
        "the packet path sees it: what a waiting byte and a connection cost in time. At most four "
        "times as much or as little as `weight` says; one that throttles is noticed in seconds.",
    )
    rtt_per_connection: kinds.RoundTrip = Field(
        _SERVICE.rtt_per_connection_s,
        description="For `least-load`: the round trip to a backend, as health checks measure it, "
        "that weighs as much as one connection. `0s`: how far a backend is does not matter.",
    )
    outlier: OutlierSection = Field(
        default_factory=lambda: OutlierSection.model_validate({}),
        description="When a backend is ejected because its clients fail there.",
    )
    slo: SloSection = Field(
        default_factory=lambda: SloSection.model_validate({}),
        description="How soon answers are to begin.",
    )
    affinity: AffinitySection = Field(
        default_factory=lambda: AffinitySection.model_validate({}),
        description="Whether a client's new flows go where its earlier ones went.",
    )
    telemetry: TelemetrySection = Field(
        default_factory=lambda: TelemetrySection.model_validate({}),
        description="What the engines report of their queues.",
    )
    node: NodeSection = Field(
        default_factory=lambda: NodeSection.model_validate({}),
        description="What the hosts report of their GPUs.",
    )
    rebalance: RebalanceSection = Field(
        default_factory=lambda: RebalanceSection.model_validate({}),
        description="Whether idle connections of overloaded backends are reset.",
    )
    timeouts: TimeoutsSection = Field(
        default_factory=lambda: TimeoutsSection.model_validate({}),
        description="Idle timeouts of flows.",
    )
    health: HealthSection = Field(
        default_factory=lambda: HealthSection.model_validate({}),
        description="The health check of the backends.",
    )


class BackendSection(Section):
    """One server of a service."""

    name: kinds.Name = Field(description="Name of the backend, unique in its service.")
    address: net.UnicastAddress = Field(
        description="Address of the server, of the VIP's family unless `forward` is `ipip` or "
        "`gue`."
    )
    port: net.Port | None = Field(
        None,
        description="For `nat` and `fullnat`: the server's port. One address may be there several "
        "times, with different ports. Default: packets keep their destination port.",
    )
    weight: kinds.Weight = Field(
        100,
        description="Share of new flows, in proportion to the weights of the others. 0: no new "
        "flows, open ones stay.",
    )
    backup: bool = Field(
        False,
        description="Whether it gets new flows only while no other backend is usable.",
    )
    priority: kinds.Priority = Field(
        0,
        description="Backends of the lowest number get the new flows. Where less than 72 % of "
        "their weight is usable, the next take over what they lack.",
    )
    zone: kinds.Name | None = Field(
        None,
        description="Where it is, a name of `zones`. Among those of one priority, backends of the "
        "client's zone come before the others.",
    )
    quic_server_id: kinds.QuicId | None = Field(
        None,
        description="What it puts into its QUIC connection ids, for `quic_server_id_bytes`. "
        "Unique in the service.",
    )
    state: Annotated[AdminState, *kinds.choice(AdminState)] = Field(
        AdminState.ACTIVE,
        description="What you want of it. `active`: serve. `drain`: no new flows, open ones "
        "finish. `maintenance`: nothing is sent there, open flows included.",
    )


class ServiceSection(DefaultsSection):
    """A VIP, port and protocol, and the backends behind them."""

    name: kinds.Name = Field(description="Name of the service, unique.")
    vip: net.Vip = Field(
        description="The address that clients connect to, or a prefix of addresses. The agent does "
        "not add the addresses of a prefix: route it to the balancer. Of several prefixes that "
        "hold an address the longest wins, and a VIP of that address alone wins over them, "
        "whatever the port."
    )
    port: net.ServicePorts = Field(
        description="The port that clients connect to, or a range of ports. `any`: every port of "
        "the VIP that no other service has. A service for one port wins over a range, and a range "
        "over `any`."
    )
    protocol: Annotated[Protocol, *kinds.choice(Protocol)] = Field(
        DEFAULT_PROTOCOL, description="Layer-4 protocol."
    )
    quic_server_id_bytes: kinds.QuicIdBytes | None = Field(
        None,
        description="For udp: a QUIC packet goes to the backend whose `quic_server_id`, of so many "
        "bytes, follows the first byte of its connection id (draft-ietf-quic-load-balancers, not "
        "encrypted). So a client keeps its backend when its address changes. Default: connection "
        "ids mean nothing.",
    )
    model: ModelSection | None = Field(
        None,
        description="The model that a backend must have loaded. Default: any, or none.",
    )
    backends: tuple[BackendSection, ...] = Field((), description="The servers.")

    @property
    def key(self) -> ServiceKey:
        """What the packet path knows the service by."""
        first, last = self.port
        if isinstance(self.vip, IPv4Network | IPv6Network):
            address, bits = self.vip.network_address, self.vip.prefixlen
            return ServiceKey(address, first, self.protocol, last, bits)
        return ServiceKey(self.vip, first, self.protocol, last)
