"""Owns the counters of one peer over all its connections."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """Counts since the agent's start."""

    flows_sent: int = 0
    gone_sent: int = 0
    flows_received: int = 0
    gone_received: int = 0
    flows_installed: int = 0
    flows_dropped: Counter[str] = field(default_factory=Counter)
    peer_installed: int = 0
    peer_dropped: Counter[str] = field(default_factory=Counter)
    bytes_sent: int = 0
    bytes_received: int = 0
    full_sent: int = 0
    full_received: int = 0
    connections: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of all counters by name."""
        found: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            found[name] = dict(value) if isinstance(value, Counter) else value
        return found
