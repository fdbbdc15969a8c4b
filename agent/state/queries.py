"""Defines queries about flows, lists and decisions, and the form of their results."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from agent.model import Address, Protocol


@dataclass(frozen=True, slots=True)
class FiveTuple:
    """The 5-tuple of a flow, in the direction from the client to the VIP."""

    protocol: Protocol
    client: Address
    client_port: int
    vip: Address
    port: int


@dataclass(frozen=True, slots=True)
class FlowQuery:
    """Filters for the flow table; None matches all.

    ``state`` is the state of a flow, or ``awaiting`` for flows with a request that waits for its
    answer. ``hottest``: sort by waiting bytes, most first, then by last activity; otherwise the
    most recently active flows come first.
    """

    service: str | None = None
    backend: str | None = None
    client: IPv4Network | IPv6Network | None = None
    state: str | None = None
    limit: int = 100
    hottest: bool = False


@dataclass(frozen=True, slots=True)
class FlowRequests:
    """What the data plane knows about a flow's requests."""

    awaiting: bool  # a request waits for its answer
    waiting_bytes: int  # the size of that request
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
    requests: FlowRequests | None = None  # None: not counted, or only a SYN was seen


@dataclass(frozen=True, slots=True)
class FlowPage:
    """The flows shown, and how many matched."""

    flows: tuple[FlowView, ...]
    matched: int


class SortBy(enum.Enum):
    """The sort key of a list: largest first, except for names and states."""

    NAME = "name"
    STATE = "state"  # the worst first
    NEW = "new"  # new flows per second
    FLOWS = "flows"
    WAITING = "waiting"  # waiting bytes
    FIRST_BYTE = "first-byte"  # p99 of the last minute


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which backends or services a page shows, and in which order; empty fields match all.

    ``service`` and ``backend`` are names; ``match`` is part of a name or of an address.
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
    """Which sources to list: those with the most open flows, or with the most ``waiting`` bytes."""

    service: str | None = None
    waiting: bool = False
    limit: int = 20


@dataclass(frozen=True, slots=True)
class TopSource:
    """A source at this moment; ``waiting_bytes``: those of its requests that are not answered."""

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
    """One draw from a ring, with what the scheduler looks at.

    ``score``: if it compares backends; ``open``, and the ``most_open`` that the bound allows: if it
    has a bound; ``cpu``: if each CPU takes its own turns.
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

    ``depends_on``: what could lead to another backend a moment later: ``load``, ``turn``, or
    nothing. ``backend`` None with verdict ``forward``: the backend depends on the CPU, because
    each CPU takes its own turns.
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
