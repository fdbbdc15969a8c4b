"""Decides which of two balancers connects, so that there is one stream for a pair.

The one with the lower address connects. Where a node sees its own address differently from its
peer, neither or both could think that it is their turn: so whoever has waited long enough tries
as well, and of two streams both keep the same one.
"""

from __future__ import annotations

from agent.failover.model import Address
from agent.failover.times import FIRST_RETRY_S, LONGEST_RETRY_S

_JITTER = 0.3


def connects(own: Address, peer: Address) -> bool:
    """Whether it is this node's turn to connect; both addresses are of one family.

    Who has its own address among its peers connects as well, and meets itself.
    """
    return int(own) <= int(peer)


def accepts(*, our_turn: bool, connecting: bool, connected: bool, by_us: bool) -> bool:
    """Whether a proven stream that the peer has opened takes the place of what there is.

    ``connecting``: a handshake of ours is under way; ``connected``: a stream is there, ``by_us``
    who opened it. A peer that opens a second stream has lost the first one.
    """
    if our_turn:
        return not connecting and not (connected and by_us)
    return True


def retry_s(failures: int, chance: float) -> float:
    """How long to wait after so many failed attempts in a row; ``chance`` is from 0 to 1."""
    base = min(FIRST_RETRY_S * 2.0 ** min(max(failures - 1, 0), 10), LONGEST_RETRY_S)
    return base * (1 + _JITTER * (2 * chance - 1))
