"""Decides what a lab consists of: its hosts, their addresses, and the agents' configuration.

Everything here is computed from a handful of options and touches nothing; ``wiring`` has the
commands that create it, and ``build`` runs them.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import NamedTuple

from agent.errors import ConfigError
from agent.failover.model import Failover, socket_of
from agent.model import Address, Forward, Hook, Scheduler
from lbctl.lab.engine.model import HARDWARE

RUN_ROOT = Path("/run/steelyard")
PIN_ROOT = Path("/sys/fs/bpf/steelyard")  # the tables of every agent, by instance
DEFAULT_NAME = "lab"
NODE_INTERFACE = "eth0"
BACK_INTERFACE = "eth1"  # of a balancer with two arms
PORT = 80
MAPPED_PORT = 8080  # where the servers of nat listen
# The service for prompts, with the engines' load. All others are as without engines.
PROMPTS, ENGINE_PORT = "chat", 8000
ETCD_PORT = 2379  # for clients

MAX_BALANCERS = 8
MAX_CLIENTS = 9
MAX_BACKENDS = 100
LAST_VLAN = 4094
MAX_TIME_SCALE = 100.0

# Room for outer IPv6 and UDP headers between balancer and backends; clients keep the usual MTU.
CLIENT_MTU = 1500
TUNNEL_MTU = 1600

# Third part of the addresses: the network of clients and VIPs, and in nat and fullnat a separate
# one for the backends. Each has its bridge if the balancers have an arm for it.
_FRONT, _BACK = 0, 1

# Last part of the addresses. The IPv6 ones show the same digits: 10.99.0.101 and fd99::101.
_VIP = 100  # and the addresses that balancers share in the network of the backends
_FIRST_BALANCER = 11
_FIRST_CLIENT = 21
_ETCD = 31
_FIRST_BACKEND = 101


class Role(enum.Enum):
    """What a namespace of the lab represents."""

    SWITCH = "switch"
    CLIENT = "client"
    BALANCER = "balancer"
    BACKEND = "backend"
    ETCD = "etcd"


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of a host and the cable to the switch, where its other end is ``port``."""

    interface: str
    port: str
    bridge: str
    mtu: int
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    vlan: int | None = None

    @property
    def device(self) -> str:
        """The device that has the addresses."""
        return self.interface if self.vlan is None else f"{self.interface}.{self.vlan}"


@dataclass(frozen=True, slots=True)
class Node:
    """One host of the lab: a namespace with an interface on a bridge, or two."""

    name: str
    role: Role
    namespace: str
    links: tuple[Link, ...]
    gateways: tuple[IPv4Address | IPv6Address, ...] = ()

    @property
    def ipv4(self) -> IPv4Address:
        """The address by which other hosts know it."""
        return next(a.ip for a in self.links[0].addresses if isinstance(a, IPv4Interface))

    @property
    def ipv6(self) -> IPv6Address:
        """The address by which other hosts know it."""
        return next(a.ip for a in self.links[0].addresses if isinstance(a, IPv6Interface))

    @property
    def mtu(self) -> int:
        """The MTU of its first interface."""
        return self.links[0].mtu


class Service(NamedTuple):
    """A service of the lab's balancers."""

    name: str
    vip: Address
    port: int


@dataclass(frozen=True, slots=True)
class Lab:
    """The options of a lab, and everything that follows from them.

    ``spares`` are backends that run but are in no service yet. ``weights`` are those of
    the first backends, the others have 100. ``arms`` 2: the balancers reach the backends of nat
    and fullnat by a second interface. ``vlan``: all hosts send frames with that tag.
    ``engines``: the servers behave like engines on these GPUs, assigned in turn, ``time_scale``
    times faster than real ones. ``etcd``: one more host, with a cluster of one member, for fleets.
    """

    name: str = DEFAULT_NAME
    backends: int = 3
    spares: int = 0
    balancers: int = 1
    clients: int = 1
    forward: Forward = Forward.DSR
    scheduler: Scheduler = Scheduler.MAGLEV
    hook: Hook = Hook.AUTO
    weights: tuple[int, ...] = ()
    arms: int = 1
    vlan: int | None = None
    engines: tuple[str, ...] = ()
    time_scale: float = 1.0
    etcd: bool = False

    def __post_init__(self) -> None:
        # The name is a prefix of namespace names and the name of a folder under /run.
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", self.name):
            raise ConfigError(
                f"{self.name!r} cannot be the name of a lab",
                where="lab name",
                remedy="use lower-case letters, digits and dashes, beginning with a letter",
            )
        _check_range("backends", self.backends + self.spares, MAX_BACKENDS)
        _check_range("balancers", self.balancers, MAX_BALANCERS)
        _check_range("clients", self.clients, MAX_CLIENTS)
        if self.vlan is not None and not 1 <= self.vlan <= LAST_VLAN:
            raise ConfigError(
                f"{self.vlan} is not a VLAN", where="lab", remedy=f"use 1 to {LAST_VLAN}"
            )
        if self.arms not in ((1, 2) if self.forward.is_nat else (1,)):
            raise ConfigError(
                f"balancers of {self.forward.value} cannot have {self.arms} arms",
                where="lab",
                remedy="leave it at one; in nat and fullnat there can be two",
            )
        if strange := sorted(set(self.engines) - HARDWARE.keys()):
            raise ConfigError(
                f"there is no engine {strange[0]!r}",
                where="lab",
                remedy=f"use one of: {', '.join(sorted(HARDWARE))}",
            )
        if not 0.01 <= self.time_scale <= MAX_TIME_SCALE:
            raise ConfigError(
                f"engines cannot be {self.time_scale:g} times faster than real ones",
                where="lab",
                remedy=f"use 0.01 to {MAX_TIME_SCALE:.0f}",
            )

    @property
    def run_dir(self) -> Path:
        """The folder for the lab's configuration, sockets, logs and pid files."""
        return RUN_ROOT / self.name

    @property
    def switch(self) -> str:
        """The namespace of the bridge."""
        return f"{self.name}-switch"

    @property
    def vips(self) -> tuple[IPv4Address, IPv6Address]:
        """The addresses that clients connect to."""
        vip4, vip6 = _addresses(_FRONT, _VIP)
        return vip4.ip, vip6.ip

    @property
    def paired(self) -> bool:
        """Whether there is more than one balancer, so that one can take over from another."""
        return self.balancers > 1

    @property
    def inside(self) -> tuple[Address, ...]:
        """The shared addresses by which backends know several balancers: they move with the VIPs.

        In nat they are the backends' gateway, in fullnat the source of their packets.
        """
        back = tuple(address.ip for address in _addresses(_BACK, _VIP))
        return back if self.paired and self.forward.is_nat else ()

    @property
    def server_port(self) -> int:
        """The port of the HTTP servers; in nat it differs from the VIPs'."""
        return MAPPED_PORT if self.forward is Forward.NAT else PORT

    @property
    def services(self) -> tuple[Service, ...]:
        """The services of the balancers; with engines, one more, for prompts."""
        vip4, vip6 = self.vips
        web = (Service("web", vip4, PORT), Service("web6", vip6, PORT))
        return (*web, Service(PROMPTS, vip4, ENGINE_PORT)) if self.engines else web

    def engine(self, backend: Node) -> str | None:
        """Return the GPU of a backend's engine; None: it has the small server."""
        index = self.nodes(Role.BACKEND).index(backend)
        return self.engines[index % len(self.engines)] if self.engines else None

    def nodes(self, *roles: Role) -> tuple[Node, ...]:
        """Return the hosts of the given roles; of all roles if none is given."""
        wanted = roles or tuple(Role)
        balancers = [f"lb{i}" for i in range(1, self.balancers + 1)]
        clients = ["client", *(f"client{i}" for i in range(2, self.clients + 1))]
        backends = [f"be{i}" for i in range(1, self.backends + self.spares + 1)]
        plan = (
            (Role.CLIENT, clients, _FIRST_CLIENT),
            (Role.BALANCER, balancers, _FIRST_BALANCER),
            (Role.BACKEND, backends, _FIRST_BACKEND),
            (Role.ETCD, ["etcd"] if self.etcd else [], _ETCD),
        )
        return tuple(
            self._node(name, role, first + offset)
            for role, names, first in plan
            if role in wanted
            for offset, name in enumerate(names)
        )

    def node(self, name: str) -> Node:
        """Return the host called ``be1`` or ``lab-be1``."""
        for node in self.nodes():
            if name in (node.name, node.namespace):
                return node
        names = ", ".join(node.name for node in self.nodes())
        raise ConfigError(
            f"there is no node {name!r}", where=f"lab {self.name}", remedy=f"use one of: {names}"
        )

    def namespaces(self) -> tuple[str, ...]:
        """Return every namespace, the switch first."""
        return (self.switch, *(node.namespace for node in self.nodes()))

    @property
    def etcd_urls(self) -> tuple[str, ...]:
        """The URLs of the members of etcd, for clients; empty if the lab has none."""
        return tuple(f"http://{node.ipv4}:{ETCD_PORT}" for node in self.nodes(Role.ETCD))

    def weight(self, index: int) -> int:
        """Return the configured weight of the backend with this index, from 0."""
        return self.weights[index] if index < len(self.weights) else 100

    def socket(self, balancer: Node) -> Path:
        """Return the API socket of a balancer's agent."""
        return self.run_dir / f"{balancer.name}.sock"

    def config_path(self, balancer: Node) -> Path:
        """Return the configuration file of a balancer's agent."""
        return self.run_dir / f"{balancer.name}.yaml"

    def failover_socket(self, balancer: Node) -> Path:
        """Return the socket of a balancer's failover process."""
        return socket_of(Failover(), self.socket(balancer))

    @property
    def key_file(self) -> Path:
        """The file with the secret that the balancers share."""
        return self.run_dir / "failover.key"

    def _node(self, name: str, role: Role, number: int) -> Node:
        front, back = _addresses(_FRONT, number), _addresses(_BACK, number)
        gateways: tuple[IPv4Address | IPv6Address, ...] = ()
        if not self.forward.is_nat or role in (Role.CLIENT, Role.ETCD):
            links = [self._link(NODE_INTERFACE, name, role, _FRONT, front)]
        elif role is Role.BACKEND:
            links = [self._link(NODE_INTERFACE, name, role, _BACK, back)]
            if self.forward is Forward.NAT:
                first = tuple(address.ip for address in _addresses(_BACK, _FIRST_BALANCER))
                gateways = self.inside or first
        elif self.arms == 1:
            links = [self._link(NODE_INTERFACE, name, role, _FRONT, front + back)]
        else:
            links = [
                self._link(NODE_INTERFACE, name, role, _FRONT, front),
                self._link(BACK_INTERFACE, f"{name}-back", role, _BACK, back),
            ]
        return Node(name, role, f"{self.name}-{name}", tuple(links), gateways)

    def _link(
        self,
        interface: str,
        port: str,
        role: Role,
        network: int,
        addresses: tuple[IPv4Interface | IPv6Interface, ...],
    ) -> Link:
        wide = self.forward.is_tunnel and role is not Role.CLIENT
        return Link(
            interface,
            port,
            bridge=f"br{network if self.arms == 2 else _FRONT}",
            mtu=TUNNEL_MTU if wide else CLIENT_MTU,
            addresses=addresses,
            vlan=self.vlan,
        )


def _check_range(what: str, value: int, highest: int) -> None:
    if not 1 <= value <= highest:
        raise ConfigError(
            f"{value} {what} cannot be built",
            where="lab",
            remedy=f"ask for 1 to {highest} {what}",
        )


def _addresses(network: int, number: int) -> tuple[IPv4Interface, IPv6Interface]:
    return (
        IPv4Interface(f"10.99.{network}.{number}/24"),
        IPv6Interface(f"fd99:0:0:{network}::{number}/64"),
    )


def owned_namespace(lab_name: str, namespace: str) -> bool:
    """Return whether a lab called ``lab_name`` makes a namespace of that name."""
    return bool(
        re.fullmatch(rf"{re.escape(lab_name)}-(switch|client\d*|lb\d+|be\d+|etcd)", namespace)
    )


def lab_command(name: str) -> str:
    """Return the command for the lab of that name: ``lbctl lab``, with its name if it needs one."""
    return "lbctl lab" if name == DEFAULT_NAME else f"lbctl lab --name {name}"
