"""What an operator may want of failover, as values."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class MoveVerb(enum.Enum):
    """What is to happen to the VIPs."""

    HANDOVER = "handover"  # this node gives them up, and stays behind
    PROMOTE = "promote"  # this node takes them, and stays in front
    RELEASE = "release"  # neither: priorities decide again


@dataclass(frozen=True, slots=True)
class MoveOrder:
    """An order; ``instance`` None: all. ``force``: without the flows, if need be. ``message``: why,
    in the operator's words.
    """

    verb: MoveVerb
    instance: str | None = None
    force: bool = False
    dry_run: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True)
class Moved:
    """How it went, in the operator's words; ``flows`` were sent last. ``lacking``: why the other
    balancer may not have known all flows when it became master; empty: it did.
    """

    text: str
    flows: int = 0
    lacking: str = ""


@dataclass(frozen=True, slots=True)
class Lacking:
    """How many moves went on though the other balancer may not have known all flows; the last."""

    total: int = 0
    why: str = ""
    at: float = 0.0  # seconds since the epoch

    def and_one(self, why: str, at: float) -> Lacking:
        """With one more."""
        return Lacking(self.total + 1, why, at)
