"""Defines the settings, the state, the events and the effects of VRRP's state machine.

Times are seconds of the node's own monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.failover.model import HANDED_OVER, OWNER, PROMOTED, Address, Mode, Role
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.announcing import Announcing


@dataclass(frozen=True, slots=True)
class Settings:
    """What is configured for one virtual router on this node."""

    own: Address  # the source address of its adverts
    priority: int
    interval_s: float
    version: int = 3
    family: int = 4
    preempt: bool = True
    preempt_delay_s: float = 0.0
    grouped: bool = False  # other routers move with it: see ``groups.follows``


@dataclass(frozen=True, slots=True)
class State:
    """What a node knows of one virtual router."""

    role: Role
    since: float
    why: str
    fitness: int  # the priority after tracking
    fault: str = ""  # empty: none
    group_fault: str = ""  # the fault of another router of its group
    mode: Mode = Mode.NORMAL
    master: Advert | None = None  # the present master's last advert; None: unknown, or this node
    heard_s: float = 0.0  # when that advert was heard
    leaver: Address | None = None  # the master that has just left (priority 0)
    wish: str = ""  # grouped: why it would become master if the rest of its group would too
    down_s: float | None = None  # backup: when the master counts as gone
    advert_s: float | None = None  # master: when the next advert is due
    patience_s: float | None = None  # handed over, still master: until when it waits for others
    preempt_s: float | None = None  # when the present master, of lower priority, may be preempted
    claim_s: float = 0.0  # until then it takes over from a lower master as soon as it hears one
    taken_from: Address | None = None  # master: the one before, whose adverts may still arrive
    settled_s: float = 0.0  # until then they are ignored
    announcing: Announcing = field(default_factory=Announcing)
    # The last time at which, according to flow sync, another node was master; None: never reported.
    vouched_s: float | None = None
    vouched: bool = False  # this node is still backup only because of that

    @property
    def priority(self) -> int:
        """The priority that is advertised and compared with the adverts of others."""
        if self.mode is Mode.HANDED_OVER:
            return HANDED_OVER
        if self.mode is Mode.PROMOTED and self.fitness != OWNER:
            return PROMOTED
        return self.fitness

    @property
    def due_s(self) -> float | None:
        """When the next ``Due`` event has to come; None: no timer is running."""
        timers = (self.down_s, self.advert_s, self.patience_s, self.announcing.due_s)
        return min((timer for timer in timers if timer is not None), default=None)


@dataclass(frozen=True, slots=True)
class Start:
    """The process takes part from now on.

    ``inherited``: an earlier process has left the VIPs on the interface, so this node was master a
    moment ago.
    """

    inherited: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """The process stops taking part."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An advert has arrived, and ``packet`` has accepted it."""

    advert: Advert


@dataclass(frozen=True, slots=True)
class Due:
    """``State.due_s`` has been reached, or is long past."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """The result of tracking. ``fault``: why the node may not be master; empty: it may."""

    priority: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator has set a mode."""

    mode: Mode


@dataclass(frozen=True, slots=True)
class Claim:
    """In a planned handover, the request to this node to become master.

    It does so at once if the present master's priority is lower, else as soon as it is.
    """


@dataclass(frozen=True, slots=True)
class Follow:
    """The rest of the group has taken this role. BACKUP also ends a FAULT of the group."""

    role: Role
    why: str


@dataclass(frozen=True, slots=True)
class Vouched:
    """According to flow sync, another node was master at ``at_s``, and well."""

    at_s: float


type Event = Start | Stop | Heard | Due | Fitness | Operator | Claim | Follow | Vouched


@dataclass(frozen=True, slots=True)
class Send:
    """Send an advert with this priority now."""

    priority: int


@dataclass(frozen=True, slots=True)
class Take:
    """Put the VIPs on the interface, and announce them."""

    why: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Take the VIPs off the interface."""

    why: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Announce the VIPs again at once."""

    why: str


type Effect = Send | Take | Drop | Announce
