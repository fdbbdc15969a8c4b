"""Decides how moments and ages read in JSON."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(at: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC."""
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def age_s(since: float, at: float) -> float:
    """Seconds from ``since`` to ``at``; a clock set back does not make it negative."""
    return round(max(0.0, at - since), 3)
