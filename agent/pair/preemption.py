"""Decides when a node asks the master of a lower priority to hand over. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.failover.model import HANDED_OVER, Instance, Mode, Role
from agent.failover.status import RouterStatus
from agent.failover.times import AHEAD_S


def is_behind(router: RouterStatus) -> bool:
    """A master of lower priority than the configured one of this node has it."""
    has_master = router.role is Role.BACKUP and router.master is not None
    return has_master and router.configured_priority > (router.master_priority or 0)


def candidates(
    routers: Iterable[RouterStatus], instances: Mapping[str, Instance]
) -> frozenset[str]:
    """Instances that this node is going to take by its priority."""
    return frozenset(
        router.instance
        for router in routers
        if is_behind(router)
        and router.master_priority != HANDED_OVER  # that one is handing over already
        and not router.vouched  # it would not be heard either, and there would be two masters
        and router.mode is Mode.NORMAL
        and router.priority > (router.master_priority or 0)
        and router.instance in instances
        and instances[router.instance].preempt
    )


def since(before: Mapping[str, float], wanted: Iterable[str], now_s: float) -> dict[str, float]:
    """Since when each of them is one."""
    return {name: before.get(name, now_s) for name in wanted}


def due(
    waiting: Mapping[str, float], instances: Mapping[str, Instance], now_s: float
) -> frozenset[str]:
    """Those whose master is to be asked now."""
    return frozenset(
        name
        for name, from_s in waiting.items()
        if now_s - from_s >= instances[name].preempt_delay_s - AHEAD_S
    )
