"""Decides what an XID, the NVIDIA driver's error number, blames."""

from __future__ import annotations

import enum


class Blames(enum.Enum):
    """What an error blames; only HARDWARE is a reason to drain."""

    HARDWARE = "hardware"
    APPLICATION = "application"
    NOBODY = "nobody"


# A faulty program ends with one of these; the next program is not affected.
_APPLICATION = frozenset({13, 31, 43, 45, 68, 109})

# These are notes: a row of memory was replaced (63), many errors were corrected (92), an error was
# contained and ended its program (94), the recovery action changed (154), which is read separately.
_NOTES = frozenset({63, 92, 94, 154})


def blames(xid: int) -> Blames:
    """Return what an XID blames. Numbers that are not known yet blame the hardware."""
    if xid in _APPLICATION:
        return Blames.APPLICATION
    return Blames.NOBODY if xid in _NOTES else Blames.HARDWARE
