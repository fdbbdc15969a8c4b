"""Decides how many idle connections to reset now on each overloaded backend.

A client opens a new connection in place of one that was reset, and the scheduler sends it to a
backend with room. Only idle connections are reset, so the number of busy ones falls as clients go
on elsewhere. The number of connections falls at once, but never below the backend's share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.model import Protocol, Rebalance, Scheduler, Service
from agent.state.loads import counts_waiting
from agent.state.skew import Standing, by_level, fair_busy, stands_out

BURST_S = 1.0  # unused budget accumulates for at most this long


@dataclass(frozen=True, slots=True)
class Budget:
    """How many flows may be reset, as of ``at``; begins with none."""

    tokens: float = 0.0
    at: float | None = None

    def refilled(self, rate_per_s: float, now: float) -> Budget:
        """Return the budget at ``now``; it holds at most one second's worth, or one flow."""
        if self.at is None or now < self.at:
            return Budget(0.0 if self.at is None else self.tokens, now)
        most = max(rate_per_s * BURST_S, 1.0)
        return Budget(min(self.tokens + (now - self.at) * rate_per_s, most), now)

    def spent(self, flows: int) -> Budget:
        """Return the budget after so many flows were reset."""
        return replace(self, tokens=self.tokens - flows)


def rebalances(service: Service) -> bool:
    """Return whether the service is configured for rebalancing, and it is possible.

    A reset needs the flow's sequence numbers, which are known only for TCP and where request bytes
    are counted. With the ``source`` scheduler or affinity it would be useless, because a client
    comes back to the same backend.
    """
    return (
        service.rebalance.rate_per_s > 0
        and service.key.protocol is Protocol.TCP
        and counts_waiting(service)
        and service.scheduler is not Scheduler.SOURCE
        and not service.affinity.is_any
    )


def excess(wanted: Rebalance, standings: Iterable[Standing]) -> dict[str, int]:
    """Return by how many connections overloaded backends exceed their share; others are left out.

    A backend is overloaded if it has ``wanted.skew`` times its share of the busy connections, and
    chance does not explain it. It gives up no more than its excess of busy connections, and no
    more than its excess of all connections. If no other backend takes new connections, none are
    given up.
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
    """Return how much of the excess to give up now, within the budget, most loaded first."""
    left = math.floor(budget.tokens)
    given = {}
    for backend, above in sorted(over.items(), key=lambda item: (-item[1], item[0])):
        count = min(above, left)
        if count <= 0:
            break
        given[backend] = count
        left -= count
    return given
