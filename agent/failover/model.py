"""Defines the types of failover: what is configured, and what each node of a pair is.

Everything here is a frozen value. Addresses are ``ipaddress`` objects, times are seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

type Address = IPv4Address | IPv6Address

OWNER = 255  # priority of the node whose own addresses the VIPs are (RFC 9568, section 5.2.4)
PROMOTED = 254  # what a promoted node advertises
HANDED_OVER = 1  # what a node that has handed over advertises
LEAVING = 0  # what a master that stops advertises
DEFAULT_SYNC_PORT = 9118


class Role(enum.Enum):
    """The role of a node in one instance."""

    INIT = "init"  # not started
    BACKUP = "backup"
    MASTER = "master"  # this node has the VIPs
    FAULT = "fault"  # this node may not be master


class Mode(enum.Enum):
    """What the operator wants of this node, regardless of its priority."""

    NORMAL = "normal"
    PROMOTED = "promoted"  # master until it is released
    HANDED_OVER = "handed-over"  # behind all others until it is released


class Method(enum.Enum):
    """How the nodes decide which of them has the VIPs."""

    VRRP = "vrrp"
    ANNOUNCE = "announce"  # every fit node has them, and a routing daemon announces them


class Authentication(enum.Enum):
    """How adverts are authenticated."""

    NONE = "none"
    PASSWORD = "password"  # noqa: S105 (v2: the first 8 bytes of the password, in the clear)
    AH = "ah"  # v2: IPsec authentication header, HMAC-MD5-96
    HMAC = "hmac"  # v3, between Steelyard balancers only: HMAC-SHA-256 after the advert


class Checksum(enum.Enum):
    """What the checksum of a v3 advert over IPv4 covers."""

    V3 = "v3"  # the advert and the pseudo-header (RFC 9568)
    V2 = "v2"  # the advert alone: keepalived's v3_checksum_as_v2


@dataclass(frozen=True, slots=True)
class TrackedInterface:
    """An interface that has to be up.

    While it is down, the node is in FAULT if ``weight`` is 0; otherwise its priority is lower by
    ``weight``.
    """

    name: str
    weight: int = 0


@dataclass(frozen=True, slots=True)
class TrackedScript:
    """A command that reports that all is well with exit status 0.

    ``weight`` 0: the node is in FAULT while the command fails; below 0: added to the priority while
    it fails; above 0: added while it succeeds (as keepalived's vrrp_script).
    """

    name: str
    command: tuple[str, ...]
    interval_s: float = 1.0
    timeout_s: float = 1.0
    rise: int = 1
    fall: int = 1
    weight: int = 0
    run_as: str | None = None  # the user of this host; None: that of the failover process


@dataclass(frozen=True, slots=True)
class Track:
    """What a node's priority depends on. Its own interface is always tracked, with weight 0.

    ``services``: how much the priority drops while none of the services whose VIPs the instance has
    has a backend that is up; 0: not tracked. ``dataplane``: the node is in FAULT while the agent's
    program is not attached. ``agent``: how much the priority drops once the agent has been away for
    ``agent_grace_s``.
    """

    interfaces: tuple[TrackedInterface, ...] = ()
    scripts: tuple[TrackedScript, ...] = ()
    services: int = 50
    dataplane: bool = True
    agent: int = 20
    agent_grace_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Announcements:
    """The gratuitous ARP and unsolicited NA frames that a master sends for each of its VIPs.

    It sends ``repeat`` frames at once, ``repeat`` more after ``delay_s``, and then one every
    ``refresh_s``. With 0 it leaves out that step.
    """

    repeat: int = 5
    delay_s: float = 5.0
    refresh_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Instance:
    """VIPs that move together, and how the nodes decide which of them has these VIPs.

    If ``vips`` is empty, the instance has the VIPs of all services that no other instance names.
    With VIPs of both families it has one virtual router for each family, and they move together.
    """

    name: str
    method: Method = Method.VRRP
    vrid: int = 1  # 1 to 255
    interface: str | None = None  # None: the configuration's interface, or lo for announce
    version: int = 3  # 2 or 3
    priority: int = 100  # 1 to 254, or OWNER
    interval_s: float = 1.0  # v3: 0.01 to 40.95; v2: whole seconds
    preempt: bool = True
    preempt_delay_s: float = 0.0
    accept: bool = True  # the master's host answers packets to the VIPs themselves
    vips: tuple[Address, ...] = ()
    group: str | None = None  # instances of a group move together
    peers: tuple[Address, ...] = ()  # unicast; none: multicast
    source: Address | None = None  # of adverts; None: the interface's first (IPv6: link-local)
    authentication: Authentication = Authentication.NONE
    password: str | None = field(default=None, repr=False)  # for PASSWORD and AH
    checksum: Checksum = Checksum.V3
    virtual_mac: bool = False
    announcements: Announcements = Announcements()
    track: Track = Track()


@dataclass(frozen=True, slots=True)
class FlowSync:
    """How flows are exchanged with the other balancers. With no ``peers`` they are not exchanged.

    ``witness``: a node that learns through flow sync that the master is well does not take over
    only because adverts are lost.
    """

    peers: tuple[Address, ...] = ()
    listen: Address | None = None  # None: all addresses
    port: int = DEFAULT_SYNC_PORT
    interval_s: float = 0.2  # between two surveys of the flow table
    rate_bytes_per_s: int = 50_000_000  # at most, to each peer
    witness: bool = True

    @property
    def is_on(self) -> bool:
        """Whether there is a peer to exchange flows with."""
        return bool(self.peers)


@dataclass(frozen=True, slots=True)
class Failover:
    """The section ``failover`` of the configuration."""

    socket: Path | None = None  # None: next to the agent's socket, see ``socket_of``
    key_file: Path | None = None  # the secret that the balancers share: flow sync, hmac
    instances: tuple[Instance, ...] = ()
    sync: FlowSync = FlowSync()


def socket_of(failover: Failover, agent_socket: Path) -> Path:
    """Return where the failover process listens: ``agent-failover.sock`` beside ``agent.sock``."""
    if failover.socket is not None:
        return failover.socket
    return agent_socket.with_name(f"{agent_socket.stem}-failover.sock")
