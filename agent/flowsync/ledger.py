"""Owns what this node knows of a peer's knowledge: which flows it has sent to the peer, and which
it has received from it.

A received flow that no packet has touched here still belongs to the peer: it is not sent back, and
the peer may remove it. The first packet that changes its slot makes it this node's own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.survey import Slots
from agent.flowsync.kept import Kept

# The bits of a slot's word that are sent; whether a request is waiting is not.
SENT_BITS = np.uint64(~(abi.FLOW_AWAITING << abi.FLOW_STATE_SHIFT) & (2**64 - 1))


class Ledger:
    """The ledger of one peer and a flow table with so many slots. It is not thread-safe.

    ``sent``: by slot, the word that the peer knows, or 0. ``received``: by slot, the word that was
    installed from the peer's record, or 0. ``holder``: by slot, the peer's slot that the flow is
    in, plus 1, or 0. ``place``: the inverse, our slot plus 1 by the peer's slot. ``kept``: what an
    earlier ledger of the same pair of nodes has left.
    """

    def __init__(self, slots: int, kept: Kept | None = None) -> None:
        self.sent: Slots = np.zeros(slots, dtype=np.uint64)
        self._kept = kept or Kept.nowhere(slots)
        self.received = self._kept.received
        self.holder = self._kept.holder
        self.place = np.zeros(0, dtype=np.uint32)

    def meet(self, tables: str, slots: int) -> None:
        """Note which tables the peer has. If they are not the ones that it sent flows from, it has
        lost those flows, and the ones received from it are for this node to send.
        """
        whole = f"{tables}, {slots} slots"
        if whole != self._kept.tables:
            self.sent[self.received != 0] = 0
            self._kept.meet(whole)
        elif slots == len(self.place):
            return
        self.place = np.zeros(slots, dtype=np.uint32)
        ours = np.flatnonzero(self.holder)
        theirs = self.holder[ours].astype(np.int64) - 1
        self.place[theirs[theirs < slots]] = ours[theirs < slots] + 1

    def is_untouched(self, words: Slots, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of these slots hold, with these words, a flow just as the peer sent it."""
        untouched: npt.NDArray[np.bool_] = (words != 0) & (words == self.received[slots])
        return untouched
