"""Decides what the flow table says: how many flows in which state, whose, and which are over.

Pure functions over the slots as they lie in shared memory; a million slots take some
milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.tables import Table

type Slots = npt.NDArray[np.uint64]

_OPEN = (abi.FlowState.EMBRYONIC, abi.FlowState.ESTABLISHED, abi.FlowState.ACKED)


@dataclass(frozen=True, slots=True)
class Survey:
    """The flow table at one moment.

    ``by_state`` (8), ``live`` (by backend id: acked and established); ``expired``: indices of
    slots idle past their timeout or of a backend that is gone, ``words`` what they held.
    """

    by_state: npt.NDArray[np.int64]
    live: npt.NDArray[np.int64]
    expired: npt.NDArray[np.int64]
    words: Slots

    def state_count(self, state: abi.FlowState) -> int:
        """Slots in a state, whether or not a request waits in them."""
        awaiting = {abi.FlowState.ESTABLISHED: 6, abi.FlowState.CLOSING: 7}.get(state)
        return int(self.by_state[state] + (self.by_state[awaiting] if awaiting else 0))


def backend_of(words: Slots) -> npt.NDArray[np.int64]:
    return ((words >> np.uint64(abi.FLOW_BACKEND_SHIFT)) & np.uint64(0xFFFF)).astype(np.int64)


def state_of(words: Slots) -> npt.NDArray[np.int64]:
    return ((words >> np.uint64(abi.FLOW_STATE_SHIFT)) & np.uint64(7)).astype(np.int64)


def idle_ticks(words: Slots, now: int) -> npt.NDArray[np.int64]:
    return (now - (words & np.uint64(abi.FLOW_STAMP_MASK)).astype(np.int64)) & abi.FLOW_STAMP_MASK


def used_slots(flows: Slots) -> npt.NDArray[np.int64]:
    """Indices of the slots that hold a flow.

    Compares first: ``flatnonzero`` of the table itself raises when the packet path changes it
    between its two readings.
    """
    return np.flatnonzero(flows != 0)


def survey(flows: Slots, backends: Table, now: int) -> Survey:
    """Read the whole table; ``now`` in ticks."""
    # Compared first: numpy raises when what it counts the non-zeros of changes under it.
    used = np.flatnonzero(flows != 0)
    words = flows[used]
    backend = np.minimum(backend_of(words), len(backends) - 1)
    state = state_of(words)
    timeouts = backends["timeout_ticks"].astype(np.int64)
    gone = (backends["service"] == 0)[backend]
    over = gone | (idle_ticks(words, now) > timeouts[backend, state])
    is_live = (state == abi.FlowState.ACKED) | (state == abi.FlowState.ESTABLISHED) | (state == 6)
    return Survey(
        by_state=np.bincount(state, minlength=abi.FLOW_STATES),
        live=np.bincount(backend[is_live & ~gone], minlength=len(backends)),
        expired=used[over],
        words=words[over],
    )


def sweep(flows: Slots, found: Survey, agent_counts: Table) -> int:
    """Free the expired slots of a survey that nothing has changed since; how many.

    It keeps stamps from coming round again (after 9 hours). A slot is compared just before it
    is cleared; a packet that claims it in between loses its record, not its backend.
    ``agent_counts`` is the agent's row of the backend counters.
    """
    same = flows[found.expired] == found.words
    index, words = found.expired[same], found.words[same]
    flows[index] = 0
    still_open = np.isin(state_of(words), (*_OPEN, 6))
    np.add.at(agent_counts["closed"], backend_of(words[still_open]), 1)
    return len(index)


def named_backends(flows: Slots) -> frozenset[int]:
    """Ids of the backends that any slot names."""
    ids = np.unique(backend_of(flows[np.flatnonzero(flows != 0)]))
    return frozenset(int(i) for i in ids)
