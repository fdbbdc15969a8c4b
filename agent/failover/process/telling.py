"""Decides what the status says of a router in any case, with elections or without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.failover.model import Mode, Role
from agent.failover.plan import VirtualRouter
from agent.failover.status import Problem, RouterStatus


def told(
    router: VirtualRouter,
    *,
    role: Role,
    since: float,
    why: str,
    mode: Mode,
    priority: int,
    reasons: tuple[str, ...],
    problems: Iterable[Problem],
    transitions: Mapping[str, int],
) -> RouterStatus:
    """Nobody is known as master, and no advert was seen."""
    instance = router.instance
    return RouterStatus(
        name=router.name,
        instance=instance.name,
        method=instance.method,
        group=router.group,
        interface=router.interface,
        family=router.family,
        vrid=instance.vrid,
        version=instance.version,
        role=role,
        since=since,
        why=why,
        mode=mode,
        priority=priority,
        configured_priority=instance.priority,
        priority_reasons=reasons,
        interval_s=instance.interval_s,
        vips=tuple(map(str, router.vips)),
        peers=tuple(map(str, router.peers)),
        master=None,
        master_priority=None,
        problems=tuple(problems),
        transitions=dict(transitions),
    )


def lasting(found: Iterable[tuple[str, str]], now: float) -> Iterable[Problem]:
    """Problems of this node's own (``status.OWN``), that are so until they are not; without text:
    none.
    """
    return (Problem(kind, text, now, now, 1) for kind, text in found if text)
