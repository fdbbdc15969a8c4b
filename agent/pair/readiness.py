"""Decides whether a node may take its place from a master that is well, and whether it is cut off.

A node that was away does not know the connections that were opened meanwhile, and its checks not
which backends are up: it waits for both. Pure; moments are of one clock that only goes forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.failover.syncstatus import LinkState, PeerSync
from agent.model import CheckKind, Service

FRESH_S = 1.5  # a state of the other one's flows that is older is not its present one
_STALE_S = 2.5  # what was present once may be that old: hosts are busy at times
# A master that does not tell its flows for so long does not do it at all: keepalived, or a node
# whose agent is dead.
PATIENCE_S = 15.0
_MOST_SETTLE_S = 10.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Since when this node knows the others' flows, and is behind another master; None: not."""

    synced_since: float | None = None
    behind_since: float | None = None


def follow(before: Standing, *, synced: bool, behind: bool, now_s: float) -> Standing:
    """One more look."""
    return Standing(
        _since(before.synced_since, synced, now_s), _since(before.behind_since, behind, now_s)
    )


def _since(before: float | None, holds: bool, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if before is None else before


def is_synced(peers: Iterable[PeerSync], *, was: bool) -> bool:
    """All that the other balancers have is known here; true without any. ``was``: until now."""
    oldest_s = _STALE_S if was else FRESH_S
    return all(
        peer.state is LinkState.CONNECTED
        and peer.full_received > 0
        and peer.behind_s is not None
        and peer.behind_s < oldest_s
        for peer in peers
    )


def settle_s(services: Iterable[Service]) -> float:
    """How long checks take to find all backends up that are."""
    checks = [s.health for s in services if s.health.kind is not CheckKind.NONE]
    longest = max((c.rise * c.interval_s + c.timeout_s for c in checks), default=0.0)
    return min(longest, _MOST_SETTLE_S)


def is_ready(standing: Standing, settling_s: float, now_s: float) -> bool:
    """Whether the node may take its place."""
    synced, behind = standing.synced_since, standing.behind_since
    if synced is not None and now_s - synced >= settling_s:
        return True
    return behind is not None and now_s - behind >= PATIENCE_S


def is_cut_off(peers: Iterable[PeerSync], services: Mapping[str, tuple[int, int]]) -> bool:
    """It reaches neither a backend nor another balancer: if there is a master elsewhere, clients
    are better off with that one.
    """
    heard = [_is_heard(peer) for peer in peers]
    counts = [up for up, total in services.values() if total]
    return bool(heard) and not any(heard) and bool(counts) and not any(counts)


def _is_heard(peer: PeerSync) -> bool:
    """Its stream outlives a cut by some seconds, its heartbeats do not."""
    lately = peer.behind_s is None or peer.behind_s < FRESH_S
    return peer.state is LinkState.CONNECTED and lately
