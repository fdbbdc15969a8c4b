"""Defines how a balancer's membership of its fleet is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """How a balancer stands to its fleet. Times are seconds since the epoch.

    ``version`` runs here since ``since``; 0: that of the fleet was never taken. ``wanted``: the one
    that should run here, ``stable`` and ``newest`` those of the fleet; None: not known, or the
    fleet has none yet. ``trying``: the balancers that try another version than the stable one.
    ``problem``: why the balancer does not follow its fleet; empty: it does. ``away_since``: since
    when the store does not answer; None: it does.
    """

    name: str
    node: str
    version: int
    since: float
    wanted: int | None
    stable: int | None
    newest: int | None
    trying: tuple[str, ...]
    frozen: str | None
    refused: int | None
    problem: str
    away_since: float | None
