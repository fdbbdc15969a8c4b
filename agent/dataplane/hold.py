"""Holds new flows back for a moment: their first packets are dropped, and clients send them again.

A planned handover needs this: recorded flows go on, and no flow begins that the other balancer
would not know. The packet path knows the deadline at which the hold ends, so an agent that dies or
is stopped meanwhile leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from agent.dataplane import abi
from agent.dataplane.tables import Table

HOLD_S = abi.HOLD_MAX_NS / 1e9  # it ends by itself this long after it was last renewed


class Hold:
    """A hold on new flows, until a deadline in the settings of a set of tables."""

    def __init__(self, settings: Table) -> None:
        self._settings = settings
        self._until_ns = 0

    def renew(self) -> bool:
        """Move the deadline; return False if it had passed already, so that new flows may have come
        in.
        """
        now_ns = time.monotonic_ns()
        stood = now_ns < self._until_ns
        self._until_ns = now_ns + abi.HOLD_MAX_NS
        self._settings["held_until"] = self._until_ns
        return stood

    def end(self) -> None:
        """Let new flows in."""
        self._settings["held_until"] = 0


@contextlib.contextmanager
def new_flows_held(settings: Table) -> Iterator[Hold]:
    """Let no new flow get a backend, and send its client no reply.

    The hold ends ``HOLD_S`` after the last ``renew`` at the latest.
    """
    hold = Hold(settings)
    hold.renew()
    try:
        yield hold
    finally:
        hold.end()
