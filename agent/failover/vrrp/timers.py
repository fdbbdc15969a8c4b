"""Decides how long a backup waits for its master (RFC 9568, section 6.1; RFC 3768, section 6.1)."""

from __future__ import annotations

from agent.failover.times import MASTER_DOWN_INTERVALS, MOST_LEAVE_S


def skew_s(version: int, priority: int, interval_s: float) -> float:
    """Return the skew of a backup, which is shorter the higher its priority is.

    So the best of several backups takes over.
    """
    return (256 - priority) / 256 * (interval_s if version == 3 else 1.0)


def leave_s(version: int, interval_s: float) -> float:
    """Return how long a leaving master waits for a successor: the longest skew and one interval."""
    return min(skew_s(version, 0, interval_s) + interval_s, MOST_LEAVE_S)


def master_down_s(version: int, priority: int, interval_s: float) -> float:
    """Return how long after its last advert a master counts as gone."""
    return MASTER_DOWN_INTERVALS * interval_s + skew_s(version, priority, interval_s)
