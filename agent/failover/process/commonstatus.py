"""Decides the part of a router's status that is the same with and without elections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.failover.model import Mode, Role
from agent.failover.plan import VirtualRouter
from agent.failover.status import Problem, RouterStatus


def common_status(
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
    """Return the status of a router, with no known master and no adverts."""
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
    """Yield this node's own problems (``status.OWN``), from pairs of kind and text.

    They exist right now. A pair with an empty text is not a problem.
    """
    return (Problem(kind, text, now, now, 1) for kind, text in found if text)
