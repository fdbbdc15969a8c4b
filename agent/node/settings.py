"""What the command line of the node agent says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One port of the agent check. ``gpus``: those of one engine; empty: all."""

    port: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to listen and for what, and how often to read."""

    host: str
    port: int
    checks: tuple[Check, ...]
    interval_s: float
