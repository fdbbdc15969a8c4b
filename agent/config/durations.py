"""Parses and formats durations: ``500ms``, ``2s``, ``15m``, ``1h``, or a number of seconds."""

from __future__ import annotations

import math
import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TEXT = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h)", re.ASCII)


def parse_duration(value: object) -> float | None:
    """Return the duration in seconds, or None if ``value`` is not a duration."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        # Check the bounds first: an integer of a thousand digits cannot become a float.
        return float(value) if 0 <= value <= 1e9 and math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    match = _TEXT.fullmatch(value.strip())
    if match is None:
        return None
    number, unit = match.groups()
    # Divide rather than multiply by 0.001, so that "500ms" is exactly 0.5.
    return float(number) / 1000 if unit == "ms" else float(number) * _UNITS[unit]


def format_duration(seconds: float) -> str | float:
    """Return the shortest text that ``parse_duration`` turns back into exactly ``seconds``."""
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    if seconds == 0:
        return "0s"
    milliseconds = round(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds / 1000 == seconds else seconds
