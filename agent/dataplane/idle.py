"""Decides which idle flows are to be reset, and takes them out of the flow table.

The client's RST is run through the program itself, as a packet would be. The packet path thus
closes the flow, with every sum kept, and what comes out is the frame that informs the backend, by
whichever way packets reach it. The RST has the sequence number of the client's next byte. A backend
to which a request is on its way has received bytes from there on, or receives them first, and
ignores the RST (RFC 9293, section 3.5.3): a request in flight is never cut.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, flows, survey
from agent.dataplane.constants import Clock, HashKeys
from agent.dataplane.flows import Names
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.rerun import Frame, Rerun
from agent.dataplane.tables import SharedTables, Table
from agent.model import BackendRef
from agent.state.queries import FlowView
from agent.state.segment import ACK, RST, Segment

LEAST_IDLE_TICKS = 2  # so that any later packet has changed the slot
_TALKS = (abi.Talk.PLAIN, abi.Talk.TLS_FIRST, abi.Talk.TLS)
_ETH_P = {4: 0x0800, 6: 0x86DD}


@dataclass(frozen=True, slots=True)
class IdleFlow:
    """An idle connection, in which no request waits, and where each of its ends stands."""

    slot: int
    word: int  # what the slot held
    view: FlowView
    seq: int  # the sequence number of the client's next byte
    ack: int  # the number of the server's byte with which the last answer began

    @property
    def ref(self) -> BackendRef:
        return BackendRef(self.view.service, self.view.backend)

    def client_reset(self) -> Segment:
        """Return what the client would send to give the connection up."""
        five = self.view.tuple5
        ends = (five.client, five.client_port, five.vip, five.port)
        return Segment(*ends, seq=self.seq, ack=0, flags=RST)

    def probe(self) -> Segment:
        """Return a segment that makes the client say where it stands.

        Its byte is one that the client got long ago, as in keep-alive probes (RFC 9293, section
        3.8.4).
        """
        five = self.view.tuple5
        ends = (five.vip, five.port, five.client, five.client_port)
        before = (self.ack - 1) % 2**32
        return Segment(*ends, seq=before, ack=self.seq, flags=ACK)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many flows of one backend are wanted, and how long each must have been idle."""

    count: int
    idle_s: float


def idle_flows(
    tables: SharedTables,
    names: Names,
    wanted: Mapping[int, Wanted],
    keys: HashKeys,
    clock: Clock,
    jiffies: int,
) -> tuple[IdleFlow, ...]:
    """Return as many established flows of each backend as ``wanted`` says, the longest idle first.

    ``wanted`` is by backend id. Flows are left out if a request waits in them, if nothing was asked
    yet or not all was seen, and if they are HTTP/2, where the first answer hides that others are
    awaited.
    """
    used, words = survey.used_slots(tables.flows)
    idle = survey.idle_ticks(words, jiffies >> clock.shift)
    least = np.full(1 << 16, np.iinfo(np.int32).max, dtype=np.int32)
    for ident, want in wanted.items():
        least[ident] = max(clock.ticks(want.idle_s) + 1, LEAST_IDLE_TICKS)
    backend = survey.backend_of(words)
    keep = survey.state_of(words) == abi.FlowState.ESTABLISHED
    keep &= idle >= least[backend]
    used, words, idle, backend = used[keep], words[keep], idle[keep], backend[keep]
    warm, cold = tables.flows_warm[used], tables.flows_cold[used]
    keep = np.isin(warm["talk"], _TALKS) & _asked_since(warm, cold, clock)
    keep &= flows.is_whole(words, used, cold, names, keys, tables.size.flow_buckets)
    order = np.argsort(-idle[keep].astype(np.int32), kind="stable")
    chosen = np.flatnonzero(keep)[order]
    left = {ident: want.count for ident, want in wanted.items()}
    found = []
    for i in chosen:
        ident = int(backend[i])
        if left[ident] > 0 and ident in names.backends:
            left[ident] -= 1
            slot, word = int(used[i]), int(words[i])
            view = flows.view(tables, names, clock, jiffies, slot, word, cold[i])
            found.append(IdleFlow(slot, word, view, int(warm["seq"][i]), int(warm["ack"][i])))
    return tuple(found)


def _asked_since(warm: Table, cold: Table, clock: Clock) -> npt.NDArray[np.bool_]:
    """Return which of these flows have sent a request themselves.

    A row may still hold what an earlier flow in its slot has left.
    """
    since = warm["request_jiffies"] - cold["start"].astype(np.uint32)
    asked: npt.NDArray[np.bool_] = (since.view(np.int32) >= -clock.hz) & (warm["request"] != 0)
    return asked


class Closer:
    """Closes idle flows in the tables of a running program.

    ``program`` returns its descriptor and type as of now. ``ifindex`` returns the interface that
    clients' packets come in by, for flows that do not record it.
    """

    def __init__(
        self,
        tables: SharedTables,
        program: Callable[[], tuple[int, ProgramType]],
        ifindex: Callable[[], int],
    ) -> None:
        self._tables = tables
        self._rerun = Rerun(program)
        self._ifindex = ifindex

    def close(self, flow: IdleFlow) -> Frame | None:
        """Close a flow, unless a packet has come since it was chosen.

        Returns the frame that informs the backend; None if the flow was not closed.
        """
        came_in, frame = self._frame_of(flow)
        row = self._tables.flows_warm[flow.slot]
        if int(self._tables.flows[flow.slot]) != flow.word or int(row["seq"]) != flow.seq:
            return None
        sent = self._rerun.send(came_in, frame)
        ident = (flow.word >> abi.FLOW_BACKEND_SHIFT) & 0xFFFF
        return None if sent is None else sent.to(self._tables.backends[ident])

    def is_left(self, flow: IdleFlow) -> bool:
        """Return whether the flow is closing, and its client has sent nothing since."""
        word = int(self._tables.flows[flow.slot])
        state = (word >> abi.FLOW_STATE_SHIFT) & 7
        same = word >> abi.FLOW_BACKEND_SHIFT == flow.word >> abi.FLOW_BACKEND_SHIFT
        seq = int(self._tables.flows_warm[flow.slot]["seq"])
        return same and state == abi.FlowState.CLOSING and seq == flow.seq

    def _frame_of(self, flow: IdleFlow) -> tuple[int, bytes]:
        """Return the client's RST as it would come in: the interface, and the frame.

        It comes in where and as the flow's last packet did, because nat and fullnat send answers
        back that way.
        """
        packet = flow.client_reset().packet()
        eth_proto = struct.pack("!H", _ETH_P[flow.view.tuple5.client.version])
        way = self._tables.flows_warm[flow.slot : flow.slot + 1]
        ident = (flow.word >> abi.FLOW_BACKEND_SHIFT) & 0xFFFF
        backend = self._tables.backends[ident]
        if backend["forward"] not in (abi.ForwardId.NAT, abi.ForwardId.FULLNAT):
            return self._ifindex(), bytes(12) + eth_proto + packet
        macs = way["source_mac"][0].tobytes() + way["mac"][0].tobytes()
        tags = way["vlan"][0].tobytes()[: 4 * int(way["tags"][0])]
        return int(way["ifindex"][0]), macs + tags + eth_proto + packet
