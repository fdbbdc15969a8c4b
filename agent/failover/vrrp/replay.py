"""Decides from the counter of an advert whether the advert is a replay.

A node that has just started has heard no adverts, so any recorded one would look new. Therefore the
counters that it heard before a restart are saved. An HMAC counter starts from the time, so an old
one is refused from a sender that this process has not heard yet.
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
    """The counters of one virtual router, by sender."""

    before: Mapping[Address, int] = field(default_factory=dict)  # last heard by earlier processes
    heard: dict[Address, int] = field(default_factory=dict)  # last heard by this process
    clock_ns: Callable[[], int] = time.time_ns

    def refuses(self, source: Address, counter: int, *, in_ns: bool = False) -> str:
        """Return why a counter is refused, or an empty text if it is accepted.

        ``in_ns``: the counter is a time in nanoseconds since the epoch, as HMAC's is.
        """
        last = max(self.heard.get(source, -1), self.before.get(source, -1))
        if counter <= last:
            return f"sends an advert with the counter {counter}, after one with {last}"
        # A peer whose clock is behind continues from the counters that it hears, so its own counter
        # may lag behind the time; hence the large margin.
        oldest = self.clock_ns() - round(OLDEST_COUNTER_S * _NANOSECONDS)
        if in_ns and source not in self.heard and counter < oldest:
            return "sends an advert that was made more than an hour ago by this node's clock"
        return ""

    def accept(self, source: Address, counter: int) -> None:
        """Record the counter of an advert that was accepted."""
        self.heard[source] = counter

    def to_save(self) -> dict[Address, int]:
        """Return the last counter of every sender that this or an earlier process has heard."""
        known = dict(self.before)
        for source, counter in self.heard.items():
            known[source] = max(counter, known.get(source, 0))
        return known
