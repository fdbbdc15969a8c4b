"""Defines the shape of ``defaults``, ``services`` and ``backends`` in the configuration
document.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Annotated, Self

from pydantic import Field, model_validator

from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.defaults import DEFAULT_PROTOCOL, default_check_timeout, default_service
from agent.config.discover_schema import DiscoverSection, OverrideSection
from agent.config.durations import format_duration
from agent.config.failover_kinds import CheckCommand
from agent.config.section import Section
from agent.config.telemetry_schema import (
    AffinitySection,
    ModelSection,
    NodeSection,
    RebalanceSection,
    ScaleSection,
    TelemetrySection,
)
from agent.model import (
    PERCENTILES,
    AdminState,
    CheckKind,
    Detect,
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
    """How long a flow may be idle before it is forgotten, by the flow's state.

    A duration is a number of seconds or a text such as `30s`, `15m` or `1h`.
    """

    embryonic: kinds.IdleTime | None = Field(
        None, description="The client has sent only one packet, such as a SYN. Default: `30s`."
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
        description="A FIN or RST was seen. After 8 s of silence, a new flow may take its place. "
        "Default: `30s`.",
    )


class LimitsSection(Section):
    """How much clients may ask of a service.

    Packets beyond a limit are counted, and dropped unless `guard` says otherwise. A source is an
    IPv4 address, or the first 64 bits of an IPv6 address. With a rate such as `600/m`, up to 600
    may come at once, and after that one every 100 ms. See guard.md.
    """

    new_flows_per_source: kinds.NewFlows = Field(
        None, description="New flows from each source. Default: `none`."
    )
    new_flows_per_prefix: kinds.NewFlows = Field(
        None,
        description="New flows from each network: the first 24 bits of an IPv4 address, or 48 of "
        "an IPv6 address. Default: `none`.",
    )
    new_flows: kinds.NewFlows = Field(
        None, description="New flows from all sources together. Default: `none`."
    )
    packets_per_source: kinds.NewFlows = Field(
        None,
        description="Packets from each source, including those of open flows. Default: `none`.",
    )
    open_flows_per_source: kinds.MostFlows = Field(
        None,
        description="A source that has this many open flows cannot begin more. They are counted "
        "about once a second, less often with a large flow table. Default: `none`.",
    )
    waiting_per_source: kinds.MostBytes = Field(
        None,
        description="For tcp: a source cannot begin a flow while this many of its request bytes "
        "wait for their answers. They are counted as often as open flows. Default: `none`.",
    )

    def model(self) -> Limits:
        """Return the limits as the model has them."""
        return Limits(**dict(self))


class HealthSection(Section):
    """How the health of the backends is checked."""

    type: Annotated[CheckKind, *kinds.choice(CheckKind)] | None = Field(
        None,
        description="`tcp`: a connection can be opened. `http`, `https`: a request is answered "
        "with an expected status. `completion`: an engine gives a token for a tiny prompt "
        "(OpenAI's API). `grpc`: the server says that it is serving (grpc.health.v1). `udp`: a "
        "datagram is not refused, or is answered as expected. `dns`: a query is answered. `ping`: "
        "an ICMP echo is answered. `exec`: a command exits with status 0. `none`: backends are "
        "never checked, and are always up. Default: `tcp` for tcp services, `none` for udp. See "
        "[health checks](health.md).",
    )
    port: net.Port | None = Field(
        None,
        description="Port to check. Default: the port of the backend, if it has one, otherwise "
        "the port of the service (of a range, the first). It is required if a udp service has a "
        "check other than `udp`, `dns`, `ping` or `exec`, and for a service for any port whose "
        "backends have no port.",
    )
    interval: kinds.Interval = Field(_CHECK.interval_s, description="Time between two checks.")
    timeout: kinds.CheckTimeout | None = Field(
        None,
        description="A check that takes longer has failed. Time in which the agent gets no CPU "
        "does not count, up to four times the timeout. Default: `1s`, or `interval` if that is "
        "shorter.",
    )
    rise: kinds.Count = Field(
        _CHECK.rise, description="Successes in a row after which a backend that was down is up."
    )
    fall: kinds.Count = Field(
        _CHECK.fall, description="Failures in a row after which a backend that was up is down."
    )
    jitter: kinds.Share = Field(
        _CHECK.jitter,
        description="Each interval varies randomly by up to this share, so that checks spread out.",
    )
    via: Annotated[Via, *kinds.choice(Via)] = Field(
        _CHECK.via,
        description="`vip`: for tcp services with `dsr`, `ipip` or `gue`, a check also requests a "
        "connection to the VIP, in a frame like those that carry clients' packets, so that a "
        "backend without the VIP, or without the end of the tunnel, is down. `host`: only the "
        "backend's own address is checked.",
    )
    method: kinds.Method = Field(_CHECK.method, description="Method of the HTTP request.")
    path: kinds.RequestPath | None = Field(
        None,
        description="Path of the request, including any query. Default: `/`, for `completion` "
        "`/v1/completions`. A path that ends with `/chat/completions` gets a chat message instead "
        "of a prompt.",
    )
    host: kinds.HostName | None = Field(
        None,
        description="Host header of the request (`grpc`: its authority), and the server name for "
        "TLS. Default: the backend's address.",
    )
    expect_status: kinds.Statuses = Field(
        _CHECK.expect_status,
        description='Statuses of a healthy answer: `200`, `"200-399"`, or a list of those.',
    )
    tls: bool = Field(
        _CHECK.tls, description="For `completion` and `grpc`: whether the server speaks TLS."
    )
    verify_tls: bool = Field(
        _CHECK.verify_tls,
        description="Whether the certificate must be valid for `host`. If not, anything that "
        "speaks TLS on that port can pass the check.",
    )
    model: kinds.ModelName | None = Field(
        None,
        description="For `completion`: the model that gets the prompt. Default: the first that "
        "the server lists in `/v1/models`.",
    )
    every: kinds.Interval = Field(
        _CHECK.every_s,
        description="For `completion`: time from an answered prompt to the next one. Between "
        "prompts, a connection is opened every `interval`.",
    )
    answer_within: kinds.Interval = Field(
        _CHECK.answer_within_s,
        description="For `completion`: how long the token may take. It may take longer if the "
        "packet path sees that the server answers clients meanwhile.",
    )
    grpc_service: kinds.GrpcService = Field(
        _CHECK.grpc_service,
        description="For `grpc`: the service whose health is asked for. Default: the server as a "
        "whole.",
    )
    send: kinds.Payload = Field(
        _CHECK.send, description="For `udp`, and for `tcp` once it is connected: the text to send."
    )
    expect: kinds.Payload | None = Field(
        None,
        description="For `tcp` and `udp`: text that the answer must contain. Default: no answer "
        "is needed; with `udp`, only an ICMP error fails then.",
    )
    query: kinds.DnsName = Field(_CHECK.query, description="For `dns`: the name to query.")
    record: kinds.DnsRecord = Field(
        _CHECK.record, description="For `dns`: the record type to query."
    )
    command: CheckCommand = Field(
        (),
        description="For `exec`: the program and its arguments; no shell. It runs as "
        "`script_user`, or else as the agent's user, which is usually root, and finds "
        "the server in `STEELYARD_ADDRESS` and `STEELYARD_PORT`. The first line "
        "that it writes is shown as the reason.",
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
        """The configured timeout, or its default, in seconds."""
        return default_check_timeout(self.interval) if self.timeout is None else self.timeout


class OutlierSection(Section):
    """For tcp: when a backend is ejected because its clients' requests or connections fail,
    whatever its health check says.

    [Outliers](load.md#outliers) says what counts as a failure, and what does not.
    """

    eject: kinds.Ejection = Field(
        _OUTLIER.eject_s,
        description="How long it gets no new flows; its open flows stay. Each time that it is "
        "ejected again, this time is added once more, up to ten times as long. 0: it is never "
        "ejected.",
    )
    threshold: kinds.Share = Field(
        _OUTLIER.threshold,
        description="The share of its newest requests or connections that has to fail.",
    )
    window: kinds.OutlierWindow = Field(
        _OUTLIER.window_s, description="Requests and connections that are older do not count."
    )
    requests: kinds.Count = Field(
        _OUTLIER.requests,
        description="How many requests or connections are needed to judge a backend.",
    )
    max_ejected: kinds.Share = Field(
        _OUTLIER.max_ejected,
        description="The share of a service's backends that may be ejected at the same time. One "
        "always may be, and the last one never is. 0: none is.",
    )

    def model(self) -> Outlier:
        """Return the model's value."""
        return Outlier(self.eject, self.threshold, self.window, self.requests, self.max_ejected)


class SloSection(Section):
    """For tcp: what the clients of the service are promised.

    Nothing is done to keep the promise: it is measured and reported, and there are alerts for it
    ([objectives](load.md#objectives)). 0s: nothing is promised.
    """

    first_byte_p50: kinds.FirstByte = Field(
        0.0, description="Half of the first bytes come within this time."
    )
    first_byte_p90: kinds.FirstByte = Field(
        0.0, description="90 % of the first bytes come within this time."
    )
    first_byte_p95: kinds.FirstByte = Field(
        0.0, description="95 % of the first bytes come within this time."
    )
    first_byte_p99: kinds.FirstByte = Field(
        0.0, description="99 % of the first bytes come within this time."
    )

    def model(self) -> tuple[Objective, ...]:
        """Return the model's values."""
        within_s = [getattr(self, f"first_byte_p{each}") for each in PERCENTILES]
        return tuple(Objective(*one) for one in zip(PERCENTILES, within_s, strict=True) if one[1])


class DefaultsSection(Section):
    """Settings for every service that does not set its own.

    `timeouts`, `health`, `outlier`, `slo`, `scale`, `limits`, `telemetry`, `node`, `affinity` and
    `rebalance` are merged key by key. A service whose health type, telemetry type, scheduler or
    protocol differs from that of the defaults does not inherit keys that do not apply to its own.
    """

    forward: Annotated[Forward, *kinds.choice(Forward)] = Field(
        Forward.DSR,
        description="How packets reach the backends. `dsr`: with a new MAC address, so the "
        "backends must be on the same segment. `ipip`: in an outer IP header, `gue`: in an outer "
        "IP and UDP header, so they can be anywhere. In these three, backends have the VIP on a "
        "loopback interface and answer the client directly. `nat`: the destination is rewritten, "
        "and the balancer is the gateway through which backends answer. `fullnat`: the source is "
        "rewritten too, so backends answer to the balancer; they need no setup, and do not see "
        "the client's address.",
    )
    scheduler: Annotated[Scheduler, *kinds.choice(Scheduler)] = Field(
        _SERVICE.scheduler,
        description="How a backend is chosen for a new flow. `least-load`: some backends are "
        "drawn by weight (`draws`), and the one with the least load for its weight is chosen: "
        "open connections, and request bytes that wait for an answer. `least-conn`: the backend "
        "with the fewest open connections for its weight. `maglev`: by weighted consistent "
        "hashing, the same on every balancer with the same configuration. `source`: likewise, by "
        "the client's address alone. `round-robin`: in turn, by weight. For udp, `least-load` "
        "only counts connections.",
    )
    draws: kinds.Draws = Field(
        _SERVICE.draws,
        description="For `least-load`: the most backends that are compared. More find a better "
        "one; fewer keep balancers that do not see each other's flows from choosing the same one. "
        "With telemetry, the number is lowered automatically, the more requests reach the servers "
        "another way. Without telemetry, set it to 8 divided by the number of balancers, but at "
        "least 2.",
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
        "and the time to its first byte is measured. If not, packets with payload cost less, and "
        "`least-load` only counts connections.",
    )
    source_prefix: kinds.PrefixBits | None = Field(
        _SERVICE.source_bits,
        description="For `source`: how many bits of the client's address count. With 24, clients "
        "of one IPv4 /24 go to the same backend. Default: all.",
    )
    source_bound: kinds.Bound = Field(
        _SERVICE.source_bound,
        description="For `source`: a backend with more than this times its share of the open "
        "connections, and with 16 or more of them, is passed over for new ones. 0: never.",
    )
    slow_start: kinds.SlowStart = Field(
        _SERVICE.slow_start_s,
        description="A backend that comes up starts with a small share, and reaches the share of "
        "its weight within this time.",
    )
    no_backend: Annotated[NoBackend, *kinds.choice(NoBackend)] = Field(
        _SERVICE.no_backend,
        description="What happens to new flows when no backend is usable, backups included. "
        "`drop`: they get no answer. `reset`: they get a TCP reset, or for udp an ICMP error. "
        "`any`: they go to any backend that can be reached and is not in maintenance, whatever "
        "its health. `hold`: they wait for the first backend, and reach it as soon as it is up.",
    )
    panic: kinds.Share = Field(
        _SERVICE.panic,
        description="While fewer than this share of the backends are up, all backends that can be "
        "reached get new flows: the checks are probably wrong, or the few would break down under "
        "the load of all. Backups do not count, and neither do backends that the operator or the "
        "servers themselves took out. 0: never.",
    )
    syn_protection: Annotated[SynProtection, *kinds.choice(SynProtection)] = Field(
        _SERVICE.syn_protection,
        description="For tcp: whether a client that begins a connection has to prove first that "
        "it is at its address, which costs it 10 ms to 3 s once in ten minutes. `auto`: only "
        "while the service gets a flood of SYNs that no other packets follow. See security.md.",
    )
    syn_cookies: bool = Field(
        _SERVICE.syn_cookies,
        description="With `syn_protection`, for `dsr`, `ipip` and `gue`: whether clients get SYN "
        "cookies, which cost them no time, instead of being challenged. This works while every "
        "server that can get flows runs `lb-agent companion` with the key of `companion.key_file`.",
    )
    allow: net.ListNames = Field(
        _SERVICE.allow,
        description="If given, only sources on one of these `lists` may begin a flow.",
    )
    deny: net.ListNames = Field(
        _SERVICE.deny,
        description="Sources on one of these `lists` may not begin a flow, whatever `allow` says.",
    )
    limits: LimitsSection = Field(
        default_factory=lambda: LimitsSection.model_validate({}),
        description="How much clients may ask of the service.",
    )
    guard: Annotated[GuardMode, *kinds.choice(GuardMode)] = Field(
        _SERVICE.guard,
        description="What happens to packets from sources that are not on `allow`, are on `deny` "
        "or are blocked with `lbctl guard block`, and to packets beyond `limits`. `enforce`: they "
        "are dropped. `dry-run`: they are served, and counted as packets that would have been "
        "dropped. `off`: they are served.",
    )
    detect: Annotated[Detect, *kinds.choice(Detect)] = Field(
        _SERVICE.detect,
        description="What happens when a source behaves unlike all others: it has many more open "
        "or new flows, connections without a request, requests that never end, or waiting bytes. "
        "`log`: it is logged, and shown by `lbctl threats`. `block`, for tcp with `nat` or "
        "`fullnat`: it is also blocked for ten minutes. `off`: nobody looks. See guard.md.",
    )
    trusted: net.ListNames = Field(
        _SERVICE.trusted,
        description="Sources on one of these `lists` are not looked at, for example the gateway "
        "of an office.",
    )
    down_flows: Annotated[DownFlows, *kinds.choice(DownFlows)] = Field(
        _SERVICE.down_flows,
        description="What happens to the open flows of a backend that goes down. `auto`: they are "
        "reset at the client, after `reset_after`, if nothing at all comes back from the server "
        "(connections time out, nobody answers ARP or neighbour discovery, there is no route); a "
        "server that answers, although its check fails, keeps them. `keep`: they stay with the "
        "backend, and survive if it comes back. `reset`: they are reset after `reset_after`, "
        "whatever the reason. `reroute`: their packets go to other backends at once, which reset "
        "TCP connections that they do not know; clients that only wait are reset after "
        "`reset_after`.",
    )
    reset_after: kinds.ResetAfter = Field(
        _SERVICE.reset_after_s,
        description="How long a backend is down before its flows are reset. If more than half of "
        "several servers fall silent together, it is at least a minute, because a network failure "
        "is more likely then, and the servers may come back.",
    )
    learn_speed: bool = Field(
        _SERVICE.learn_speed,
        description="For `least-load` of tcp: whether weights follow how fast backends answer, as "
        "the packet path measures it: the time that a waiting byte and a connection cost. A "
        "learned weight is between a quarter of `weight` and four times as much. A backend that "
        "throttles is noticed in seconds.",
    )
    rtt_per_connection: kinds.RoundTrip = Field(
        _SERVICE.rtt_per_connection_s,
        description="For `least-load`: the round-trip time to a backend, as health checks measure "
        "it, that weighs as much as one connection. `0s`: the distance of a backend does not "
        "matter.",
    )
    outlier: OutlierSection = Field(
        default_factory=lambda: OutlierSection.model_validate({}),
        description="When a backend is ejected because its clients' requests or connections fail.",
    )
    slo: SloSection = Field(
        default_factory=lambda: SloSection.model_validate({}),
        description="How soon answers should begin.",
    )
    scale: ScaleSection = Field(
        default_factory=lambda: ScaleSection.model_validate({}),
        description="How much load one backend should have, for a scaler.",
    )
    affinity: AffinitySection = Field(
        default_factory=lambda: AffinitySection.model_validate({}),
        description="Whether a client's new flows go to the same backend as its earlier ones.",
    )
    telemetry: TelemetrySection = Field(
        default_factory=lambda: TelemetrySection.model_validate({}),
        description="What the engines report about their queues.",
    )
    node: NodeSection = Field(
        default_factory=lambda: NodeSection.model_validate({}),
        description="What the hosts report about their GPUs.",
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
    discover: DiscoverSection = Field(
        default_factory=lambda: DiscoverSection.model_validate({}),
        description="Where further backends come from.",
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
        description="For `nat` and `fullnat`: the server's port. Several backends may have the "
        "same address with different ports. Default: packets keep their destination port.",
    )
    weight: kinds.Weight = Field(
        100,
        description="Share of new flows, in proportion to the weights of the others. 0: no new "
        "flows; open ones stay.",
    )
    backup: bool = Field(
        False,
        description="Whether it gets new flows only while no other backend is usable.",
    )
    priority: kinds.Priority = Field(
        0,
        description="The backends with the lowest number get the new flows. If less than 72 % of "
        "their weight is usable, the backends with the next number get the missing share.",
    )
    zone: kinds.Name | None = Field(
        None,
        description="The zone that it is in, a name of `zones`. Among backends of the same "
        "priority, those in the client's zone are preferred.",
    )
    quic_server_id: kinds.QuicId | None = Field(
        None,
        description="The server id that it puts into its QUIC connection ids, for "
        "`quic_server_id_bytes`. It is unique in the service.",
    )
    state: Annotated[AdminState, *kinds.choice(AdminState)] = Field(
        AdminState.ACTIVE,
        description="What the backend should do. `active`: it serves. `drain`: it gets no new "
        "flows, and open ones finish. `maintenance`: it gets no packets, not even those of open "
        "flows.",
    )


class ServiceSection(DefaultsSection):
    """A VIP, port and protocol, and the backends behind them."""

    name: kinds.Name = Field(description="Name of the service, unique.")
    vip: net.Vip = Field(
        description="The address that clients connect to, or a prefix of addresses. The agent "
        "does not add the addresses of a prefix; route the prefix to the balancer. If several "
        "prefixes contain an address, the longest wins, and a VIP of that single address wins "
        "over all of them, whatever the port."
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
        description="For udp: the length of the backends' `quic_server_id`. A QUIC packet goes to "
        "the backend whose id follows the first byte of the connection id "
        "(draft-ietf-quic-load-balancers, not encrypted), so a client keeps its backend when its "
        "address changes. Default: connection ids are not used.",
    )
    model: ModelSection | None = Field(
        None,
        description="The model that a backend must have loaded. Default: the loaded model does "
        "not matter.",
    )
    backends: tuple[BackendSection, ...] = Field((), description="The servers.")
    overrides: tuple[OverrideSection, ...] = Field(
        (), description="What holds for discovered backends, whatever their source says."
    )

    @property
    def key(self) -> ServiceKey:
        """The key by which the packet path finds the service."""
        first, last = self.port
        if isinstance(self.vip, IPv4Network | IPv6Network):
            address, bits = self.vip.network_address, self.vip.prefixlen
            return ServiceKey(address, first, self.protocol, last, bits)
        return ServiceKey(self.vip, first, self.protocol, last)
