"""Formats numbers, times and addresses for people."""

from __future__ import annotations

_UNITS = ("", "k", "M", "G", "T", "P")


def count(value: float) -> str:
    """Format ``1234`` as 1.2k; integers below 1000 stay as they are, small rates keep a digit."""
    if abs(value) < 1000:
        if value == int(value) or abs(value) >= 99.95:
            return f"{value:.0f}"
        return f"{value:.1f}" if abs(value) >= 0.05 else "<0.1"
    unit = 0
    # 999_950 would print as 1000.0k, so it gets the next unit.
    while abs(value) >= (1000 if unit == 0 else 999.5) and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    digits = 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}{_UNITS[unit]}"


def quantity(value: float, unit: str) -> str:
    """Format ``1234`` with the unit B as 1.2 kB."""
    text = count(value)
    digits = text.rstrip("".join(_UNITS))
    return f"{digits} {text[len(digits) :]}{unit}"


def exact(value: int) -> str:
    """Format ``1234567`` as 1,234,567."""
    return f"{value:,}"


def age(seconds: float) -> str:
    """Format a time by its two largest units: 45s, 3m12s, 2h05m, 3d04h."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def milliseconds(value: float) -> str:
    """Format a measured time: 21µs, 1.3ms, 12ms, 1.2s, 2m05s."""
    if value < 0.9995:
        return f"{value * 1000:.0f}µs"
    if value < 9.95:
        return f"{value:.1f}ms"
    if value < 999.5:
        return f"{value:.0f}ms"
    return f"{value / 1000:.1f}s" if value < 59_950 else age(value / 1000)


def duration(seconds: float) -> str:
    """Format a configured time as the configuration file does: 500ms, 2s, 15m, 1h."""
    milliseconds = round(seconds * 1000)
    if milliseconds % 1000:
        return f"{milliseconds}ms"
    whole = milliseconds // 1000
    for size, unit in ((3600, "h"), (60, "m")):
        if whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def percent(share: float) -> str:
    """Format the share ``0.25`` as 25.0."""
    return f"{share * 100:.1f}"


def endpoint(address: str, port: int | str) -> str:
    """Return ADDRESS:PORT, with brackets around IPv6.

    The address may be a prefix, and the port a range.
    """
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def plural(number: int, noun: str) -> str:
    """Format a number with a noun: 1 backend, 1,200 backends."""
    return f"{number} {noun}" if number == 1 else f"{exact(number)} {noun}s"
