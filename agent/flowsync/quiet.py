"""Rate-limits log lines of the same kind, so that unauthenticated senders cannot flood the log."""

from __future__ import annotations

from agent.failover.times import LOGGED_AGAIN_S


class Quiet:
    """The rate limit. There must be few different kinds. Times are on a monotonic clock."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}  # last logged, left out since

    def left_out(self, kind: str, now_s: float) -> int | None:
        """Return None if this line is not to be logged, or else how many lines of its kind were
        left out before it.
        """
        said_s, count = self._kinds.get(kind, (None, 0))
        if said_s is not None and now_s - said_s < LOGGED_AGAIN_S:
            self._kinds[kind] = said_s, count + 1
            return None
        self._kinds[kind] = now_s, 0
        return count

    def clear(self) -> None:
        """Forget all kinds, so that the next line of each is logged."""
        self._kinds.clear()
