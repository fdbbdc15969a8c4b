"""Decides how long sending has to wait so that a link stays within its bandwidth."""

from __future__ import annotations

from agent.failover.times import BURST_S


class TokenBucket:
    """A token bucket in bytes. One frame may overdraw it; the next frame waits for that."""

    def __init__(self, bytes_per_s: float, now_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._tokens = bytes_per_s * BURST_S
        self._at_s = now_s

    def take(self, size: int, now_s: float) -> float:
        """Account for ``size`` bytes and return how many seconds to wait before the next frame."""
        full = self.bytes_per_s * BURST_S
        elapsed_s = max(0.0, now_s - self._at_s)
        self._tokens = min(full, self._tokens + elapsed_s * self.bytes_per_s) - size
        self._at_s = now_s
        return max(0.0, -self._tokens / self.bytes_per_s)
