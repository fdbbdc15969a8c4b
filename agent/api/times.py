"""Decides how the API shows times and ages."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(at: float) -> str:
    """Return seconds since the epoch as an RFC 3339 time in UTC."""
    text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def age_s(since: float, at: float) -> float:
    """Return the seconds from ``since`` to ``at``, or 0 if the clock was set back."""
    return round(max(0.0, at - since), 3)
