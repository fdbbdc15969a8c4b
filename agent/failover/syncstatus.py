"""Defines the status that flow sync reports, as values."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.failover.model import Address, Method, Role


class LinkState(enum.Enum):
    """The state of the connection to one peer."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    REFUSED = "refused"  # one side refuses it until somebody changes something; retries go on


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What a balancer reports to the others about one of its virtual routers.

    ``well``: it is master, and nothing speaks against that. ``vouched``: it hears no adverts of
    the master, and leaves it the VIPs only because flow sync reports that it is well. ``vips``: a
    digest of the VIPs.
    """

    instance: str
    family: int  # 4 or 6; 0: announce
    method: Method
    role: Role
    priority: int
    well: bool
    vouched: bool
    vrid: int
    version: int
    interval_s: float
    authentication: str
    vips: str


@dataclass(frozen=True, slots=True)
class PeerSync:
    """One peer; times are seconds since the epoch, counts since the agent's start."""

    address: Address
    name: str  # as it calls itself; empty: not known
    version: str  # of Steelyard on the peer; empty: not known
    state: LinkState
    why: str
    since: float
    lag_s: float | None  # age of our newest state that the peer has completely; None: it has none
    behind_s: float | None  # likewise for the peer's state that we have, as the peer reports it
    rtt_ms: float | None
    flows_sent: int = 0
    gone_sent: int = 0
    flows_received: int = 0
    gone_received: int = 0
    flows_installed: int = 0  # of those received
    flows_dropped: Mapping[str, int] = field(default_factory=dict)  # of those received, by reason
    peer_installed: int = 0  # of those sent, as the peer reports
    peer_dropped: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    full_sent: int = 0  # full resyncs
    full_received: int = 0
    connections: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)  # streams and frames, by reason
    last_error: str = ""
    instances: tuple[str, ...] | None = None  # the peer's failover instances; None: not known
    # The state of its virtual routers, and when that was on this host's monotonic clock; None: not
    # known.
    routers: tuple[RouterReport, ...] | None = None
    routers_s: float | None = None


def unknown(
    address: Address,
    state: LinkState = LinkState.CONNECTING,
    why: str = "the exchange has not begun",
) -> PeerSync:
    """Return the status of a peer with which the exchange has not begun."""
    return PeerSync(address, "", "", state, why, time.time(), None, None, None)


@dataclass(frozen=True, slots=True)
class FlushResult:
    """The result of sending everything that had changed at once."""

    done: bool  # at least one peer is connected, and every connected peer has installed it
    text: str
    flows: int


@dataclass(frozen=True, slots=True)
class TakeResult:
    """The result of asking a peer to become master, or to make this node master."""

    done: bool
    peer: str  # its address; empty: no peer could be asked
    text: str
