"""Decides whom an XID, the NVIDIA driver's error number, speaks of."""

from __future__ import annotations

import enum


class Blames(enum.Enum):
    """HARDWARE alone is a reason to drain."""

    HARDWARE = "hardware"
    APPLICATION = "application"
    NOBODY = "nobody"


# A program that does wrong ends with one of these; the next one runs as well as ever.
_APPLICATION = frozenset({13, 31, 43, 45, 68, 109})

# Notes: a row of memory was replaced (63), many errors were corrected (92), an error was
# contained and ended its program (94), the recovery action changed (154), which is read itself.
_NOTES = frozenset({63, 92, 94, 154})


def blames(xid: int) -> Blames:
    """Numbers that NVIDIA has not thought of yet blame the hardware."""
    if xid in _APPLICATION:
        return Blames.APPLICATION
    return Blames.NOBODY if xid in _NOTES else Blames.HARDWARE
