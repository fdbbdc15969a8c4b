"""Decides which of two balancers connects, so that there is one stream for a pair.

The one with the lower address connects. If a node and its peer see that node's address
differently, neither of them or both may think that it is their turn. So a node that has waited
long enough connects as well, and if there are two streams, both nodes keep the same one.
"""

from __future__ import annotations

from agent.failover.model import Address
from agent.failover.times import FIRST_RETRY_S, LONGEST_RETRY_S

_JITTER = 0.3


def connects(own: Address, peer: Address) -> bool:
    """Return whether it is this node's turn to connect; both addresses are of one family.

    A node that has its own address among its peers connects as well, and finds out that it has
    connected to itself.
    """
    return int(own) <= int(peer)


def accepts(*, our_turn: bool, connecting: bool, connected: bool, by_us: bool) -> bool:
    """Return whether an authenticated stream that the peer opened replaces the present one, if any.

    ``connecting``: a handshake that we began is in progress; ``connected``: there is a stream;
    ``by_us``: this node opened it. A peer that opens a second stream has lost the first one.
    """
    if our_turn:
        return not connecting and not (connected and by_us)
    return True


def retry_s(failures: int, chance: float) -> float:
    """Return how long to wait after so many failed attempts in a row.

    ``chance`` is a random number from 0 to 1, for the jitter.
    """
    base = min(FIRST_RETRY_S * 2.0 ** min(max(failures - 1, 0), 10), LONGEST_RETRY_S)
    return base * (1 + _JITTER * (2 * chance - 1))
