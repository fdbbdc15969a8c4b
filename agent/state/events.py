"""Defines the events that the data plane reports as they happen, and how to query them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from agent.model import Address

# The reasons why a packet was dropped, passed or answered instead of forwarded: the labels of the
# data plane's reasons, without those for packets that belong to no service.
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
    PACKET = "packet"  # a packet of a recorded flow; sampled
    REPLY = "reply"  # a packet from a backend; sampled
    ANSWER = "answer"  # the first byte of an answer
    CLOSE = "close"  # FIN or RST

    @property
    def is_sampled(self) -> bool:
        """Whether these events are sampled, because there is one for each packet."""
        return self in (EventKind.PACKET, EventKind.REPLY)


class Fate(enum.Enum):
    """What became of a packet that was not forwarded."""

    DROPPED = "dropped"
    REFUSED = "refused"  # dropped, and answered with an RST or ICMP error where that is allowed
    PASSED = "passed"  # passed to the host


@dataclass(frozen=True, slots=True)
class Event:
    """One decision of the data plane. Fields that do not apply are None."""

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
    fate: Fate | None = None  # DROP: what became of the packet
    tcp_flags: str | None = None  # as tcpdump writes them
    state: str | None = None  # of the recorded flow, before the packet
    waited_bytes: int | None = None  # ANSWER: size of the request
    waited_us: int | None = None  # ANSWER: time from the request to the answer

    @property
    def source(self) -> tuple[Address, int | None]:
        """The packet's source: the client, or for a reply the VIP."""
        if self.kind is EventKind.REPLY:
            return self.vip, self.port
        return self.client, self.client_port

    @property
    def destination(self) -> tuple[Address, int | None]:
        """The packet's destination: the VIP, or for a reply the client."""
        if self.kind is EventKind.REPLY:
            return self.client, self.client_port
        return self.vip, self.port


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """What one follower wants to see.

    ``sample``: one in how many events of the sampled kinds to report, a power of two.
    ``service`` None: any.
    """

    kinds: frozenset[EventKind]
    service: str | None = None
    sample: int = DEFAULT_SAMPLE
    matches: Callable[[Event], bool] | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Counts of events that a follower has missed since it began to follow."""

    ring: int = 0  # because the data plane's ring was full; whether they matched is not known
    follower: int = 0  # because the follower did not read fast enough
