"""Decides what a lab consists of: its namespaces, addresses, links, settings and configuration.

Everything here is computed from a handful of options and touches nothing; ``build`` makes it real.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from agent.errors import ConfigError
from agent.model import Forward, Scheduler, XdpMode

RUN_ROOT = Path("/run/steelyard")
DEFAULT_NAME = "lab"
BRIDGE = "br0"
NODE_INTERFACE = "eth0"
PORT = 80

MAX_BALANCERS = 8
MAX_CLIENTS = 9
MAX_BACKENDS = 100

# Room for an outer IPv6 header and more between balancer and backends; clients keep the usual MTU.
CLIENT_MTU = 1500
IPIP_MTU = 1600

# Last part of the addresses. The IPv6 ones show the same digits: 10.99.0.101 and fd99::101.
_VIP = 100
_FIRST_BALANCER = 11
_FIRST_CLIENT = 21
_FIRST_BACKEND = 101


class Role(enum.Enum):
    """What a namespace of the lab stands for."""

    SWITCH = "switch"
    CLIENT = "client"
    BALANCER = "balancer"
    BACKEND = "backend"


@dataclass(frozen=True, slots=True)
class Node:
    """One host of the lab: a namespace with one interface on the bridge."""

    name: str
    role: Role
    namespace: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    mtu: int


@dataclass(frozen=True, slots=True)
class Lab:
    """The options of a lab, and everything that follows from them.

    ``spares`` are backends that run but that no service names yet. ``weights`` are those of
    the first backends, the others have 100.
    """

    name: str = DEFAULT_NAME
    backends: int = 3
    spares: int = 0
    balancers: int = 1
    clients: int = 1
    forward: Forward = Forward.DSR
    scheduler: Scheduler = Scheduler.MAGLEV
    xdp_mode: XdpMode = XdpMode.AUTO
    weights: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # The name is the start of namespace names and the name of a folder under /run.
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", self.name):
            raise ConfigError(
                f"{self.name!r} cannot be the name of a lab",
                where="lab name",
                remedy="use lower-case letters, digits and dashes, beginning with a letter",
            )
        _check_range("backends", self.backends + self.spares, MAX_BACKENDS)
        _check_range("balancers", self.balancers, MAX_BALANCERS)
        _check_range("clients", self.clients, MAX_CLIENTS)

    @property
    def run_dir(self) -> Path:
        """Where the lab keeps configuration, sockets, logs and pid files."""
        return RUN_ROOT / self.name

    @property
    def switch(self) -> str:
        """The namespace of the bridge."""
        return f"{self.name}-switch"

    @property
    def vips(self) -> tuple[IPv4Address, IPv6Address]:
        """The addresses that clients connect to."""
        return _ipv4(_VIP), _ipv6(_VIP)

    def nodes(self, *roles: Role) -> tuple[Node, ...]:
        """The hosts of the given roles; of all roles if none is given."""
        wanted = roles or tuple(Role)
        balancers = [f"lb{i}" for i in range(1, self.balancers + 1)]
        clients = ["client", *(f"client{i}" for i in range(2, self.clients + 1))]
        backends = [f"be{i}" for i in range(1, self.backends + self.spares + 1)]
        plan = (
            (Role.CLIENT, clients, _FIRST_CLIENT),
            (Role.BALANCER, balancers, _FIRST_BALANCER),
            (Role.BACKEND, backends, _FIRST_BACKEND),
        )
        return tuple(
            self._node(name, role, first + offset)
            for role, names, first in plan
            if role in wanted
            for offset, name in enumerate(names)
        )

    def node(self, name: str) -> Node:
        """The host called ``be1`` or ``lab-be1``."""
        for node in self.nodes():
            if name in (node.name, node.namespace):
                return node
        names = ", ".join(node.name for node in self.nodes())
        raise ConfigError(
            f"there is no node {name!r}", where=f"lab {self.name}", remedy=f"use one of: {names}"
        )

    def namespaces(self) -> tuple[str, ...]:
        """Every namespace, the switch first."""
        return (self.switch, *(node.namespace for node in self.nodes()))

    def weight(self, index: int) -> int:
        """Configured weight of the backend with this index, from 0."""
        return self.weights[index] if index < len(self.weights) else 100

    def socket(self, balancer: Node) -> Path:
        """The API socket of a balancer's agent."""
        return self.run_dir / f"{balancer.name}.sock"

    def config_path(self, balancer: Node) -> Path:
        """The configuration file of a balancer's agent."""
        return self.run_dir / f"{balancer.name}.yaml"

    def _node(self, name: str, role: Role, number: int) -> Node:
        wide = self.forward is Forward.IPIP and role is not Role.CLIENT
        return Node(
            name=name,
            role=role,
            namespace=f"{self.name}-{name}",
            ipv4=_ipv4(number),
            ipv6=_ipv6(number),
            mtu=IPIP_MTU if wide else CLIENT_MTU,
        )


def _check_range(what: str, value: int, highest: int) -> None:
    if not 1 <= value <= highest:
        raise ConfigError(
            f"{value} {what} cannot be built",
            where="lab",
            remedy=f"ask for 1 to {highest} {what}",
        )


def _ipv4(number: int) -> IPv4Address:
    return IPv4Address(f"10.99.0.{number}")


def _ipv6(number: int) -> IPv6Address:
    return IPv6Address(f"fd99::{number}")


def owned_namespace(lab_name: str, namespace: str) -> bool:
    """Whether a namespace of that name is one that a lab called ``lab_name`` makes."""
    return bool(re.fullmatch(rf"{re.escape(lab_name)}-(switch|client\d*|lb\d+|be\d+)", namespace))


def sysctls(role: Role) -> dict[str, str]:
    """Kernel settings of a namespace, to be written before its interfaces are made.

    Paths are relative to ``/proc/sys/net``; ``conf/default`` is what a new interface begins with.
    """
    settings = {
        # A lab host is no router: a namespace inherits forwarding from the machine that made it.
        "ipv4/ip_forward": "0",
        "ipv6/conf/all/forwarding": "0",
        # A VIP's answer comes from an address of lo, a decapsulated packet by another way.
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        # Addresses work at once, and nothing but the lab configures them.
        "ipv6/conf/default/accept_dad": "0",
        "ipv6/conf/all/accept_dad": "0",
        "ipv6/conf/default/accept_ra": "0",
        # Where the default is bbr: without the fq queueing discipline it paces badly on a veth.
        # reno, because a namespace may choose no other than that and the default.
        "ipv4/tcp_congestion_control": "reno",
    }
    if role is Role.SWITCH:
        # Bridged frames must not run through the host's netfilter rules.
        for table in ("iptables", "ip6tables", "arptables"):
            settings[f"bridge/bridge-nf-call-{table}"] = "0"
        settings["ipv6/conf/default/disable_ipv6"] = "1"
    if role is Role.CLIENT:
        # One connection per request uses up ports quickly.
        settings |= {"ipv4/ip_local_port_range": "1024 65535", "ipv4/tcp_tw_reuse": "1"}
    if role is Role.BACKEND:
        # The VIP on lo is for receiving only: never answer or send ARP with it.
        settings |= {"ipv4/conf/all/arp_ignore": "1", "ipv4/conf/all/arp_announce": "2"}
    return settings


def switch_commands(lab: Lab) -> list[str]:
    """``ip`` commands, run in the switch's namespace, that lay every cable."""
    widest = max(node.mtu for node in lab.nodes())
    commands = [
        "link set lo up",
        f"link add {BRIDGE} mtu {widest} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"link set {BRIDGE} up",
    ]
    for node in lab.nodes():
        far_end = f"peer name {NODE_INTERFACE} mtu {node.mtu} netns {node.namespace}"
        commands += [
            f"link add {node.name} mtu {widest} type veth {far_end}",
            f"link set {node.name} master {BRIDGE} up",
        ]
    return commands


def node_commands(lab: Lab, node: Node) -> list[str]:
    """``ip`` commands, run in the node's namespace, that give it its addresses."""
    commands = [
        "link set lo up",
        f"link set {NODE_INTERFACE} up",
        f"address add {node.ipv4}/24 dev {NODE_INTERFACE}",
        f"address add {node.ipv6}/64 dev {NODE_INTERFACE} nodad",
    ]
    if node.role is Role.BACKEND:
        vip4, vip6 = lab.vips
        commands += [
            f"address add {vip4}/32 dev lo",
            f"address add {vip6}/128 dev lo nodad",
        ]
    return commands


def agent_document(lab: Lab, balancer: Node) -> dict[str, object]:
    """The configuration document of a balancer's agent."""
    vip4, vip6 = lab.vips
    document: dict[str, object] = {
        "name": balancer.namespace,
        "interface": NODE_INTERFACE,
        "xdp_mode": lab.xdp_mode.value,
        "socket": str(lab.socket(balancer)),
        "state_dir": str(lab.run_dir / "state"),
        "metrics": "127.0.0.1:9117",
        # One balancer answers for the VIPs; the others stand by with the same tables.
        "manage_vips": balancer.name == "lb1",
        "tables": {"flows": 65536},
        "defaults": {
            "forward": lab.forward.value,
            "scheduler": lab.scheduler.value,
            "health": {
                "type": "http",
                "path": "/health",
                "interval": "500ms",
                "timeout": "500ms",
                "rise": 2,
                "fall": 2,
            },
        },
        "services": [
            {"name": "web", "vip": str(vip4), "port": PORT, "backends": _backends(lab, 4)},
            {"name": "web6", "vip": str(vip6), "port": PORT, "backends": _backends(lab, 6)},
        ],
    }
    if lab.forward is Forward.IPIP:
        document["ipip_source"] = {"ipv4": str(balancer.ipv4), "ipv6": str(balancer.ipv6)}
    return document


def _backends(lab: Lab, family: int) -> list[dict[str, object]]:
    return [
        {
            "name": node.name,
            "address": str(node.ipv4 if family == 4 else node.ipv6),
            "weight": lab.weight(index),
        }
        for index, node in enumerate(lab.nodes(Role.BACKEND)[: lab.backends])
    ]


def to_document(lab: Lab) -> dict[str, object]:
    """The options of a lab as JSON values; ``from_document`` reads them back."""
    return {
        key: value.value if isinstance(value, enum.Enum) else value
        for key, value in asdict(lab).items()
    }


def from_document(document: Mapping[str, object]) -> Lab:
    """A lab from what ``to_document`` wrote; raises ConfigError on anything else."""
    try:
        return Lab(
            name=str(document["name"]),
            backends=int(str(document["backends"])),
            spares=int(str(document["spares"])),
            balancers=int(str(document["balancers"])),
            clients=int(str(document["clients"])),
            forward=Forward(document["forward"]),
            scheduler=Scheduler(document["scheduler"]),
            xdp_mode=XdpMode(document["xdp_mode"]),
            weights=tuple(int(weight) for weight in document["weights"]),  # type: ignore[attr-defined]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the options of the lab cannot be read: {error!r}",
            where="lab.json",
            remedy="remove what is left of it: `lbctl lab down`, with --name if it has one",
        ) from error


def lab_command(name: str) -> str:
    """How the lab of that name is spoken to: ``lbctl lab``, with its name if it needs one."""
    return "lbctl lab" if name == DEFAULT_NAME else f"lbctl lab --name {name}"
