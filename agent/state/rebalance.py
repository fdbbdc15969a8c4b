"""Decides how many idle connections of which overloaded backend are to be reset now.

Clients open a new connection in the place of one that was reset, and the scheduler sends it
where there is room. Only what is idle is given up, so a backend's busy connections come down as
its clients go on elsewhere; what is counted down at once are its connections, and they never go
below its share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.model import Protocol, Rebalance, Scheduler, Service
from agent.state.loads import counts_waiting
from agent.state.skew import Standing, by_level, fair_busy, stands_out

BURST_S = 1.0  # what was not used of the rate is kept for so long


@dataclass(frozen=True, slots=True)
class Budget:
    """How many flows may be reset now, as of ``at``; begins with nothing."""

    tokens: float = 0.0
    at: float | None = None

    def refilled(self, rate_per_s: float, now: float) -> Budget:
        """After time has passed; at most what one second allows, and at least one, is kept."""
        if self.at is None or now < self.at:
            return Budget(0.0 if self.at is None else self.tokens, now)
        most = max(rate_per_s * BURST_S, 1.0)
        return Budget(min(self.tokens + (now - self.at) * rate_per_s, most), now)

    def spent(self, flows: int) -> Budget:
        """After so many were reset."""
        return replace(self, tokens=self.tokens - flows)


def rebalances(service: Service) -> bool:
    """Whether the service wants it, and what it needs is known.

    The sequence numbers of a flow are known where request bytes are counted, of tcp alone; with
    the ``source`` scheduler or affinity a client comes back to where it was.
    """
    return (
        service.rebalance.rate_per_s > 0
        and service.key.protocol is Protocol.TCP
        and counts_waiting(service)
        and service.scheduler is not Scheduler.SOURCE
        and not service.affinity.is_any
    )


def excess(wanted: Rebalance, standings: Iterable[Standing]) -> dict[str, int]:
    """Connections by which overloaded backends are above their share; others are not in it.

    A backend is overloaded that has ``wanted.skew`` times its share of the busy connections, and
    not by chance; it gives up no more than what it has above its share, of the busy ones and of
    all. Where no other backend takes new connections, nobody gives up any.
    """
    over: dict[str, int] = {}
    for level in by_level(standings):
        if len(level) > 1:
            over |= _over(wanted.skew, level)
    return over


def _over(skew: float, level: tuple[Standing, ...]) -> dict[str, int]:
    fair = fair_busy(level)
    weights, busy, live = (
        sum(value) for value in zip(*((b.weight, b.busy, b.live) for b in level), strict=True)
    )
    over = {}
    for one in level:
        share = fair[one.backend]
        if one.busy <= skew * share or not stands_out(one.busy, share, busy):
            continue
        above = min(one.busy - share, one.live - live * one.weight / weights)
        if above >= 1:
            over[one.backend] = math.floor(above)
    return over


def portion(over: Mapping[str, int], budget: Budget) -> dict[str, int]:
    """What of the excess is given up now: as the budget allows, from the most loaded first."""
    left = math.floor(budget.tokens)
    given = {}
    for backend, above in sorted(over.items(), key=lambda item: (-item[1], item[0])):
        count = min(above, left)
        if count <= 0:
            break
        given[backend] = count
        left -= count
    return given
