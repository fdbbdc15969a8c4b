"""Decides what the balancers say of their virtual routers by flow sync, and when that vouches for a
master whose adverts are not heard. Pure; moments are of this host's monotonic clock.

Only what was so after the adverts had stopped says that they are filtered, and the master well: a
master that has died said nothing since. So no takeover from a dead one takes longer for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from agent.failover.model import Instance, Method, Mode, Role
from agent.failover.status import FailoverStatus, RouterStatus
from agent.failover.syncstatus import PeerSync, RouterWord
from agent.failover.times import LEAST_WORD_S, WORD_PER_ROUTER_S


def period_s(instances: Iterable[Instance], most_s: float) -> float:
    """How long to wait from one word to the next.

    One interval of the fastest adverts, so that a word comes between the first one that is missed
    and the takeover, if that does not cost too much.
    """
    elected = [each for each in instances if each.method is Method.VRRP]
    fastest_s = min((each.interval_s for each in elected), default=most_s)
    return min(most_s, max(fastest_s, LEAST_WORD_S, WORD_PER_ROUTER_S * len(elected)))


def words(status: FailoverStatus, instances: Mapping[str, Instance]) -> tuple[RouterWord, ...]:
    """What this node says of its virtual routers."""
    return tuple(
        _word(router, instances.get(router.instance), status.leaving) for router in status.routers
    )


def _word(router: RouterStatus, instance: Instance | None, leaving: bool) -> RouterWord:
    stays = not leaving and router.mode is not Mode.HANDED_OVER
    return RouterWord(
        instance=router.instance,
        family=router.family,
        method=router.method,
        role=router.role,
        priority=router.priority,
        # A lower priority than the configured one says that something is wrong.
        well=router.role is Role.MASTER and stays and router.priority >= router.configured_priority,
        vouched=router.vouched,
        vrid=router.vrid,
        version=router.version,
        interval_s=router.interval_s,
        authentication=instance.authentication.value if instance else "",
        vips=_digest(router.vips),
    )


def _digest(vips: Iterable[str]) -> str:
    """Of the VIPs, but for those that each node may make up for itself."""
    routable = sorted(vip for vip in vips if not ip_address(vip).is_link_local)
    return hashlib.sha256(" ".join(routable).encode()).hexdigest()[:16]


def vouchers(routers: Iterable[RouterStatus], peers: Iterable[PeerSync]) -> dict[str, float]:
    """For the virtual routers that this node is backup of, by name: the last moment of which is
    known that another node was their master, and well.
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


def _vouches(word: RouterWord, router: RouterStatus) -> bool:
    is_same = (word.instance, word.family) == (router.instance, router.family)
    # With other VIPs, those that it lacks would be with nobody.
    return is_same and word.well and word.vips == _digest(router.vips)
