"""What the command line of the node agent says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One port of the agent check; ``gpus`` empty: all, otherwise those of one engine."""

    port: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to answer what, and how often to read."""

    host: str
    port: int
    checks: tuple[Check, ...]
    interval_s: float
