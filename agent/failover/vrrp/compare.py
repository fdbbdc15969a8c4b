"""Decides what is wrong between this node and another node of the same virtual router."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.failover.model import HANDED_OVER, OWNER, PROMOTED
from agent.failover.plan import VirtualRouter
from agent.failover.vrrp.advert import Advert, Reason, Refusal
from agent.failover.vrrp.packet import advertised
from agent.model import Address

# What an operator can do about a refusal, with keepalived's keywords in brackets.
_REMEDIES = {
    Reason.VERSION: "give both nodes the same `version` [vrrp_version]",
    Reason.AUTHENTICATION: (
        "give both nodes the same `authentication`, and the same `password` or key file"
        " [authentication, of vrrp_version 2]"
    ),
    Reason.CHECKSUM: "give both nodes the same `checksum` [v3_checksum_as_v2]",
    Reason.ADDRESSING: (
        "name the nodes in each other's `peers` [unicast_peer] on both nodes, or on none"
    ),
    Reason.INTERVAL: "give both nodes the same `interval` [advert_int], in whole seconds",
    Reason.TTL: (
        "the nodes must be on one segment, without a router between them; if they are,"
        " another host sends adverts from elsewhere"
    ),
    Reason.SOURCE: (
        "add it to `peers`, or set that node's `source` [unicast_src_ip]; if it is not a balancer,"
        " or the address is this node's own, find who sends it"
    ),
    Reason.VRID: (
        "give both nodes the same `vrid` [virtual_router_id], or take the VIP from one of the two"
    ),
    Reason.REPLAY: (
        "if it lasts, somebody repeats old adverts, or that node's clock was set back:"
        " it is believed again as soon as it has heard this node"
    ),
    Reason.DAMAGED: "find what sends it: a node that follows the RFCs does not",
}
_MANY = 5  # how many VIPs a text names


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A mismatch with another node: the Problem of the status without its times."""

    kind: str  # vips, priority, interval, or a Reason
    text: str  # what is wrong, with whom, and the remedy
    source: Address  # the other node


def problems(
    router: VirtualRouter, source: Address, priority: int, heard: Advert | Refusal
) -> tuple[Mismatch, ...]:
    """Return what is wrong with what was heard; ``source`` and ``priority`` are this node's own."""
    if isinstance(heard, Refusal):
        text = f"{heard.text}: its adverts are not listened to; {_REMEDIES[heard.reason]}"
        return (Mismatch(heard.reason.value, text, heard.source),)
    found = (
        ("vips", _vips(router, heard)),
        ("interval", _interval(router, heard)),
        ("priority", _priority(source, priority, heard)),
    )
    return tuple(Mismatch(kind, text, heard.source) for kind, text in found if text)


def _vips(router: VirtualRouter, heard: Advert) -> str:
    named = advertised(router)
    if named == heard.vips:
        return ""
    # Either side may have added a link-local VIP of its own: RFC 9568 requires one, keepalived does
    # not.
    ours, theirs = _routable(named), _routable(heard.vips)
    if ours == theirs:
        return ""
    only = [
        f"only {who}: {_listed(having - other)}"
        for who, having, other in ((heard.source, theirs, ours), ("this node", ours, theirs))
        if having - other
    ]
    return (
        f"{heard.source} advertises other VIPs than this node has ({'; '.join(only)}): VIPs that"
        " only one node has go away with it; give both the same `vips` [virtual_ipaddress]"
    )


def _routable(vips: Iterable[Address]) -> frozenset[Address]:
    return frozenset(vip for vip in vips if not vip.is_link_local)


def _listed(vips: frozenset[Address]) -> str:
    ordered = sorted(vips, key=lambda vip: vip.packed)
    more = f" and {len(ordered) - _MANY} more" if len(ordered) > _MANY else ""
    return ", ".join(map(str, ordered[:_MANY])) + more


def _interval(router: VirtualRouter, heard: Advert) -> str:
    ours_s = router.instance.interval_s
    if round(ours_s * 100) == round(heard.interval_s * 100):
        return ""
    return (
        f"{heard.source} advertises every {heard.interval_s:g} s, this node every {ours_s:g} s: a"
        " takeover takes longer from one than from the other; give both the same `interval`"
        " [advert_int]"
    )


def _priority(source: Address, priority: int, heard: Advert) -> str:
    if heard.priority != priority or priority <= HANDED_OVER:
        return ""
    wins = heard.source if heard.source.packed > source.packed else source
    both = f"{heard.source} advertises the priority {priority}, as this node does"
    if priority == OWNER:
        return (
            f"{both}: only one can be the owner of the VIPs; set another `priority` [priority],"
            " 1 to 254, on the other"
        )
    if priority == PROMOTED:
        return (
            f"{both}: it seems that both are promoted, and {wins} has the VIPs because of its"
            " higher address; release one with `lbctl failover release`"
        )
    return (
        f"{both}: {wins} wins only because of its higher address; give them different `priority`"
        " [priority]"
    )
