"""The shape of the configuration document, as the operator writes it.

The reference (docs/configuration.md) is generated from this file and ``service_schema``. What
spans several values (a VIP twice, a check that needs a port) is in ``agent.config.rules``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.failover_schema import FailoverSection
from agent.config.section import Section
from agent.config.service_schema import DefaultsSection, ServiceSection
from agent.model import BackendMetrics, Config, Hook, KernelHeaders, Nat, StatusPage, Tables

_TABLES = Tables()
_NAT = Nat()
_PAGE = StatusPage()
_CONFIG = Config(name="default", interface="")


class TablesSection(Section):
    """Sizes of the tables that the kernel and the agent share.

    A change takes effect at the next start of the agent, which makes new tables then and carries
    the recorded flows over. For that moment there are both, the old and the new ones.
    """

    flows: kinds.FlowSlots = Field(
        _TABLES.flows,
        description="Slots of the flow table. A slot takes 136 bytes: 8 that each packet "
        "looks at, the rest for requests, NAT and `lbctl flows`; twice the expected number of "
        "open flows is a good size.",
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
        description="The most slots that a service's ring has: it takes 100 to 200 a backend. "
        "At least 100 for every backend of the largest service keeps the shares within 1 % of the "
        "weights.",
    )
    zone_rings: kinds.ZoneRings = Field(
        _TABLES.zone_rings,
        description="How many rings for clients of a zone there can be, those of all services "
        "together: a service takes one for each zone that its backends are in.",
    )
    nat_blocks: kinds.NatBlocks = Field(
        _TABLES.nat_blocks,
        description="How many blocks of `nat.ports` there are. In `fullnat` each source address "
        "has a block for each server (address, port and protocol of a backend), so that all of "
        "`nat.ports` can be used towards each server. When there are more, some share a block. A "
        "block takes 64 bytes a port, 1.4 MB by default.",
    )

    guard_nodes: kinds.GuardNodes = Field(
        _TABLES.guard_nodes,
        description="Room for `lists` and blocks: nodes of 64 bytes, 8 MB by default. A list of "
        "each family takes 4096, and one to four for every IPv4 prefix that lies alone, 20 for an "
        "IPv6 /96; a list that changes needs room for the old one and the new one.",
    )


class TunnelSourceSection(Section):
    """Source addresses of the outer header of `ipip` and `gue` packets.

    Without them, the address that the kernel would send from. Backends that filter by source
    (rp_filter) need to be able to route it.
    """

    ipv4: net.AddressV4 | None = Field(None, description="For backends with IPv4 addresses.")
    ipv6: net.AddressV6 | None = Field(None, description="For backends with IPv6 addresses.")


class GueSection(Section):
    """Generic UDP encapsulation, what `forward: gue` puts around a packet."""

    port: net.Port = Field(
        _CONFIG.gue_port,
        description="UDP port of the backends that takes the packets, as in `ip fou add port 6080 "
        "gue`.",
    )


class CompanionSection(Section):
    """`lb-agent companion` on the servers, for `syn_cookies` of a service."""

    key_file: kinds.AbsolutePath | None = Field(
        _CONFIG.companion_key_file,
        description="A file with the key that balancers and servers share: a line of 32 "
        "hexadecimal digits, as of `openssl rand -hex 16`, and a second one while the key "
        "changes. It is read again when it changes.",
    )
    port: net.Port = Field(
        _CONFIG.companion_port,
        description="The TCP port at which the companions of all servers answer.",
    )


class NatSection(Section):
    """From where `forward: fullnat` speaks to the backends.

    Each open flow of `fullnat` takes one source address and port towards its server: with the
    ports of the default, 22,528 flows for each source address and server. When none is free, new
    flows to that server are dropped and counted as `no-port`.
    """

    sources_ipv4: net.NatSourcesV4 = Field(
        _NAT.sources_v4,
        description="Source addresses for IPv4. They must be routed to the balancer, and nothing "
        "else may use the ports below on them. None: the address that the kernel would send from.",
    )
    sources_ipv6: net.NatSourcesV6 = Field(_NAT.sources_v6, description="Likewise for IPv6.")
    ports: net.NatPorts = Field(
        (_NAT.first_port, _NAT.last_port),
        description="Source ports. Keep clear of the ports that the host itself uses: "
        "`net.ipv4.ip_local_port_range` is 32768 to 60999 unless changed, and servers on the host "
        "have theirs. The tables hold 1 KB for each port; a change needs new ones, as one of "
        "`tables` does.",
    )


class StatusPageSection(Section):
    """A page for browsers with what `lbctl top` shows. It changes nothing.

    Who can reach it sees all of the configuration's names and addresses, and clients' addresses in
    its trace. So it listens on loopback addresses only, unless it has a token and TLS; on loopback
    addresses every user of this host can open it, unless it has a token. operations.md says how to
    reach it from elsewhere.
    """

    listen: net.Listen = Field(
        _PAGE.listen, description="Where the page is served: `127.0.0.1:9180`, say."
    )
    token_file: kinds.AbsolutePath | None = Field(
        _PAGE.token_file,
        description="A file with a token of at least 16 characters, as of `openssl rand -hex 16`. "
        "Browsers ask for it as a password; the user's name means nothing.",
    )
    certificate: kinds.AbsolutePath | None = Field(
        _PAGE.certificate,
        description="The certificate of the page's TLS, with its chain, in PEM. It and its key are "
        "read again when they change.",
    )
    key_file: kinds.AbsolutePath | None = Field(
        _PAGE.key_file, description="The certificate's private key, in PEM and without a password."
    )


class GlobalSection(Section):
    """The agent and its interface."""

    name: kinds.InstanceName = Field(
        "default",
        description="Name of this instance, part of the paths of its tables and state. Several "
        "agents on one host need different names, sockets and interfaces.",
    )
    interface: net.InterfaceName = Field(
        description="Interface on which packets for the VIPs arrive, and to which the program is "
        "attached."
    )
    backend_interfaces: net.InterfaceNames = Field(
        _CONFIG.backend_interfaces,
        description="More interfaces to attach the program to. For `nat` and `fullnat`: those on "
        "which backends answer, if it is not `interface`.",
    )
    hook: Annotated[Hook, *kinds.choice(Hook)] = Field(
        Hook.AUTO,
        description="`native`: XDP in the driver, fast. `tc`: at the ingress of traffic control, "
        "with every driver and MTU. `generic`: XDP in the kernel's network stack. `auto`: the best "
        "of these that works, in this order; on a veth not `native`, which loses packets there. "
        "`external`: the agent attaches nothing, another "
        "program, as a dispatcher, calls ours.",
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
    metrics: net.Listen = Field(
        ("127.0.0.1", 9117),
        description="Where Prometheus metrics are served over HTTP. There is no authentication.",
    )
    metrics_backends: Annotated[BackendMetrics, *kinds.choice(BackendMetrics)] = Field(
        BackendMetrics.ALL,
        description="Which metrics are served of each single backend: all, which come to 8 KB a "
        "backend; the basic ones, to little more than 1 KB; or none. docs/metrics.md says which "
        "are basic.",
    )
    status_page: StatusPageSection = Field(
        default_factory=lambda: StatusPageSection.model_validate({}),
        description="A page for browsers. Default: off.",
    )
    manage_vips: bool = Field(
        True,
        description="Whether the agent adds the VIPs to the interface and removes them. Addresses "
        "that somebody else has added are left alone, and prefixes are never added. Those of an "
        "instance of `failover` are the failover process's in any case.",
    )
    hash_seed: kinds.Seed | None = Field(
        None,
        description="Seed of the choice of backends. Balancers with the same seed and services "
        "choose the same backends; who knows it can compute which clients get which backend. "
        "Default: made of `failover.key_file`; without that, of the host's machine id; but 0, "
        "which everybody knows, where other balancers may have the same clients: with instances or "
        "peers of `failover`, a VIP that is a prefix, or `manage_vips: false`.",
    )
    tunnel_source: TunnelSourceSection = Field(
        default_factory=lambda: TunnelSourceSection.model_validate({}),
        description="Source addresses for `forward: ipip` and `gue`.",
    )
    gue: GueSection = Field(
        default_factory=lambda: GueSection.model_validate({}),
        description="What `forward: gue` needs.",
    )
    companion: CompanionSection = Field(
        default_factory=lambda: CompanionSection.model_validate({}),
        description="What `syn_cookies` needs.",
    )
    nat: NatSection = Field(
        default_factory=lambda: NatSection.model_validate({}),
        description="What `forward: fullnat` needs.",
    )
    kernel_headers: Annotated[KernelHeaders, *kinds.choice(KernelHeaders)] = Field(
        KernelHeaders.SHIPPED,
        description="What the program is compiled with: the few headers that come with "
        "Steelyard and serve every kernel, or the host's own below `/lib/modules`.",
    )
    zones: net.Zones = Field(
        _CONFIG.zones,
        description="Places, and the prefixes of the clients that are near: `{east: "
        "[10.1.0.0/16, 2001:db8:1::/48]}`. The longest prefix wins. See `zone` of a backend.",
    )
    lists: net.Lists = Field(
        _CONFIG.lists,
        description="Named sets of client addresses, for `allow` and `deny`: `{office: "
        "[198.51.100.0/24], drop: {files: [/etc/steelyard/drop.txt]}}`. A file is a text with an "
        "address or a prefix at the start of each line, or with `column` and `values` a CSV file "
        "with a heading, of which the rows count whose column has one of the values. Files that "
        "change are read again within ten seconds. See guard.md.",
    )
    tables: TablesSection = Field(
        default_factory=lambda: TablesSection.model_validate({}), description="Sizes of tables."
    )
    failover: FailoverSection = Field(
        default_factory=lambda: FailoverSection.model_validate({}),
        description="What makes several balancers behave as one.",
    )


class DocumentSection(GlobalSection):
    """The whole file."""

    defaults: DefaultsSection = Field(
        default_factory=lambda: DefaultsSection.model_validate({}),
        description="What holds for every service that does not say otherwise.",
    )
    services: tuple[ServiceSection, ...] = Field((), description="The services.")
