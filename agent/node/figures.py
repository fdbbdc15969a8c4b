"""Decides which values from a driver are figures, and which mean "not available".

For the latter, drivers give the largest number that fits, a text, or nonsense.
"""

from __future__ import annotations

import math

_MOST_BYTES = 1 << 50
_MOST_WATTS = 100_000
_MOST_MEGAHERTZ = 100_000
_MOST_CELSIUS = 1_000
_MOST_COUNT = 1 << 62


def ratio(percent: object) -> float | None:
    """Return a percentage as a share from 0 to 1."""
    found = _bounded(percent, 100)
    return None if found is None else found / 100


def number_of_bytes(value: object) -> int | None:
    """Return an amount of memory."""
    found = _bounded(value, _MOST_BYTES)
    return None if found is None else int(found)


def count(value: object) -> int | None:
    """Return how often something happened."""
    found = _bounded(value, _MOST_COUNT)
    return None if found is None else int(found)


def watts(value: object, per_watt: int = 1) -> float | None:
    """Return a power in watts from a number in a smaller unit."""
    found = _bounded(value, _MOST_WATTS * per_watt)
    return None if found is None else found / per_watt


def hertz(megahertz: object) -> float | None:
    """Return a clock in hertz."""
    found = _bounded(megahertz, _MOST_MEGAHERTZ)
    return None if found is None else found * 1e6


def celsius(value: object) -> float | None:
    """Return a temperature."""
    return _bounded(value, _MOST_CELSIUS)


def _bounded(value: object, most: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) and 0 <= value <= most else None
