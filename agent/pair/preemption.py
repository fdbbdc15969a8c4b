"""Decides when a node asks a master of lower priority to hand over. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.failover.model import HANDED_OVER, Instance, Mode, Role
from agent.failover.status import RouterStatus
from agent.failover.times import AHEAD_S


def is_behind(router: RouterStatus) -> bool:
    """Return whether the router's master has a lower priority than this node's configured one."""
    has_master = router.role is Role.BACKUP and router.master is not None
    return has_master and router.configured_priority > (router.master_priority or 0)


def candidates(
    routers: Iterable[RouterStatus], instances: Mapping[str, Instance]
) -> frozenset[str]:
    """Return the instances that this node is going to take by its priority."""
    return frozenset(
        router.instance
        for router in routers
        if is_behind(router)
        and router.master_priority != HANDED_OVER  # that one is handing over already
        and not router.vouched  # the master would not hear us either: two masters
        and router.mode is Mode.NORMAL
        and router.priority > (router.master_priority or 0)
        and router.instance in instances
        and instances[router.instance].preempt
    )


def since(before: Mapping[str, float], wanted: Iterable[str], now_s: float) -> dict[str, float]:
    """Return for each wanted instance the time since which it has been wanted."""
    return {name: before.get(name, now_s) for name in wanted}


def due(
    waiting: Mapping[str, float], instances: Mapping[str, Instance], now_s: float
) -> frozenset[str]:
    """Return the instances whose master is to be asked now."""
    return frozenset(
        name
        for name, from_s in waiting.items()
        if now_s - from_s >= instances[name].preempt_delay_s - AHEAD_S
    )
