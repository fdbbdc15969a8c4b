"""Decides what each record of a peer means here: which service and backend the flow belongs to,
where it hashes to, and which word its slot gets; or why it is refused. It looks at no slot of this
node's table.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, flowhash
from agent.dataplane.abi import FlowState
from agent.dataplane.survey import Counts, Slots
from agent.dataplane.tables import Table
from agent.flowsync.identity import IdMap
from agent.flowsync.records import MOST_TAGS, Records
from agent.flowsync.view import View, limits_of
from agent.model import Protocol

# A received flow is made to look a tick older than it is, so that its first packet here changes
# the slot's word and can be noticed.
OLDER_TICKS = 1
_BYTES = np.arange(256)
_STATES = np.isin(
    _BYTES, (FlowState.EMBRYONIC, FlowState.ESTABLISHED, FlowState.CLOSING, FlowState.ACKED)
)
_PROTOCOLS = np.isin(_BYTES, [protocol.number for protocol in Protocol])
_FAMILIES = np.isin(_BYTES, (4, 6))

type Mask = npt.NDArray[np.bool_]


class Refusal(enum.Enum):
    """Why a flow of the peer's is not in our table; the values are labels of metrics."""

    MALFORMED = "malformed"
    NO_SERVICE = "no-service"  # we do not have its service
    NO_BACKEND = "no-backend"  # we do not have its backend, or the backend is gone
    OVER = "over"  # idle past its timeout
    KNOWN = "known"  # not a refusal: it lives here, and its last packet came here
    OURS = "ours"  # it lives here, at another backend
    NO_ROOM = "no-room"
    NO_NAT_SOURCE = "no-nat-source"  # fullnat: we do not have its address or port
    NAT_TAKEN = "nat-taken"  # a flow of ours has them
    RACED = "raced"  # a packet came first


@dataclass(frozen=True, slots=True)
class Plan:
    """Flows that can be taken; every array has one element per flow.

    ``row``: index of the record. ``word``: the slot's word. ``nat``: index of the NAT slot, or -1.
    ``source``: the number of the source address of fullnat.
    """

    row: Counts
    bucket: Counts
    word: Slots
    service: Counts
    backend: Counts
    nat: Counts
    source: Counts

    def __len__(self) -> int:
        return len(self.row)

    def take(self, chosen: Counts | Mask) -> Self:
        """Return the plan of some of the flows."""
        return type(self)(
            self.row[chosen],
            self.bucket[chosen],
            self.word[chosen],
            self.service[chosen],
            self.backend[chosen],
            self.nat[chosen],
            self.source[chosen],
        )


def plan(view: View, ids: IdMap, records: Records, jiffies: int) -> tuple[Plan, dict[Refusal, int]]:
    """Return the flows of these records that can be taken, and how many cannot, by reason."""
    service = ids.services[records["service"]]
    backend = ids.backends[records["backend"]]
    state = records["state"].astype(np.int64)
    is_well = _is_well_formed(records)
    limit = limits_of(view.tables, backend, np.where(is_well, state, 0))
    ticks = _ticks(view, records)
    nat, has_source = _nat_index(view, ids, records, backend)
    owner = view.tables.backends["service"][backend]
    word, bucket = _place(
        view, records, service, backend, state, (jiffies >> view.clock.shift) - ticks
    )
    refused: dict[Refusal, int] = {}
    good = np.ones(len(records), dtype=bool)
    for reason, passes in (
        (Refusal.MALFORMED, is_well),
        (Refusal.NO_SERVICE, service != 0),
        (Refusal.NO_BACKEND, (backend != 0) & (owner == service) & (limit >= 0)),
        (Refusal.OVER, ticks <= np.minimum(limit, abi.FLOW_STAMP_MASK)),
        (Refusal.NO_NAT_SOURCE, has_source),
    ):
        number = int(np.count_nonzero(good & ~passes))
        if number:
            refused[reason] = number
        good &= passes
    rows = np.arange(len(records))
    source = ids.nat_sources[records["nat_source"]]
    return Plan(rows, bucket, word, service, backend, nat, source).take(good), refused


def cold_of(records: Records, service: Counts) -> Table:
    """Return the cold rows of these flows (addresses, ports, service) without the start time."""
    cold = np.zeros(len(records), dtype=abi.FLOW_COLD)
    cold["saddr"] = np.ascontiguousarray(records["client"]).view(">u4")
    cold["daddr"] = np.ascontiguousarray(records["vip"]).view(">u4")
    cold["sport"], cold["dport"] = records["client_port"], records["vip_port"]
    cold["service"] = service
    cold["l4_proto"], cold["family"] = records["l4_proto"], records["family"]
    return cold


def _is_well_formed(records: Records) -> Mask:
    well: Mask = _STATES[records["state"]] & _FAMILIES[records["family"]]
    well &= _PROTOCOLS[records["l4_proto"]] & (records["tags"] <= MOST_TAGS)
    is_short = ~records["client"][:, 4:].any(axis=1) & ~records["vip"][:, 4:].any(axis=1)
    well &= (records["family"] == 6) | is_short
    return well


def _ticks(view: View, records: Records) -> Counts:
    """Return how many ticks the flows have been idle, plus OLDER_TICKS."""
    ticks = np.round(records["idle_ms"] / (view.clock.tick_s * 1000)).astype(np.int64)
    return ticks + OLDER_TICKS


def _place(
    view: View, records: Records, service: Counts, backend: Counts, state: Counts, stamp: Counts
) -> tuple[Slots, Counts]:
    """Return the word of each flow, and its bucket."""
    cold = cold_of(records, service)
    hashes = view.keys.hashes(service, flowhash.wire_of(cold), flowhash.daddr_of(cold))
    low = backend << abi.FLOW_BACKEND_SHIFT | state << abi.FLOW_STATE_SHIFT
    low |= stamp & abi.FLOW_STAMP_MASK
    word = flowhash.tags_of(hashes) << np.uint64(abi.FLOW_TAG_SHIFT) | low.astype(np.uint64)
    return word, flowhash.buckets_of(hashes, view.tables.size.flow_buckets)


def _nat_index(view: View, ids: IdMap, records: Records, backend: Counts) -> tuple[Counts, Mask]:
    """Return the NAT slot of each fullnat flow, and a mask of flows that need none or have one
    here.

    A fullnat flow without a port gets one with its next packet.
    """
    size = view.tables.size
    is_fullnat = view.tables.backends["forward"][backend] == abi.ForwardId.FULLNAT
    needs = is_fullnat & (records["nat_port"] != 0)
    number = ids.nat_sources[records["nat_source"]]
    block = view.nat_places.blocks(backend, records["vip_port"], number)
    port = records["nat_port"].astype(np.int64) - size.nat_first_port
    is_here: Mask = (block >= 0) & (block < size.nat_blocks) & (port >= 0) & (port < size.nat_ports)
    index = np.where(needs & is_here, block * size.nat_ports + port, -1)
    return index, is_here | ~needs
