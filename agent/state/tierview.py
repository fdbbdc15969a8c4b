"""Defines how the tier of the balancer's host is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierLoad:
    """What HAProxy does. Rates are requests a second since the look before; ``refused`` are
    those that the tier answered by itself, ``failed`` those that engines did not answer.

    ``current``: requests at engines now; ``queued``: requests that wait for one.
    """

    connections: int
    current: int
    queued: int
    requests_per_s: float
    refused_per_s: float
    failed_per_s: float


@dataclass(frozen=True, slots=True)
class TierStatus:
    """The tier of this host. ``load``: None while nothing is known of it."""

    problems: tuple[str, ...] = ()
    load: TierLoad | None = None
