"""Decides which of many lines alike the log gets: what strangers can cause is bounded."""

from __future__ import annotations

from agent.failover.times import LOGGED_AGAIN_S


class Quiet:
    """``kind`` must be one of few. Times are of a monotonic clock."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}  # when it was said, how often not since

    def left_out(self, kind: str, now_s: float) -> int | None:
        """How many of this kind were not said before this one, which is to be; None: nor is it."""
        said_s, count = self._kinds.get(kind, (None, 0))
        if said_s is not None and now_s - said_s < LOGGED_AGAIN_S:
            self._kinds[kind] = said_s, count + 1
            return None
        self._kinds[kind] = now_s, 0
        return count

    def clear(self) -> None:
        """Everything is news again."""
        self._kinds.clear()
