"""Defines an advert as the state machine sees it, in any version, family and authentication."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from agent.model import Address


@dataclass(frozen=True, slots=True)
class Advert:
    """A VRRP advertisement (RFC 3768, section 5; RFC 9568, section 5)."""

    version: int
    vrid: int
    priority: int  # 0: the sender stops being master
    interval_s: float
    vips: tuple[Address, ...]
    source: Address  # from the IP header
    counter: int = 0  # of AH or HMAC, against replays; 0: authenticated with neither


class Reason(enum.StrEnum):
    """Why an advert is refused; also the label of a metric and the kind of a problem."""

    VERSION = "version"
    AUTHENTICATION = "authentication"  # another type, password or key
    CHECKSUM = "checksum"  # correct, but of another variant
    ADDRESSING = "addressing"  # multicast where unicast is configured, or the reverse
    INTERVAL = "interval"  # v2: both sides must have the same
    TTL = "ttl"
    SOURCE = "source"  # not a configured peer, or our own address
    VRID = "vrid"  # our VIPs under another VRID
    REPLAY = "replay"
    DAMAGED = "damaged"  # not VRRP as the RFCs define it: length, type, count, checksum


@dataclass(frozen=True, slots=True)
class Refusal:
    """An advert that is ignored."""

    reason: Reason
    text: str  # a sentence: what the other node sends, and what this node expects
    source: Address
