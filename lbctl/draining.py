"""Decides how long the last flow of a draining backend may take, from how flows have ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LEAST_ENDED = 10  # of fewer, the rate is chance
REMEMBERED_S = 300.0  # what ended before says little of what is left


@dataclass(slots=True)
class Draining:
    """The numbers of open flows that were seen, with the seconds when."""

    _seen: list[tuple[float, int]] = field(default_factory=list)

    def saw(self, at_s: float, flows: int) -> None:
        """Add an observation; times rise."""
        self._seen.append((at_s, flows))
        while at_s - self._seen[0][0] > REMEMBERED_S:
            del self._seen[0]

    def left_s(self) -> float | None:
        """Return after how many seconds the last flow will have ended, or None if nobody can tell.

        Flows are taken to end at a constant rate each, as those of a server with many independent
        clients do. Of n such flows the last one ends after (1 + 1/2 + ... + 1/n) lifetimes on
        average (the largest of n exponential variables). A few flows that outlive all others,
        such as idle kept-alive connections, make this too short: their end shows in no rate.
        """
        (began_s, many), (now_s, flows) = self._seen[0], self._seen[-1]
        if many - flows < LEAST_ENDED or now_s <= began_s or flows < 1:
            return None
        lifetime_s = (now_s - began_s) / math.log(many / flows)
        return lifetime_s * sum(1 / n for n in range(1, flows + 1))
