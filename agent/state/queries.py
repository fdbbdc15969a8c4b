"""Questions about flows and decisions, and the shape of their answers."""

from __future__ import annotations

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
    """Filters for the flow table; None matches all."""

    service: str | None = None
    backend: str | None = None
    client: IPv4Network | IPv6Network | None = None
    state: str | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class FlowView:
    """One recorded flow."""

    service: str
    tuple5: FiveTuple
    backend: str
    state: str
    age_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class FlowPage:
    """The flows shown, and how many matched."""

    flows: tuple[FlowView, ...]
    matched: int


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw from a ring."""

    slot: int
    backend: str
    usable: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the data plane would do with the next packet of a flow, and why, step by step."""

    verdict: str  # forward, pass or drop
    service: str | None
    backend: str | None
    reason: str
    steps: tuple[str, ...]
    recorded: FlowView | None
    ring_slots: int
    draws: tuple[Draw, ...]
