"""Holds new flows back for a moment: their first packets are dropped, and clients send them again.

For a planned handover: what is recorded goes on, and nothing comes in that the other balancer
would not know. The packet path knows the moment at which this ends, so an agent that dies or is
stopped meanwhile leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from agent.dataplane import abi
from agent.dataplane.tables import Table

HOLD_S = abi.HOLD_MAX_NS / 1e9  # it ends by itself so long after it was last renewed


class Hold:
    """New flows are held back until a deadline in the settings of a set of tables."""

    def __init__(self, settings: Table) -> None:
        self._settings = settings
        self._until_ns = 0

    def renew(self) -> bool:
        """Move the deadline; false if it was over already, so that new flows may have come in."""
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
    """No new flow gets a backend, and nobody is told so; never longer than ``HOLD_S`` after the
    last ``renew``.
    """
    hold = Hold(settings)
    hold.renew()
    try:
        yield hold
    finally:
        hold.end()
