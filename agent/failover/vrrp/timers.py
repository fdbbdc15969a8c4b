"""Decides how long a backup waits for its master (RFC 9568, section 6.1; RFC 3768, section 6.1)."""

from __future__ import annotations

from agent.failover.times import MASTER_DOWN_INTERVALS, MOST_LEAVE_S


def skew_s(version: int, priority: int, interval_s: float) -> float:
    """The higher the priority, the sooner: so that of several backups the best one takes over."""
    return (256 - priority) / 256 * (interval_s if version == 3 else 1.0)


def leave_s(version: int, interval_s: float) -> float:
    """How long a master that leaves waits for a successor: for the longest skew and an advert."""
    return min(skew_s(version, 0, interval_s) + interval_s, MOST_LEAVE_S)


def master_down_s(version: int, priority: int, interval_s: float) -> float:
    """How long after its last advert a master counts as gone."""
    return MASTER_DOWN_INTERVALS * interval_s + skew_s(version, priority, interval_s)
