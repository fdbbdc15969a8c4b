"""Decides which idle flows are to be reset, and takes them out of the flow table.

A client's RST goes through the program itself, as a packet would: so the flow is closed by the
packet path, with every sum kept, and what comes out is the frame that tells the backend, however
packets reach it. The RST has the sequence number of the client's next byte. A backend to which a
request is on its way has got, or gets first, bytes from there on, and ignores it (RFC 9293,
section 3.5.3): a request in flight is never cut.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, flows, libbpf, survey
from agent.dataplane.constants import Clock, HashKeys
from agent.dataplane.flows import Names
from agent.dataplane.libbpf import ProgramType
from agent.dataplane.tables import SharedTables, Table
from agent.model import BackendRef
from agent.state.queries import FlowView
from agent.state.segment import ACK, RST, Segment

LEAST_IDLE_TICKS = 2  # so that any packet since then has changed the slot
_TALKS = (abi.Talk.PLAIN, abi.Talk.TLS_FIRST, abi.Talk.TLS)
_TX, _REDIRECT = 3, 4  # enum xdp_action
_TC_REDIRECT = 7
_CONTEXT_BYTES = 256  # no less than the kernel has, which gives all of it back
_ETH_P = {4: 0x0800, 6: 0x86DD}


@dataclass(frozen=True, slots=True)
class IdleFlow:
    """An idle connection: nothing waits in it, and both ends stand where they stood."""

    slot: int
    word: int  # of the slot
    view: FlowView
    seq: int  # of the client's next byte
    ack: int  # the server's byte with which the last answer began

    @property
    def ref(self) -> BackendRef:
        return BackendRef(self.view.service, self.view.backend)

    def client_reset(self) -> Segment:
        """What the client would send to give the connection up."""
        five = self.view.tuple5
        ends = (five.client, five.client_port, five.vip, five.port)
        return Segment(*ends, seq=self.seq, ack=0, flags=RST)

    def probe(self) -> Segment:
        """What makes the client say where it stands: a byte that it has had long since, as
        keep-alive probes have (RFC 9293, section 3.8.4).
        """
        five = self.view.tuple5
        ends = (five.vip, five.port, five.client, five.client_port)
        before = (self.ack - 1) % 2**32
        return Segment(*ends, seq=before, ack=self.seq, flags=ACK)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of one backend: how many flows, and how long each must have been idle."""

    count: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame for the wire, and the interface that it leaves by."""

    ifindex: int
    data: bytes


def idle_flows(
    tables: SharedTables,
    names: Names,
    wanted: Mapping[int, Wanted],
    keys: HashKeys,
    clock: Clock,
    jiffies: int,
) -> tuple[IdleFlow, ...]:
    """Of each backend, by id, as many established flows as wanted, the longest idle first.

    Left out: those in which a request waits; in which nothing was asked yet, or not all was
    seen; and HTTP/2, where the first answer hides that others are awaited.
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
    """Which of these flows have asked something, and are not told by what another has left."""
    since = warm["request_jiffies"] - cold["start"].astype(np.uint32)
    asked: npt.NDArray[np.bool_] = (since.view(np.int32) >= -clock.hz) & (warm["request"] != 0)
    return asked


class Closer:
    """Closes idle flows in the tables of a running program.

    ``program`` tells its descriptor and type as of now; ``ifindex`` is of the interface that
    clients' packets come in by, where the flow does not say.
    """

    def __init__(
        self,
        tables: SharedTables,
        program: Callable[[], tuple[int, ProgramType]],
        ifindex: Callable[[], int],
    ) -> None:
        self._tables = tables
        self._program = program
        self._ifindex = ifindex

    def close(self, flow: IdleFlow) -> Frame | None:
        """Close a flow, unless a packet has come since it was chosen; the frame that tells the
        backend.
        """
        came_in, frame = self._frame_of(flow)
        fd, kind = self._program()
        context = _context(kind, came_in, len(frame))
        row = self._tables.flows_warm[flow.slot]
        if int(self._tables.flows[flow.slot]) != flow.word or int(row["seq"]) != flow.seq:
            return None
        done = libbpf.test_run(fd, frame, context=context)
        sent = (_TC_REDIRECT,) if kind is ProgramType.SCHED_CLS else (_TX, _REDIRECT)
        if done.verdict not in sent:
            return None
        backend = self._tables.backends[(flow.word >> abi.FLOW_BACKEND_SHIFT) & 0xFFFF]
        data = done.data
        if kind is ProgramType.SCHED_CLS and backend["tags"]:
            # The kernel keeps the outer tag beside the frame.
            data = data[:12] + backend["vlan"][:2].tobytes() + data[12:]
        return Frame(int(backend["ifindex"]) or came_in, data)

    def is_left(self, flow: IdleFlow) -> bool:
        """Whether the flow is closing, and its client has sent nothing since."""
        word = int(self._tables.flows[flow.slot])
        state = (word >> abi.FLOW_STATE_SHIFT) & 7
        same = word >> abi.FLOW_BACKEND_SHIFT == flow.word >> abi.FLOW_BACKEND_SHIFT
        seq = int(self._tables.flows_warm[flow.slot]["seq"])
        return same and state == abi.FlowState.CLOSING and seq == flow.seq

    def _frame_of(self, flow: IdleFlow) -> tuple[int, bytes]:
        """The client's RST as it would come in: where and as the flow's last packet came, because
        nat and fullnat send answers back that way.
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


def _context(kind: ProgramType, ifindex: int, length: int) -> bytes:
    """What a test run has to be told of the interface that the frame came in by."""
    if kind is ProgramType.SCHED_CLS:
        known = struct.pack("=11I", *[0] * 10, ifindex)  # struct __sk_buff, up to ifindex
    else:
        known = struct.pack("=4I", 0, length, 0, ifindex)  # struct xdp_md, likewise
    return known.ljust(_CONTEXT_BYTES, b"\0")
