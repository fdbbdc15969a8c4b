"""Waits for descriptors without select(2): a process that has run many tests has more than 1,024
of them.
"""

from __future__ import annotations

import select
from typing import Any


def readable(of: Any, seconds: float = 0) -> bool:
    """Whether this descriptor, or object with ``fileno``, has something to read in that time."""
    poll = select.poll()
    poll.register(of, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
