"""Decides which counters of adverts are those of a recording.

A node that has just started has heard nobody, and anything that was recorded would be news to it.
What it heard before it was restarted is saved; and a counter of HMAC begins with the time, so one
of long ago counts from nobody whom this process has not heard yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.failover.times import OLDEST_COUNTER_S
from agent.model import Address

_NANOSECONDS = 10**9


@dataclass(slots=True)
class Guard:
    """Of one virtual router. ``before``: the last counter of each sender, by an earlier process."""

    before: Mapping[Address, int] = field(default_factory=dict)
    heard: dict[Address, int] = field(default_factory=dict)  # by this one
    clock_ns: Callable[[], int] = time.time_ns

    def refuses(self, source: Address, counter: int, *, in_ns: bool = False) -> str:
        """Why it is not believed, or empty; ``in_ns``: it is a time, as ours are."""
        last = max(self.heard.get(source, -1), self.before.get(source, -1))
        if counter <= last:
            return f"sends an advert with the counter {counter}, after one with {last}"
        # A peer whose clock is wrong goes on from what it hears, so it may lag behind the time.
        oldest = self.clock_ns() - round(OLDEST_COUNTER_S * _NANOSECONDS)
        if in_ns and source not in self.heard and counter < oldest:
            return "sends an advert that was made more than an hour ago by this node's clock"
        return ""

    def accept(self, source: Address, counter: int) -> None:
        """It was believed."""
        self.heard[source] = counter

    def to_save(self) -> dict[Address, int]:
        """The last ones of all that were heard, by any process."""
        known = dict(self.before)
        for source, counter in self.heard.items():
            known[source] = max(counter, known.get(source, 0))
        return known
