"""Defines the orders that an operator can give to failover, and their results."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class MoveVerb(enum.Enum):
    """What to do with the VIPs."""

    HANDOVER = "handover"  # this node gives them up, and stays backup
    PROMOTE = "promote"  # this node takes them, and stays master
    RELEASE = "release"  # end either: priorities decide again


@dataclass(frozen=True, slots=True)
class MoveOrder:
    """An order; ``instance`` None: all instances. ``force``: even if the other balancer lacks
    flows. ``message``: the operator's reason.
    """

    verb: MoveVerb
    instance: str | None = None
    force: bool = False
    dry_run: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of an order as text for the operator; ``flows``: how many were sent last.

    ``lacking``: why the other balancer may not have known all flows when it became master; empty:
    it knew them all.
    """

    text: str
    flows: int = 0
    lacking: str = ""


@dataclass(frozen=True, slots=True)
class Lacking:
    """How many moves were made although the other balancer may have lacked flows.

    ``why`` and ``at`` are those of the last one.
    """

    total: int = 0
    why: str = ""
    at: float = 0.0  # seconds since the epoch

    def and_one(self, why: str, at: float) -> Lacking:
        """Return this with one more move counted."""
        return Lacking(self.total + 1, why, at)
