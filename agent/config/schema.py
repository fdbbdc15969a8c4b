"""Defines the shape of the configuration document, as the operator writes it.

The reference (docs/configuration.md) is generated from this file, ``service_schema``,
``telemetry_schema``, ``failover_schema`` and ``fleet_schema``. Rules that span several values (a
duplicate VIP, a check that needs a port) are in ``agent.config.rules``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from agent.config import kinds
from agent.config import network_kinds as net
from agent.config.api_schema import ApiSection
from agent.config.failover_schema import FailoverSection
from agent.config.fleet_schema import FleetSection
from agent.config.section import Section
from agent.config.service_schema import DefaultsSection, ServiceSection
from agent.config.suricata_schema import SuricataSection
from agent.model import BackendMetrics, Config, Hook, KernelHeaders, Nat, StatusPage, Tables

_TABLES = Tables()
_NAT = Nat()
_PAGE = StatusPage()
_CONFIG = Config(name="default", interface="")


class TablesSection(Section):
    """Sizes of the tables that the kernel and the agent share.

    A change takes effect at the next start of the agent, which then makes new tables and copies the
    recorded flows into them. For that moment, both the old and the new tables take memory.
    """

    flows: kinds.FlowSlots = Field(
        _TABLES.flows,
        description="Slots of the flow table. A slot takes 136 bytes: 8 that every packet reads, "
        "and the rest for requests, NAT and `lbctl flows`. Twice the expected number of open "
        "flows is a good size.",
    )
    services: kinds.TableSize = Field(
        _TABLES.services, description="How many services there can be, plus one."
    )
    backends: kinds.TableSize = Field(
        _TABLES.backends,
        description="How many backends there can be in all services together, plus one.",
    )
    ring_slots: kinds.RingSlots = Field(
        _TABLES.ring_slots,
        description="The most slots that a service's ring can have; it uses 100 to 200 for each "
        "backend. At least 100 for each backend of the largest service keep the shares within 1 % "
        "of the weights.",
    )
    zone_rings: kinds.ZoneRings = Field(
        _TABLES.zone_rings,
        description="How many rings for clients of a zone there can be in all services together. "
        "A service takes one for each zone that its backends are in.",
    )
    nat_blocks: kinds.NatBlocks = Field(
        _TABLES.nat_blocks,
        description="How many blocks of `nat.ports` there are. In `fullnat` each source address "
        "has a block for each server (address, port and protocol of a backend), so that all of "
        "`nat.ports` can be used towards each server. If more blocks are needed than there are, "
        "some servers share one. A block takes 64 bytes for each port, 1.4 MB by default.",
    )

    guard_nodes: kinds.GuardNodes = Field(
        _TABLES.guard_nodes,
        description="Room for `lists` and blocks, in nodes of 64 bytes; 8 MB by default. A list "
        "takes 4096 nodes for each family, plus one to four for every isolated IPv4 prefix, or 20 "
        "for an IPv6 /96. A list that changes needs room for both the old and the new version.",
    )


class TunnelSourceSection(Section):
    """Source addresses of the outer header of `ipip` and `gue` packets.

    By default, packets have the address that the kernel would send from. Backends that filter by
    source address (rp_filter) must have a route to it.
    """

    ipv4: net.AddressV4 | None = Field(None, description="For backends with IPv4 addresses.")
    ipv6: net.AddressV6 | None = Field(None, description="For backends with IPv6 addresses.")


class GueSection(Section):
    """Generic UDP encapsulation, in which `forward: gue` wraps packets."""

    port: net.Port = Field(
        _CONFIG.gue_port,
        description="UDP port on which the backends receive the packets, as in `ip fou add port "
        "6080 gue`.",
    )


class CompanionSection(Section):
    """The program `lb-agent companion` on the servers, which `syn_cookies` of a service needs."""

    key_file: kinds.AbsolutePath | None = Field(
        _CONFIG.companion_key_file,
        description="A file with the key that balancers and servers share: a line of 32 "
        "hexadecimal digits, as `openssl rand -hex 16` makes it, and a second line while the key "
        "is being changed. The file is read again when it changes.",
    )
    port: net.Port = Field(
        _CONFIG.companion_port,
        description="The TCP port on which the companions of all servers answer.",
    )


class NatSection(Section):
    """The source addresses and ports from which `forward: fullnat` connects to the backends.

    Each open flow of `fullnat` takes one source address and port towards its server. The default
    ports allow 22,528 flows for each source address and server. When none is free, new flows to
    that server are dropped and counted as `no-port`.
    """

    sources_ipv4: net.NatSourcesV4 = Field(
        _NAT.sources_v4,
        description="Source addresses for IPv4. They must be routed to the balancer, and nothing "
        "else may use the ports below on them. Default: the address that the kernel would send "
        "from.",
    )
    sources_ipv6: net.NatSourcesV6 = Field(_NAT.sources_v6, description="Likewise for IPv6.")
    ports: net.NatPorts = Field(
        (_NAT.first_port, _NAT.last_port),
        description="Source ports. Keep clear of the ports that the host itself uses: "
        "`net.ipv4.ip_local_port_range` is 32768 to 60999 unless changed, and servers on the host "
        "have their own ports. The tables hold 1 KB for each port. A change needs new tables, as "
        "a change of `tables` does.",
    )


class StatusPageSection(Section):
    """A page for browsers that shows what `lbctl top` shows. It cannot change anything.

    Whoever can reach it sees all names and addresses of the configuration, and clients' addresses
    in its trace. So it listens on loopback addresses only, unless it has a token and TLS. On
    loopback addresses every user of this host can open it, unless it has a token.
    [Observe](observe.md#in-a-browser-the-status-page) says how to reach it from elsewhere.
    """

    listen: net.Listen = Field(
        _PAGE.listen, description="Where the page is served, such as `127.0.0.1:9180`."
    )
    token_file: kinds.AbsolutePath | None = Field(
        _PAGE.token_file,
        description="A file with a token of at least 16 characters, as `openssl rand -hex 16` "
        "makes it. Browsers ask for it as a password; any user name will do.",
    )
    certificate: kinds.AbsolutePath | None = Field(
        _PAGE.certificate,
        description="The page's TLS certificate with its chain, in PEM. The certificate and its "
        "key are read again when they change.",
    )
    key_file: kinds.AbsolutePath | None = Field(
        _PAGE.key_file, description="The certificate's private key, in PEM, without a password."
    )


class SocketRolesSection(Section):
    """What members of groups of this host may do on the API's socket, with `lbctl` for example.

    Each role includes the ones before it. A user with several roles has the highest one. Root and
    the agent's own user are always admins. Without any group here, everybody who can open the
    socket may do everything. A reload changes the roles. See
    [security](security.md#who-may-do-what).
    """

    viewer: kinds.GroupNames = Field(
        (),
        description="Groups that may read everything but secrets, and see what a change would do "
        "(`--dry-run`).",
    )
    operator: kinds.GroupNames = Field(
        (),
        description="Groups that may also drain, enable and disable backends and change their "
        "weights, move VIPs, block and unblock sources, accept the held answer of a source of "
        "backends, and trace.",
    )
    admin: kinds.GroupNames = Field(
        (),
        description="Groups that may do everything: also change services, apply, reload and roll "
        "back.",
    )


class AuditLogSection(Section):
    """The record of every change through the API, in `<state_dir>/<name>.audit`.

    `lbctl audit log` shows it, and `lbctl audit verify` finds out whether it was edited. See
    [security](security.md#the-audit-log).
    """

    required: bool = Field(
        _CONFIG.audit_required,
        description="Whether a change through the API is refused if it cannot be recorded, for "
        "example because the disk is full. By default it is made, and `lbctl status` and the log "
        "say that it is not recorded.",
    )


class GlobalSection(Section):
    """The agent and its interface."""

    name: kinds.InstanceName = Field(
        "default",
        description="Name of this instance, which is part of the paths of its tables and state. "
        "Several agents on one host need different names, sockets and interfaces.",
    )
    interface: net.InterfaceName = Field(
        description="Interface on which packets to the VIPs arrive. The program is attached to it."
    )
    backend_interfaces: net.InterfaceNames = Field(
        _CONFIG.backend_interfaces,
        description="More interfaces to attach the program to. For `nat` and `fullnat`: the "
        "interfaces on which backends answer, if they are not `interface`.",
    )
    hook: Annotated[Hook, *kinds.choice(Hook)] = Field(
        Hook.AUTO,
        description="Where the program is attached. `native`: XDP in the driver, the fastest. "
        "`tc`: at the ingress of traffic control, with every driver and MTU. `generic`: XDP in "
        "the kernel's network stack. `auto`: the first of these, in this order, that works; not "
        "`native` on a veth, where it loses packets. `external`: the agent attaches nothing, and "
        "another program, such as a dispatcher, calls ours.",
    )
    socket: kinds.SocketPath = Field(
        Path("/run/steelyard/agent.sock"), description="Unix socket of the API, for `lbctl`."
    )
    socket_group: kinds.GroupName | None = Field(
        None,
        description="Group whose members may do everything with the API. Default: only root may "
        "use it. `socket_roles` tells more apart.",
    )
    socket_roles: SocketRolesSection = Field(
        default_factory=lambda: SocketRolesSection.model_validate({}),
        description="Groups whose members may read, operate, or do everything. Default: none.",
    )
    script_user: kinds.UserName | None = Field(
        None,
        description="The user of this host that commands run as: those of `exec` checks and of "
        "`failover.instances[].track.scripts`. Default: the user of the process that starts them, "
        "which is usually root.",
    )
    api: ApiSection = Field(
        default_factory=lambda: ApiSection.model_validate({}),
        description="The API over TLS, for other hosts. Default: off.",
    )
    audit_log: AuditLogSection = Field(
        default_factory=lambda: AuditLogSection.model_validate({}),
        description="The record of changes.",
    )
    state_dir: kinds.AbsolutePath = Field(
        Path("/var/lib/steelyard"),
        description="Folder of the running configuration: changes made with `lbctl` survive "
        "restarts, until this file changes.",
    )
    metrics: net.Listen = Field(
        ("127.0.0.1", 9117),
        description="Where Prometheus metrics, and what scalers ask for, are served over HTTP, "
        "without authentication.",
    )
    metrics_backends: Annotated[BackendMetrics, *kinds.choice(BackendMetrics)] = Field(
        BackendMetrics.ALL,
        description="Which metrics are served for each single backend: all of them, about 8 KB "
        "for a backend; the basic ones, about 0.9 KB; or none. docs/metrics.md says "
        "which ones are basic.",
    )
    status_page: StatusPageSection = Field(
        default_factory=lambda: StatusPageSection.model_validate({}),
        description="A page for browsers. Default: off.",
    )
    manage_vips: bool = Field(
        True,
        description="Whether the agent adds the VIPs to the interface and removes them. Addresses "
        "that something else has added are left alone, and prefixes are never added. The failover "
        "process alone manages the VIPs of `failover` instances, whatever this says.",
    )
    hash_seed: kinds.Seed | None = Field(
        None,
        description="Seed of the choice of backends. Balancers with the same seed and services "
        "choose the same backends. Anybody who knows the seed can compute which clients get which "
        "backend. Default: derived from `failover.key_file`. Without that, it is derived from the "
        "host's machine id, or it is 0, which everybody knows, where other balancers may have the "
        "same clients: with instances or peers of `failover`, a VIP that is a prefix, or "
        "`manage_vips: false`.",
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
        description="Which headers the program is compiled with: the few that come with Steelyard "
        "and work for every kernel, or the host's own below `/lib/modules`.",
    )
    zones: net.Zones = Field(
        _CONFIG.zones,
        description="Zones, each with the prefixes of the clients that are near it: `{east: "
        "[10.1.0.0/16, 2001:db8:1::/48]}`. The longest prefix wins. See `zone` of a backend.",
    )
    lists: net.Lists = Field(
        _CONFIG.lists,
        description="Named sets of client addresses, for `allow`, `deny` and `trusted`: `{office: "
        "[198.51.100.0/24], drop: {files: [/etc/steelyard/drop.txt]}}`. A file is a text file "
        "with an address or a prefix at the start of each line. With `column` and `values` it is "
        "a CSV file with a heading, and only rows whose `column` has one of the `values` count. "
        "Files that change are read again within ten seconds. See guard.md.",
    )
    suricata: SuricataSection = Field(
        default_factory=lambda: SuricataSection.model_validate({}),
        description="Alerts of an intrusion detection system. Default: none are read.",
    )
    tables: TablesSection = Field(
        default_factory=lambda: TablesSection.model_validate({}), description="Sizes of tables."
    )
    failover: FailoverSection = Field(
        default_factory=lambda: FailoverSection.model_validate({}),
        description="Settings that make several balancers behave as one.",
    )
    fleet: FleetSection = Field(
        default_factory=lambda: FleetSection.model_validate({}),
        description="The fleet whose services this balancer runs. Default: none.",
    )


class DocumentSection(GlobalSection):
    """The whole file."""

    defaults: DefaultsSection = Field(
        default_factory=lambda: DefaultsSection.model_validate({}),
        description="Settings for every service that does not set its own.",
    )
    services: tuple[ServiceSection, ...] = Field((), description="The services.")
