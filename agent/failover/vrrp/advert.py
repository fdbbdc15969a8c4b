"""An advert as the state machine sees it, whatever its version, family and authentication."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from agent.model import Address


@dataclass(frozen=True, slots=True)
class Advert:
    """A VRRP advertisement (RFC 3768, section 5; RFC 9568, section 5)."""

    version: int
    vrid: int
    priority: int  # 0: its sender stops being master
    interval_s: float
    vips: tuple[Address, ...]
    source: Address  # of the IP header
    counter: int = 0  # of AH or HMAC, against replays; 0: not authenticated so


class Reason(enum.StrEnum):
    """Why an advert is refused: a metric's label, and the kind of a problem."""

    VERSION = "version"
    AUTHENTICATION = "authentication"  # another type, password or key
    CHECKSUM = "checksum"  # right, but of another variant
    ADDRESSING = "addressing"  # multicast against unicast
    INTERVAL = "interval"  # v2: both sides must have the same
    TTL = "ttl"
    SOURCE = "source"  # not a configured peer, or our own address
    VRID = "vrid"  # our VIPs under another VRID
    REPLAY = "replay"
    DAMAGED = "damaged"  # not VRRP as the RFCs have it: length, type, count, checksum


@dataclass(frozen=True, slots=True)
class Refusal:
    """An advert that is not listened to."""

    reason: Reason
    text: str  # a sentence: what the other sends, and what this node wants
    source: Address
