"""Decides what balancers announce about their virtual routers in flow sync, and when that vouches
for a master whose adverts are not heard. Pure; times are on this host's monotonic clock.

A report counts only if it describes a time after the adverts had stopped. It then shows that the
adverts are filtered and the master is well, because a master that has died reports nothing after
its last advert. So this delays no takeover from a dead master.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from agent.failover.model import Instance, Method, Mode, Role
from agent.failover.status import FailoverStatus, RouterStatus
from agent.failover.syncstatus import PeerSync, RouterReport
from agent.failover.times import AGENT_HEARTBEAT_PER_ROUTER_S, LEAST_AGENT_HEARTBEAT_S


def period_s(instances: Iterable[Instance], most_s: float) -> float:
    """Return how many seconds to wait between heartbeats to the failover process.

    It is one interval of the fastest adverts, if that does not cost too much, so that a heartbeat
    comes between the first advert that is missed and the takeover.
    """
    elected = [each for each in instances if each.method is Method.VRRP]
    fastest_s = min((each.interval_s for each in elected), default=most_s)
    return min(
        most_s, max(fastest_s, LEAST_AGENT_HEARTBEAT_S, AGENT_HEARTBEAT_PER_ROUTER_S * len(elected))
    )


def words(status: FailoverStatus, instances: Mapping[str, Instance]) -> tuple[RouterReport, ...]:
    """Return what this node announces about its virtual routers."""
    return tuple(
        _word(router, instances.get(router.instance), status.leaving) for router in status.routers
    )


def _word(router: RouterStatus, instance: Instance | None, leaving: bool) -> RouterReport:
    stays = not leaving and router.mode is not Mode.HANDED_OVER
    return RouterReport(
        instance=router.instance,
        family=router.family,
        method=router.method,
        role=router.role,
        priority=router.priority,
        # A priority below the configured one means that a tracked condition has failed.
        well=router.role is Role.MASTER and stays and router.priority >= router.configured_priority,
        vouched=router.vouched,
        vrid=router.vrid,
        version=router.version,
        interval_s=router.interval_s,
        authentication=instance.authentication.value if instance else "",
        vips=_digest(router.vips),
    )


def _digest(vips: Iterable[str]) -> str:
    """Return a digest of the VIPs without link-local ones, which each node may choose by itself."""
    routable = sorted(vip for vip in vips if not ip_address(vip).is_link_local)
    return hashlib.sha256(" ".join(routable).encode()).hexdigest()[:16]


def vouchers(routers: Iterable[RouterStatus], peers: Iterable[PeerSync]) -> dict[str, float]:
    """Return, by name, for the virtual routers that this node is backup of, the last time at which
    another node is known to have been their master and well.
    """
    peers = tuple(peers)
    found: dict[str, float] = {}
    for router in routers:
        if router.method is not Method.VRRP or router.role is not Role.BACKUP:
            continue
        moments = [
            peer.routers_s
            for peer in peers
            if peer.routers_s is not None
            and any(_vouches(word, router) for word in peer.routers or ())
        ]
        if moments:
            found[router.name] = max(moments)
    return found


def _vouches(word: RouterReport, router: RouterStatus) -> bool:
    is_same = (word.instance, word.family) == (router.instance, router.family)
    # A master with other VIPs does not count: no node would serve the VIPs that it lacks.
    return is_same and word.well and word.vips == _digest(router.vips)
