"""Decides in which slot of its bucket a flow of the peer's goes, if in any.

It follows the packet path's own rules: a flow that is present keeps its slot; any other flow gets
a free slot, or that of a flow that is over; embryonic flows get no more than their share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agent.dataplane import abi, survey
from agent.dataplane.abi import FlowState
from agent.dataplane.survey import Counts, Slots
from agent.flowsync.ledger import Ledger
from agent.flowsync.plan import Mask, Plan, Refusal
from agent.flowsync.view import View, over

_ROUNDS = 4 * abi.FLOW_WAYS  # most flows of one bucket in one batch


@dataclass(frozen=True, slots=True)
class Places:
    """Where flows of different buckets go: their slots, and the words that the slots hold now.

    ``goes_on``: the slot holds the flow itself, at the same backend. ``refused``: masks of the
    flows that get no slot, by reason.
    """

    slots: Counts
    words: Slots
    goes_on: Mask
    refused: dict[Refusal, Mask]

    @property
    def fits(self) -> Mask:
        fits: Mask = ~np.logical_or.reduce(list(self.refused.values()))
        return fits


def rounds(bucket: Counts) -> Iterator[Counts]:
    """Yield the flows' indices in parts, in each of which every bucket occurs once at most.

    Flows beyond the first ``_ROUNDS`` of a bucket are left out.
    """
    left = np.arange(len(bucket))
    for _ in range(_ROUNDS):
        if not len(left):
            return
        first = np.unique(bucket[left], return_index=True)[1]
        yield left[first]
        left = np.delete(left, first)


def places(
    view: View, ledger: Ledger, planned: Plan, now: int, embryonic_ways: int, *, peer_wins: bool
) -> Places:
    """Return places for flows of different buckets.

    ``embryonic_ways``: how many ways of a bucket embryonic flows may take at most. ``peer_wins``:
    the record is newer than what the table holds of the same flow.
    """
    each = np.arange(len(planned))
    words: Slots = view.tables.flows.reshape(-1, abi.FLOW_WAYS)[planned.bucket]
    state = survey.state_of(words)
    tag = planned.word >> np.uint64(abi.FLOW_TAG_SHIFT)
    is_it = (words >> np.uint64(abi.FLOW_TAG_SHIFT) == tag[:, np.newaxis]) & (state != 0)
    is_over = over(view.tables, words, now)
    is_there = is_it.any(axis=1)
    room = _room(state, is_over)
    way = np.where(is_there, is_it.argmax(axis=1), room.argmax(axis=1))
    slots, found = planned.bucket * abi.FLOW_WAYS + way, words[each, way]
    is_same = survey.backend_of(found) == planned.backend
    theirs = ledger.is_untouched(found, slots) | is_over[each, way]
    # The flow has moved to the peer if the peer saw its last packet.
    idle, peer_idle = survey.idle_ticks(found, now), survey.idle_ticks(planned.word, now)
    theirs |= is_same & (idle > peer_idle) | peer_wins
    is_new = survey.state_of(planned.word) == FlowState.EMBRYONIC
    embryonic = np.count_nonzero(state == FlowState.EMBRYONIC, axis=1)
    no_share = is_new & (embryonic >= embryonic_ways)
    goes_on = is_there & is_same & (state[each, way] != FlowState.EMBRYONIC)
    goes_on &= view.tables.flows_warm["nat"][slots] == planned.nat + 1
    return Places(
        slots,
        found,
        goes_on,
        {
            Refusal.KNOWN: is_there & ~theirs & is_same,
            Refusal.OURS: is_there & ~theirs & ~is_same,
            Refusal.NO_ROOM: ~is_there & (no_share | (room.max(axis=1, initial=0) == 0)),
        },
    )


def _room(state: Counts, is_over: Mask) -> Counts:
    """Return a preference for each way of these buckets, shape (buckets, ways): higher for ways
    that the packet path would take later, and 0 for ways that are taken.

    The packet path takes the last free way, or else the first that is over.
    """
    ways = np.arange(abi.FLOW_WAYS)
    free, given = 2 * abi.FLOW_WAYS - ways, 1 + ways
    room: Counts = np.where(state == FlowState.FREE, free, np.where(is_over, given, 0))
    return room
