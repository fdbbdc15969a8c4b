"""The shape of the configuration document, as the operator writes it.

The reference (docs/configuration.md) is generated from this file. What spans several values
(a VIP twice, a check that needs a port) is in ``agent.config.rules``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.config import kinds
from agent.config.defaults import default_check_timeout
from agent.config.durations import format_duration
from agent.model import (
    AdminState,
    CheckKind,
    DownFlows,
    Forward,
    HealthCheck,
    KernelHeaders,
    Protocol,
    Scheduler,
    Tables,
    XdpMode,
)

_CHECK = HealthCheck()
_TABLES = Tables()


class Section(BaseModel):
    """A mapping of the document. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class TablesSection(Section):
    """Sizes of the tables that the kernel and the agent share.

    A change takes effect at the next start of the agent, which makes new tables then: flows that
    are open at that moment are not remembered.
    """

    flows: kinds.FlowSlots = Field(
        _TABLES.flows,
        description="Slots of the flow table. A slot takes 8 bytes, and 64 more for what `lbctl "
        "flows` shows; twice the expected number of open flows is a good size.",
    )
    services: kinds.TableSize = Field(
        _TABLES.services, description="How many services there can be, plus one."
    )
    backends: kinds.TableSize = Field(
        _TABLES.backends,
        description="How many backends there can be, those of all services together, plus one.",
    )
    ring_slots: kinds.RingSlots = Field(
        _TABLES.ring_slots,
        description="Slots of each service's ring. At least 100 for every backend of the largest "
        "service keeps the shares within 1 % of the weights.",
    )


class IpipSourceSection(Section):
    """Source addresses of the outer header of `ipip` packets.

    Without them, the address that the kernel would send from. Backends that filter by source
    (rp_filter) need to be able to route it.
    """

    ipv4: kinds.AddressV4 | None = Field(None, description="For backends with IPv4 addresses.")
    ipv6: kinds.AddressV6 | None = Field(None, description="For backends with IPv6 addresses.")


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
        None, description="A FIN or RST was seen. Default: `30s`."
    )


class HealthSection(Section):
    """How the health of the backends is checked."""

    type: Annotated[CheckKind, *kinds.choice(CheckKind)] | None = Field(
        None,
        description="`tcp`: a connection can be opened. `http`, `https`: a request is answered "
        "with an expected status. `none`: never checked, always up. Default: `tcp` for tcp "
        "services, `none` for udp.",
    )
    port: kinds.Port | None = Field(
        None,
        description="Port to check. Default: the port of the service. Required for a check of a "
        "udp service or of a service for any port.",
    )
    interval: kinds.Interval = Field(
        _CHECK.interval_s, description="Time from one check to the next."
    )
    timeout: kinds.CheckTimeout | None = Field(
        None,
        description="A check that takes longer has failed. Default: `1s`, or `interval` if that "
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
    method: kinds.Method = Field(_CHECK.method, description="Method of the request.")
    path: kinds.RequestPath = Field(_CHECK.path, description="Path of the request, query included.")
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


class DefaultsSection(Section):
    """What holds for every service that does not say otherwise.

    `timeouts` and `health` are merged key by key. A service whose health type is another one than
    that of the defaults does not inherit what its type has no use for.
    """

    forward: Annotated[Forward, *kinds.choice(Forward)] = Field(
        Forward.DSR,
        description="How packets reach the backends. `dsr`: with a new MAC address, so the "
        "backends must be on the same segment. `ipip`: in an outer IP header, so they can be "
        "anywhere. In both, backends have the VIP on a loopback interface and answer the client "
        "directly.",
    )
    scheduler: Annotated[Scheduler, *kinds.choice(Scheduler)] = Field(
        Scheduler.MAGLEV,
        description="How a backend is chosen for a new flow. `maglev`: by weighted consistent "
        "hashing, the same on every balancer with the same configuration.",
    )
    down_flows: Annotated[DownFlows, *kinds.choice(DownFlows)] = Field(
        DownFlows.KEEP,
        description="What happens to the open flows of a backend that goes down. `keep`: they go "
        "on going there, and survive if it comes back. `reroute`: they go to other backends at "
        "once, which reset TCP connections that they do not know.",
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
    address: kinds.UnicastAddress = Field(
        description="Address of the server, of the VIP's family if `forward` is `dsr`. Packets "
        "keep their destination port."
    )
    weight: kinds.Weight = Field(
        100,
        description="Share of new flows, in proportion to the weights of the others. 0: no new "
        "flows, open ones stay.",
    )
    state: Annotated[AdminState, *kinds.choice(AdminState)] = Field(
        AdminState.ACTIVE,
        description="What you want of it. `active`: serve. `drain`: no new flows, open ones "
        "finish. `maintenance`: nothing is sent there, open flows included.",
    )


class ServiceSection(DefaultsSection):
    """A VIP, port and protocol, and the backends behind them."""

    name: kinds.Name = Field(description="Name of the service, unique.")
    vip: kinds.UnicastAddress = Field(description="The address that clients connect to.")
    port: kinds.ServicePort = Field(
        description="The port that clients connect to. `any`: every port of the VIP that no "
        "other service has."
    )
    protocol: Annotated[Protocol, *kinds.choice(Protocol)] = Field(
        Protocol.TCP, description="Layer-4 protocol."
    )
    backends: tuple[BackendSection, ...] = Field((), description="The servers.")


class GlobalSection(Section):
    """The agent and its interface."""

    name: kinds.InstanceName = Field(
        "default",
        description="Name of this instance, part of the paths of its tables and state. Several "
        "agents on one host need different names, sockets and interfaces.",
    )
    interface: kinds.InterfaceName = Field(
        description="Interface on which packets for the VIPs arrive and to which XDP is attached."
    )
    xdp_mode: Annotated[XdpMode, *kinds.choice(XdpMode)] = Field(
        XdpMode.AUTO,
        description="`native`: in the driver, fast. `generic`: in the kernel's network stack, "
        "works with every driver. `auto`: native if the driver can.",
    )
    socket: kinds.SocketPath = Field(
        Path("/run/steelyard/agent.sock"), description="Unix socket of the API, for `lbctl`."
    )
    socket_group: kinds.GroupName | None = Field(
        None, description="Group whose members may use the API. Default: only root may."
    )
    state_dir: kinds.AbsolutePath = Field(
        Path("/var/lib/steelyard"),
        description="Where the running configuration is kept: what `lbctl` has changed survives "
        "a restart, until this file changes.",
    )
    metrics: kinds.Listen = Field(
        ("127.0.0.1", 9117),
        description="Where Prometheus metrics are served over HTTP. There is no authentication.",
    )
    manage_vips: bool = Field(
        True,
        description="Whether the agent adds the VIPs to the interface and removes them. Addresses "
        "that somebody else has added are left alone.",
    )
    hash_seed: kinds.Seed = Field(
        0,
        description="Seed of the choice of backends. Balancers with the same seed and services "
        "choose the same backends.",
    )
    ipip_source: IpipSourceSection = Field(
        default_factory=lambda: IpipSourceSection.model_validate({}),
        description="Source addresses for `forward: ipip`.",
    )
    kernel_headers: Annotated[KernelHeaders, *kinds.choice(KernelHeaders)] = Field(
        KernelHeaders.SHIPPED,
        description="What the program is compiled with: the few headers that come with "
        "Steelyard and serve every kernel, or the host's own below `/lib/modules`.",
    )
    tables: TablesSection = Field(
        default_factory=lambda: TablesSection.model_validate({}), description="Sizes of tables."
    )


class DocumentSection(GlobalSection):
    """The whole file."""

    defaults: DefaultsSection = Field(
        default_factory=lambda: DefaultsSection.model_validate({}),
        description="What holds for every service that does not say otherwise.",
    )
    services: tuple[ServiceSection, ...] = Field((), description="The services.")
