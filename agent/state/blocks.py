"""Decides which sources are blocked, and until when. Pure; times are seconds since the epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network

from agent.errors import RequestError
from agent.model import Network

MOST = 65_536
DEFAULT_S = 600.0
_STEP_S = 0.001
LONGEST_S = 8784 * 3600.0  # a year
_SHORTEST_PREFIX = {4: 8, 6: 19}  # a shorter prefix is more likely a typing error than intended


@dataclass(frozen=True, slots=True)
class Block:
    """A prefix whose packets are dropped, the reason, and the times when this begins and ends.

    ``over``: the block was undone at ``since``. It is remembered until ``until``, because another
    balancer may not have heard yet that it was undone.
    """

    prefix: Network
    why: str
    since: float
    until: float
    over: bool = False


type Blocks = Mapping[Network, Block]


def blocked(
    before: Blocks, new: Iterable[Block], *, confirmed: bool = False
) -> dict[Network, Block]:
    """Return the blocks with new ones added, or renewed with another end.

    Raises RequestError if one of them is implausible.
    """
    found = dict(before)
    for each in new:
        _check(found, each, confirmed=confirmed)
        found[each.prefix] = _after(before, each)
    return found


def _check(before: Blocks, new: Block, *, confirmed: bool) -> None:
    prefix = new.prefix
    shortest = _SHORTEST_PREFIX[prefix.version]
    if prefix.prefixlen < shortest and not confirmed:
        raise RequestError(
            f"{prefix} is very large: {_share(prefix)} of all IPv{prefix.version} addresses",
            where="prefix",
            remedy=f"give a prefix of /{shortest} or longer, or confirm it with --yes",
        )
    if not 1 <= new.until - new.since <= LONGEST_S:
        raise RequestError(
            "this is not a valid duration for a block",
            where="for",
            remedy="give a time from 1s to 8784h, such as 10m",
        )
    if prefix not in before and len(before) >= MOST:
        raise RequestError(
            f"{MOST} prefixes are blocked already, and there is no room for more",
            where="prefix",
            remedy="put a large set of prefixes into one of `lists`, and deny that list",
        )


def unblocked(before: Blocks, prefixes: Iterable[Network], now: float) -> dict[Network, Block]:
    """Return the blocks with these prefixes unblocked; RequestError if one is not blocked."""
    found = dict(before)
    for prefix in prefixes:
        _check_blocked(before, prefix)
        found[prefix] = _after(before, replace(before[prefix], since=now, over=True))
    return found


def _check_blocked(before: Blocks, prefix: Network) -> None:
    if prefix not in before or before[prefix].over:
        wider = [shown(other) for other in active(before) if _holds(other, prefix)]
        raise RequestError(
            f"{shown(prefix)} is not blocked by itself",
            where="prefix",
            remedy=f"unblock {', '.join(wider)}, which covers it" if wider else "lbctl guard list",
        )


def _after(before: Blocks, new: Block) -> Block:
    """Return the new block, dated later than the one that it replaces.

    The old one may come from another balancer, whose clock may be ahead of ours.
    """
    old = before.get(new.prefix)
    return new if old is None else replace(new, since=max(new.since, old.since + _STEP_S))


def active(blocks: Blocks) -> dict[Network, Block]:
    """Return the blocks that are in force."""
    return {prefix: block for prefix, block in blocks.items() if not block.over}


def merged(before: Blocks, received: Blocks) -> dict[Network, Block]:
    """Merge the blocks received from another balancer: the newest one of each prefix wins."""
    news = {
        prefix: block
        for prefix, block in received.items()
        if prefix not in before or block.since > before[prefix].since
    }
    room = MOST - len(before)
    fresh = [prefix for prefix in news if prefix not in before]
    for prefix in fresh[max(room, 0) :]:
        del news[prefix]
    return {**before, **news}


def left(before: Blocks, now: float) -> dict[Network, Block]:
    """Return the blocks whose end is not reached yet, including those that were undone."""
    return {prefix: block for prefix, block in before.items() if block.until > now}


def holding(blocks: Blocks, prefix: Network) -> Block | None:
    """Return the active block with the longest prefix that contains all of ``prefix``."""
    found = [block for other, block in active(blocks).items() if _holds(other, prefix)]
    return max(found, key=lambda block: block.prefix.prefixlen, default=None)


def shown(prefix: Network) -> str:
    """Format a prefix for people: a single host is written as its address."""
    is_host = prefix.prefixlen == prefix.max_prefixlen
    return str(prefix.network_address if is_host else prefix)


def to_json(blocks: Blocks) -> list[dict[str, object]]:
    """Convert blocks to JSON rows, for the file and for the API."""
    return [
        {"prefix": shown(b.prefix), "why": b.why, "since": b.since, "until": b.until}
        | ({"over": True} if b.over else {})
        for b in blocks.values()
    ]


def from_json(rows: Iterable[Mapping[str, object]]) -> dict[Network, Block]:
    """Convert JSON rows to blocks; ValueError, KeyError or TypeError if they are not valid."""
    found = {}
    for row in rows:
        prefix = ip_network(str(row["prefix"]))
        since, until = row["since"], row["until"]
        if not isinstance(since, int | float) or not isinstance(until, int | float):
            raise TypeError(f"times of {prefix}")
        if not (math.isfinite(since) and math.isfinite(until)):
            raise ValueError(f"times of {prefix}")
        over = row.get("over") is True
        found[prefix] = Block(prefix, str(row["why"]), float(since), float(until), over)
    return found


def _holds(wide: Network, narrow: Network) -> bool:
    if wide.version != narrow.version or wide.prefixlen > narrow.prefixlen:
        return False
    spare = wide.max_prefixlen - wide.prefixlen
    return int(wide.network_address) >> spare == int(narrow.network_address) >> spare


def _share(prefix: Network) -> str:
    return "all" if not prefix.prefixlen else f"1/{1 << prefix.prefixlen}"
