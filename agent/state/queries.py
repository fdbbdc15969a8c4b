"""Questions about flows and decisions, and the shape of their answers."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from agent.model import Address, Protocol


@dataclass(frozen=True, slots=True)
class FiveTuple:
    """A flow as its packets name it, from the client to the VIP."""

    protocol: Protocol
    client: Address
    client_port: int
    vip: Address
    port: int


@dataclass(frozen=True, slots=True)
class FlowQuery:
    """Filters for the flow table; None matches all.

    ``state`` is a flow's, or ``awaiting``: those in which a request waits for its answer.
    ``hottest``: first those with most bytes waiting, then those that were busy last; otherwise
    the most recently active first.
    """

    service: str | None = None
    backend: str | None = None
    client: IPv4Network | IPv6Network | None = None
    state: str | None = None
    limit: int = 100
    hottest: bool = False


@dataclass(frozen=True, slots=True)
class FlowRequests:
    """What the data plane knows of a flow's requests."""

    awaiting: bool  # one waits for its answer
    waiting_bytes: int  # of it
    handshake_ms: float | None  # SYN to ACK; None: not seen
    talk: str | None  # plain, tls or http2; None: nothing sent yet


@dataclass(frozen=True, slots=True)
class FlowView:
    """One recorded flow."""

    service: str
    tuple5: FiveTuple
    backend: str
    state: str
    age_s: float
    idle_s: float
    nat_source: tuple[Address, int] | None = None  # fullnat: what the backend sees as the client
    requests: FlowRequests | None = None  # None: not counted, or it has sent a SYN alone


@dataclass(frozen=True, slots=True)
class FlowPage:
    """The flows shown, and how many matched."""

    flows: tuple[FlowView, ...]
    matched: int


class SortBy(enum.Enum):
    """What a list goes by: the largest first, but names and states in their order."""

    NAME = "name"
    STATE = "state"  # the worst first
    NEW = "new"  # flows a second
    FLOWS = "flows"
    WAITING = "waiting"  # bytes of requests
    FIRST_BYTE = "first-byte"  # p99 of the last minute


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which backends or services a page shows, and in which order; what is empty matches all.

    ``service`` and ``backend`` are names; ``match`` is a part of a name or of an address.
    """

    sort: SortBy = SortBy.NAME
    limit: int = 50
    offset: int = 0  # rows before the page
    service: str = ""
    backend: str = ""
    states: frozenset[str] = frozenset()
    match: str = ""


@dataclass(frozen=True, slots=True)
class TopQuery:
    """Which sources: those with most open flows, or with most ``waiting`` bytes."""

    service: str | None = None
    waiting: bool = False
    limit: int = 20


@dataclass(frozen=True, slots=True)
class TopSource:
    """What a source has at this moment; ``waiting_bytes``: of requests that wait for an answer."""

    source: Address
    flows: int
    waiting_bytes: int


@dataclass(frozen=True, slots=True)
class TopPage:
    """The sources shown, and how many there are."""

    sources: tuple[TopSource, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw from a ring.

    What the scheduler looks at: ``score`` where it compares, ``open`` and the ``most`` that the
    bound allows where it has one; ``cpu`` where each has its own turn.
    """

    slot: int
    backend: str
    usable: bool
    score: float | None = None
    open: int | None = None
    most_open: int | None = None
    cpu: int | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the data plane would do with the next packet of a flow, and why, step by step.

    ``depends_on``: what can make it another backend a moment later: ``load``, ``turn``, or
    nothing. ``backend`` None in a ``forward``: whose turn it is depends on the CPU.
    """

    verdict: str  # forward, pass, drop or reset
    service: str | None
    backend: str | None
    reason: str
    steps: tuple[str, ...]
    recorded: FlowView | None
    ring_slots: int
    draws: tuple[Draw, ...]
    scheduler: str | None = None
    depends_on: str | None = None
