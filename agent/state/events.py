"""What the data plane tells as it happens, and how one follower asks for it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from agent.model import Address

# Why a packet may have been dropped, passed or answered instead of forwarded: the labels of the
# data plane's reasons, less those of packets that are for no service at all.
DROP_REASONS = (
    "fragment",
    "malformed",
    "extension",
    "no-backend",
    "no-flow",
    "no-room",
    "no-port",
    "ttl-exceeded",
    "too-big",
    "no-headroom",
    "internal",
    "held",
    "martian",
    "broadcast",
    "source-route",
    "port-zero",
    "challenged",
    "verified",
    "blocked",
    "denied",
    "not-allowed",
    "limited",
)
DEFAULT_SAMPLE = 1024
MAX_SAMPLE = 65_536


class EventKind(enum.Enum):
    """What happened."""

    DROP = "drop"  # not forwarded, for whatever reason
    PICK = "pick"  # a backend was chosen for a new flow
    PACKET = "packet"  # of a recorded flow; sampled
    REPLY = "reply"  # of a backend; sampled
    ANSWER = "answer"  # the first byte of an answer
    CLOSE = "close"  # FIN or RST

    @property
    def is_sampled(self) -> bool:
        """There are as many of them as packets."""
        return self in (EventKind.PACKET, EventKind.REPLY)


class Fate(enum.Enum):
    """What became of a packet that was not forwarded."""

    DROPPED = "dropped"
    REFUSED = "refused"  # dropped, and its sender told by RST or ICMP, where that may be
    PASSED = "passed"  # to the host


@dataclass(frozen=True, slots=True)
class Event:
    """One decision of the data plane. What does not apply is None."""

    at: float  # seconds since the epoch
    kind: EventKind
    protocol: int  # IP protocol number
    client: Address
    client_port: int | None
    vip: Address
    port: int | None
    length: int  # bytes of the IP packet
    service: str | None = None
    backend: str | None = None
    backend_address: Address | None = None
    scheduler: str | None = None  # PICK: how the backend was chosen
    reason: str | None = None  # DROP: one of DROP_REASONS
    fate: Fate | None = None  # DROP: of the packet
    tcp_flags: str | None = None  # as tcpdump writes them
    state: str | None = None  # of the recorded flow, before the packet
    waited_bytes: int | None = None  # ANSWER: of the request
    waited_us: int | None = None  # ANSWER: from the request to the answer

    @property
    def source(self) -> tuple[Address, int | None]:
        """Who sent the packet: the client, or for a reply the VIP."""
        if self.kind is EventKind.REPLY:
            return self.vip, self.port
        return self.client, self.client_port

    @property
    def destination(self) -> tuple[Address, int | None]:
        """To whom the packet was sent."""
        if self.kind is EventKind.REPLY:
            return self.client, self.client_port
        return self.vip, self.port


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """What one follower wants to see.

    ``sample``: of the sampled kinds, one in so many, a power of two. ``service`` None: any.
    """

    kinds: frozenset[EventKind]
    service: str | None = None
    sample: int = DEFAULT_SAMPLE
    matches: Callable[[Event], bool] | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Events that a follower should have had, since it began to follow."""

    ring: int = 0  # the data plane's ring was full; whether they would have matched is not known
    follower: int = 0  # it did not read fast enough
