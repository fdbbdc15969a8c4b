"""What the flow sync tells of itself, as values."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.failover.model import Address, Method, Role


class LinkState(enum.Enum):
    """How it stands with one peer."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    REFUSED = "refused"  # by it or by us, until somebody changes something; tried on


@dataclass(frozen=True, slots=True)
class RouterWord:
    """What a balancer says of one of its virtual routers to the others.

    ``well``: it is master, and nothing speaks against that. ``vouched``: it hears no adverts of
    the master, and leaves the VIPs there for the word of flow sync. ``vips``: a digest.
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
    version: str  # of the project there; empty: not known
    state: LinkState
    why: str
    since: float
    lag_s: float | None  # how old the newest state is that the peer has entirely; None: no state
    behind_s: float | None  # likewise, of the peer's state that we have, as the peer says
    rtt_ms: float | None
    flows_sent: int = 0
    gone_sent: int = 0
    flows_received: int = 0
    gone_received: int = 0
    flows_installed: int = 0  # of those received
    flows_dropped: Mapping[str, int] = field(default_factory=dict)  # of those received, by reason
    peer_installed: int = 0  # of those sent, as the peer says
    peer_dropped: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    full_sent: int = 0  # full resyncs
    full_received: int = 0
    connections: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)  # streams and frames, by reason
    last_error: str = ""
    instances: tuple[str, ...] | None = None  # of failover, that it has; None: not known
    # What its virtual routers are, and at which moment of this host's monotonic clock they were
    # that; None: not known.
    routers: tuple[RouterWord, ...] | None = None
    routers_s: float | None = None


def unknown(
    address: Address,
    state: LinkState = LinkState.CONNECTING,
    why: str = "the exchange has not begun",
) -> PeerSync:
    """A peer with which nothing has begun yet."""
    return PeerSync(address, "", "", state, why, time.time(), None, None, None)


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What came of sending all that had changed at once."""

    done: bool  # every connected peer has installed it, and there was one
    text: str
    flows: int


@dataclass(frozen=True, slots=True)
class TakeResult:
    """What came of asking a peer to be master, or to have this node be it."""

    done: bool
    peer: str  # its address; empty: nobody was there
    text: str
