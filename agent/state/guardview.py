"""Defines how blocks, lists and limits are shown to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.model import Address, Detect, Network
from agent.state.alerts import Outcome, Seen
from agent.state.blocks import DEFAULT_S, Block
from agent.state.threats import Threat


@dataclass(frozen=True, slots=True)
class ListView:
    """One list; ``read_at``: when its files were last read, in seconds since the epoch."""

    name: str
    prefixes: int
    files: tuple[Path, ...]
    read_at: float | None
    problem: str
    dropped: int  # packets, since the agent began
    would_drop: int
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LimitView:
    """One limit of a service; ``sources``: how many are at the limit, if it is one per source."""

    service: str
    limit: str  # its key in the configuration
    most: str
    dropped: int  # packets
    would_drop: int
    sources: int


@dataclass(frozen=True, slots=True)
class ThreatView:
    """A source that behaves unlike all others, and what its service does about such.

    ``since``: Unix time. ``proven``: whether it must be at its address, because flows of the
    service are only recorded after their client has acknowledged what the server sent there.
    """

    threat: Threat
    since: float
    action: Detect
    proven: bool


@dataclass(frozen=True, slots=True)
class AlertsView:
    """The alerts of Suricata since the agent began; ``path`` None: none are read.

    ``counts``: alerts by severity and outcome. ``blocked``: sources that were blocked.
    ``unreadable``: lines that are none of Suricata's. ``skipped_bytes``: what was left out because
    there was too much to read.
    """

    path: Path | None = None
    problem: str = ""
    recent: tuple[Seen, ...] = ()
    counts: Mapping[tuple[int, Outcome], int] = field(default_factory=dict)
    blocked: int = 0
    unreadable: int = 0
    skipped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Guarded:
    """Everything that is blocked, listed or limited, and how many packets that has dropped."""

    blocks: tuple[Block, ...] = ()
    lists: tuple[ListView, ...] = ()
    limits: tuple[LimitView, ...] = ()
    threats: tuple[ThreatView, ...] = ()
    alerts: AlertsView = AlertsView()
    threats_blocked: int = 0  # sources that were blocked as threats, since the agent began
    blocked_packets: int = 0
    would_block_packets: int = 0
    not_allowed_packets: int = 0
    would_not_allow_packets: int = 0
    in_force: bool = True  # False: the program that enforces blocks is still being compiled
    nodes: int = 0
    nodes_total: int = 0
    problem: str = ""
    unsaved: str = ""


@dataclass(frozen=True, slots=True)
class BlockOrder:
    """An operator's order to block prefixes for ``for_s`` seconds."""

    prefixes: tuple[Network, ...]
    for_s: float = DEFAULT_S
    why: str = ""
    confirmed: bool = False

    def blocks(self, now: float) -> tuple[Block, ...]:
        """Return the blocks, beginning at ``now`` (seconds since the epoch)."""
        until = now + self.for_s
        return tuple(Block(prefix, self.why, now, until) for prefix in self.prefixes)


@dataclass(frozen=True, slots=True)
class Blocked:
    """The result of an order: flows ended, and how many other balancers were informed."""

    flows: int
    told: int


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What happens to a new flow from an address, by service."""

    address: Address
    block: Block | None
    lists: tuple[str, ...]
    services: Mapping[str, str]
