"""Owns what this node knows of its peer's knowledge: which flows it has told, and which it has
been told of.

A received flow that no packet has touched here is the peer's business: it is not told back, and
the peer may take it away. The first packet that moves its slot makes it this node's own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.survey import Slots
from agent.flowsync.kept import Kept

# What is told of a slot's word: whether a request waits is not.
TOLD = np.uint64(~(abi.FLOW_AWAITING << abi.FLOW_STATE_SHIFT) & (2**64 - 1))


class Ledger:
    """Of a flow table with so many slots, and one peer. Not for two threads at a time.

    ``sent``: by slot, what the peer knows of it, 0 nothing. ``received``: the word as it was when
    the peer told of it. ``holder``: which of its slots, plus 1, is here; ``place``: the other way
    round, by the peer's slot. ``kept``: what an earlier ledger of the same two has left.
    """

    def __init__(self, slots: int, kept: Kept | None = None) -> None:
        self.sent: Slots = np.zeros(slots, dtype=np.uint64)
        self._kept = kept or Kept.nowhere(slots)
        self.received = self._kept.received
        self.holder = self._kept.holder
        self.place = np.zeros(0, dtype=np.uint32)

    def meet(self, tables: str, slots: int) -> None:
        """The peer says which tables it has. If they are others than those that it told of, it
        has lost all of them, and what it told is this node's to tell.
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
        """Which of these slots hold, with these words, a flow of the peer's as it was told."""
        untouched: npt.NDArray[np.bool_] = (words != 0) & (words == self.received[slots])
        return untouched
