"""Decides which backends are dead, so that their flows have to be reset. Pure.

A dead server sends nothing to anybody, so its clients would wait for their answers until their
own timeouts expire. A server that still answers, if only by refusing, either resets its
connections itself or goes on with them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from agent.model import (
    Address,
    BackendRef,
    BackendState,
    Config,
    DownFlows,
    Health,
    HealthStatus,
    NextHop,
    Service,
)
from agent.state.eligibility import Eligibility

# When more than half of several servers fall silent together, it is more likely that something
# between them and us has failed and that all will come back. Wait this long before a reset.
MANY_WAIT_S = 60.0
# Silences that begin within this time count as together; longer if the health checks, which do
# not all run at the same moment, need longer to notice.
TOGETHER_S = 10.0


@dataclass(frozen=True, slots=True)
class Deaths:
    """Since when servers have been silent, and since when backends have met the conditions for a
    reset of their flows. Times are of the monotonic clock.
    """

    silent: Mapping[Address, float]
    down: Mapping[BackendRef, float]
    due: frozenset[BackendRef] = frozenset()


NONE_DEAD = Deaths({}, {})


def is_silent(status: HealthStatus, hop: NextHop | None) -> bool:
    """Return whether nothing comes back from a server and this host is not the reason.

    Without a health check, only ARP and neighbour discovery can show that.
    """
    if hop is None or hop.ours:
        return False
    if status.health is Health.UNCHECKED:
        return hop.reason != ""
    return status.silent


def goes(service: Service, status: HealthStatus, hop: NextHop | None, found: Eligibility) -> bool:
    """Return whether a backend's flows are to be reset once this state has lasted long enough."""
    if service.down_flows is DownFlows.KEEP:
        return False
    if is_silent(status, hop) and status.health in (Health.DOWN, Health.UNCHECKED):
        return True
    is_out = found.state in (BackendState.DOWN, BackendState.UNREACHABLE)
    return is_out and service.down_flows is not DownFlows.AUTO and hop is not None and not hop.ours


def follow(
    before: Deaths,
    config: Config,
    health: Mapping[BackendRef, HealthStatus],
    hops: Mapping[Address, NextHop],
    verdicts: Mapping[BackendRef, Eligibility],
    now_s: float,
) -> Deaths:
    """Return what is known at ``now_s``; its ``due`` names backends whose flows to reset now."""
    well = {Health.UP}
    if not any(hop.reason for hop in hops.values()):
        well.add(Health.UNCHECKED)  # such a backend is judged by its next hop alone
    suspects = [ref for ref, found in verdicts.items() if not _is_well(health[ref], found, well)]
    if not suspects:
        return NONE_DEAD
    members = {BackendRef(s.name, b.name): (s, b) for s in config.services for b in s.backends}
    silent: set[Address] = set()
    down: dict[BackendRef, float] = {}
    for ref in suspects:
        service, backend = members[ref]
        hop = hops.get(backend.address)
        if is_silent(health[ref], hop):
            silent.add(backend.address)
        if goes(service, health[ref], hop, verdicts[ref]):
            down[ref] = before.down.get(ref, now_s)
    since = {address: before.silent.get(address, now_s) for address in silent}
    onsets, servers = sorted(since.values()), len({b.address for _, b in members.values()})
    together_s = max([TOGETHER_S, *(s.health.interval_s * s.health.fall for s in config.services)])

    def wait_s(ref: BackendRef) -> float:
        service, backend = members[ref]
        at_s = since.get(backend.address)
        is_many = at_s is not None and is_one_of_many(at_s, onsets, servers, together_s)
        return max(service.reset_after_s, MANY_WAIT_S if is_many else 0.0)

    due = frozenset(ref for ref, at in down.items() if now_s - at >= wait_s(ref))
    return Deaths(since, down, due)


def _is_well(status: HealthStatus, found: Eligibility, well: Collection[Health]) -> bool:
    """Return whether nothing suggests a failure.

    This is the cheap first test: there can be thousands of backends, and it is true of most.
    """
    return found.state is BackendState.UP and status.health in well and not status.silent


def is_one_of_many(
    at_s: float, onsets: Sequence[float], servers: int, together_s: float = TOGETHER_S
) -> bool:
    """Return whether more than half of several servers fell silent together with one that fell
    silent at ``at_s``. ``onsets``: when each of the silent servers fell silent, sorted.

    Servers that had been silent for longer count neither as silent nor as part of the total.
    """
    before = bisect_left(onsets, at_s - together_s)
    together = bisect_right(onsets, at_s + together_s) - before
    left = servers - before
    return left > 1 and 2 * together > left
