"""The words of VRRP's state machine: what it knows, what can happen to it, what it asks for.

Times are seconds of the node's own monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.failover.model import HANDED_OVER, OWNER, PROMOTED, Address, Mode, Role
from agent.failover.vrrp.advert import Advert
from agent.failover.vrrp.announcing import Announcing


@dataclass(frozen=True, slots=True)
class Settings:
    """What is configured of one virtual router on this node."""

    own: Address  # source of its adverts
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
    fitness: int  # the priority that tracking leaves
    fault: str = ""  # empty: none
    group_fault: str = ""  # that of another router of its group
    mode: Mode = Mode.NORMAL
    master: Advert | None = None  # the last one heard of the present master; None: nobody, or we
    heard_s: float = 0.0  # when that was
    leaver: Address | None = None  # the master that has just left (priority 0)
    wish: str = ""  # grouped: why it would be master, if the others of its group would too
    down_s: float | None = None  # backup: when the master counts as gone
    advert_s: float | None = None  # master: when the next advert is due
    patience_s: float | None = None  # handed over, still master: until when others are waited for
    preempt_s: float | None = None  # from when on the present, lower master is preempted
    claim_s: float = 0.0  # until when a lower master is replaced as soon as it is heard
    taken_from: Address | None = None  # master: who was it before, while its adverts may be late
    settled_s: float = 0.0  # until when that is
    announcing: Announcing = field(default_factory=Announcing)
    # The last moment of which flow sync says that another one was master; None: it does not.
    vouched_s: float | None = None
    vouched: bool = False  # that is why this node is still backup

    @property
    def priority(self) -> int:
        """What is advertised, and compared with the adverts of others."""
        if self.mode is Mode.HANDED_OVER:
            return HANDED_OVER
        if self.mode is Mode.PROMOTED and self.fitness != OWNER:
            return PROMOTED
        return self.fitness

    @property
    def due_s(self) -> float | None:
        """When ``Due`` is to be told next; None: not at all."""
        timers = (self.down_s, self.advert_s, self.patience_s, self.announcing.due_s)
        return min((timer for timer in timers if timer is not None), default=None)


@dataclass(frozen=True, slots=True)
class Start:
    """The process takes part from now on. ``inherited``: the VIPs are on, by a process of before,
    so this node was master a moment ago."""

    inherited: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """The process leaves."""


@dataclass(frozen=True, slots=True)
class Heard:
    """An advert, accepted by ``compare``."""

    advert: Advert


@dataclass(frozen=True, slots=True)
class Due:
    """``State.due_s`` is reached, or long past."""


@dataclass(frozen=True, slots=True)
class Fitness:
    """What tracking says. ``fault``: why the node may not be master; empty: it may."""

    priority: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Operator:
    """What the operator wants of the node."""

    mode: Mode


@dataclass(frozen=True, slots=True)
class Claim:
    """Planned handover, told to the node that takes over: be master.

    At once if the present master's priority is lower; else as soon as it is.
    """


@dataclass(frozen=True, slots=True)
class Follow:
    """What the rest of the group does; FAULT ends with BACKUP."""

    role: Role
    why: str


@dataclass(frozen=True, slots=True)
class Vouched:
    """Flow sync says that another node was master at that moment, and well."""

    at_s: float


type Event = Start | Stop | Heard | Due | Fitness | Operator | Claim | Follow | Vouched


@dataclass(frozen=True, slots=True)
class Send:
    """An advert of this priority, now."""

    priority: int


@dataclass(frozen=True, slots=True)
class Take:
    """VIPs on, and announce them."""

    why: str


@dataclass(frozen=True, slots=True)
class Drop:
    """VIPs off."""

    why: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Announce the VIPs again, at once."""

    why: str


type Effect = Send | Take | Drop | Announce
