"""Decides whether a node may serve: take over from a healthy master (VRRP), or announce itself.

A node that was away knows neither the connections that were opened meanwhile nor which backends are
up, so it waits until it knows both. The rule is the same for VRRP and for announcements. Pure;
times are on one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.failover.syncstatus import LinkState, PeerSync
from agent.failover.times import FRESH_S, HEARTBEAT_S, MOST_SETTLE_S, READY_PATIENCE_S, STALE_S
from agent.model import CheckKind, Service


@dataclass(frozen=True, slots=True)
class Standing:
    """Since when this node has had the peers' flows, has been behind another master, and has had a
    backend up; None: it does not now.
    """

    synced_since: float | None = None
    behind_since: float | None = None
    reaches_since: float | None = None


def follow(
    before: Standing, *, synced: bool, behind: bool, reaches: bool, now_s: float
) -> Standing:
    """Return the standing after one more look."""
    return Standing(
        _since(before.synced_since, synced, now_s),
        _since(before.behind_since, behind, now_s),
        _since(before.reaches_since, reaches, now_s),
    )


def _since(before: float | None, holds: bool, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if before is None else before


def untold(peers: Iterable[PeerSync], interval_s: float, *, was: bool) -> tuple[str, ...]:
    """Return a text for each peer whose flows are not all known here; if there is none, this node
    is synced.

    ``interval_s``: from one look at the flows to the next. ``was``: it was synced until now.
    """
    oldest_s = (STALE_S if was else FRESH_S) + _more_s(interval_s)
    return tuple(why for peer in peers if (why := _untold(peer, oldest_s)))


def _more_s(interval_s: float) -> float:
    """Return by how much the newest state may be older than it is with short intervals."""
    return max(0.0, interval_s - HEARTBEAT_S)


def _untold(peer: PeerSync, oldest_s: float) -> str:
    if peer.state is not LinkState.CONNECTED:
        return f"{peer.address} is not connected"
    if peer.full_received == 0 or peer.behind_s is None:
        return f"{peer.address} has not sent all of its flows yet"
    if peer.behind_s >= oldest_s:
        return f"{peer.address} has not been heard lately"
    return ""


def is_reaching(services: Mapping[str, tuple[int, int]]) -> bool:
    """Return whether a backend of some checked service is up, or no service is checked."""
    counts = [up for up, total in services.values() if total]
    return any(counts) or not counts


def settle_s(services: Iterable[Service]) -> float:
    """Return how many seconds the checks take to find all backends that are up."""
    checks = [s.health for s in services if s.health.kind is not CheckKind.NONE]
    longest = max((c.rise * c.interval_s + c.timeout_s for c in checks), default=0.0)
    return min(longest, MOST_SETTLE_S)


def waits_for(
    standing: Standing, settling_s: float, now_s: float, without: Iterable[str] = ()
) -> str:
    """Return what the node waits for before it serves, or "" if it may serve now.

    ``without``: the result of ``untold``.
    """
    reached = standing.reaches_since
    if reached is None:
        return "no backend is up"
    synced, behind = standing.synced_since, standing.behind_since
    if now_s - max(reached, synced or reached) < settling_s:
        return "the checks settle"
    # A peer that sends no flows for so long is dead, or keepalived, or a node whose agent is dead.
    # Time in which this node reaches nothing does not count, since no peer can send flows then.
    if synced is None and now_s - max(reached, behind or reached) < READY_PATIENCE_S:
        return f"the flows of other balancers are not known: {', '.join(without)}"
    return ""


def is_cut_off(
    peers: Iterable[PeerSync], services: Mapping[str, tuple[int, int]], interval_s: float
) -> bool:
    """Return whether this node reaches neither a backend nor another balancer. If there is a master
    elsewhere, clients are better off with that one. ``interval_s``: as in ``untold``.
    """
    heard = [_is_heard(peer, FRESH_S + _more_s(interval_s)) for peer in peers]
    counts = [up for up, total in services.values() if total]
    return bool(heard) and not any(heard) and bool(counts) and not any(counts)


def _is_heard(peer: PeerSync, fresh_s: float) -> bool:
    """Return whether the peer is heard. When the network is cut, its stream still counts as
    connected for some seconds, but its heartbeats stop at once, so both are checked.
    """
    lately = peer.behind_s is None or peer.behind_s < fresh_s
    return peer.state is LinkState.CONNECTED and lately
