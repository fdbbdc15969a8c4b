"""Decides which recorded flows have to end, takes them out of the flow table, and informs both
ends.

A flow that is ended keeps its slot for a while, closing and at no backend. The packet path answers
whatever comes from either end with an RST of exactly the right number (bpf/slot.h). Each end is
therefore informed in two ways: by an RST with the recorded number, which is right if the other side
has been silent since, and by a probe like those of keep-alive, which makes an end say where it
stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, flows, survey
from agent.dataplane.atomics import exchange
from agent.dataplane.constants import HashKeys
from agent.dataplane.flows import Names
from agent.dataplane.sourcetrees import BLOCKS, SourceTrees
from agent.dataplane.survey import Counts, Slots
from agent.dataplane.tables import SharedTables, Table
from agent.model import Address, Protocol
from agent.state.segment import ACK, RST, Segment

# Both ends consider a flow in one of these states open.
OPEN = (abi.FlowState.ACKED, abi.FlowState.ESTABLISHED, abi.FlowState.ESTABLISHED_AWAITING)
# A client that has sent its FIN still waits for the answer.
HALF_OPEN_TOO = (*OPEN, abi.FlowState.CLOSING_AWAITING)
_NAT = (abi.ForwardId.NAT, abi.ForwardId.FULLNAT)


@dataclass(frozen=True, slots=True)
class Flows:
    """Slots of the flow table, and the words that they held."""

    slots: Counts
    words: Slots

    def __len__(self) -> int:
        return len(self.slots)

    def those(self, chosen: npt.NDArray[np.bool_] | slice) -> Flows:
        return Flows(self.slots[chosen], self.words[chosen])


@dataclass(frozen=True, slots=True)
class Ended:
    """Flows that were ended.

    ``marks``: the words that their slots have held since. ``backends``: the rows of the backends
    that they were at, by id, as they were at that time.
    """

    flows: Flows
    marks: Slots
    backends: Mapping[int, Table]

    def __len__(self) -> int:
        return len(self.flows)

    def by_backend(self) -> dict[int, int]:
        """Return how many flows were ended, by the id of the backend."""
        ids, counts = np.unique(survey.backend_of(self.flows.words), return_counts=True)
        return {int(ident): int(count) for ident, count in zip(ids, counts, strict=True)}

    def those(self, chosen: npt.NDArray[np.bool_] | slice) -> Ended:
        return Ended(self.flows.those(chosen), self.marks[chosen], self.backends)


def at_backends(tables: SharedTables, ids: Counts, states: tuple[abi.FlowState, ...]) -> Flows:
    """Return the flows in these states at these backends."""
    used, words = survey.used_slots(tables.flows)
    keep = np.isin(survey.state_of(words), states)
    keep &= np.isin(survey.backend_of(words), ids)
    return Flows(used[keep], words[keep])


def of_blocked(tables: SharedTables, services: Collection[int]) -> Flows:
    """Return the flows of blocked clients at these services that an end may still rely on."""
    trees = SourceTrees(tables)
    slots, found = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint64)]
    for used, words in survey.used_chunks(tables.flows):
        keep = np.isin(survey.state_of(words), HALF_OPEN_TOO)
        used, words = used[keep], words[keep]
        cold = tables.flows_cold[used]
        keep = np.isin(cold["service"], list(services))
        for family, tree in zip((4, 6), BLOCKS, strict=True):
            ours = cold["family"] == family
            ours[ours] = trees.lists_of_all(tree, cold["saddr"][ours]) == 0
            keep &= ~ours
        slots.append(used[keep])
        found.append(words[keep])
    return Flows(np.concatenate(slots), np.concatenate(found))


def expired(tables: SharedTables, found: survey.Survey, services: Counts) -> Flows:
    """Return the TCP flows of nat and fullnat at these services that are idle past their timeout
    while both ends consider them open.

    Their answers could not get through any more. ``found``: the survey that found them idle.
    """
    ids = survey.backend_of(found.words)
    known = np.where(ids < len(tables.backends), ids, 0)
    keep = np.isin(survey.state_of(found.words), OPEN)
    keep &= np.isin(tables.backends["forward"][known], _NAT)
    keep &= np.isin(tables.backends["service"][known], services)
    keep[keep] = tables.flows_cold["l4_proto"][found.expired[keep]] == Protocol.TCP.number
    return Flows(found.expired[keep], found.words[keep])


def whole_tcp(tables: SharedTables, chosen: Flows, names: Names, keys: HashKeys) -> Flows:
    """Return those TCP flows whose addresses are known: their records belong to their slots."""
    cold = tables.flows_cold[chosen.slots]
    keep = cold["l4_proto"] == Protocol.TCP.number
    buckets = tables.size.flow_buckets
    keep &= flows.is_whole(chosen.words, chosen.slots, cold, names, keys, buckets)
    return chosen.those(keep)


def end(tables: SharedTables, chosen: Flows, now: int) -> Ended:
    """End the flows whose slots have not changed since; call it in the thread that writes the
    tables.

    ``now`` is in ticks.
    """
    tags = chosen.words >> np.uint64(abi.FLOW_TAG_SHIFT)
    low = abi.FlowState.CLOSING << abi.FLOW_STATE_SHIFT | now & abi.FLOW_STAMP_MASK
    marks = tags << np.uint64(abi.FLOW_TAG_SHIFT) | np.uint64(low)
    ids = np.unique(survey.backend_of(chosen.words))
    rows = {int(ident): tables.backends[ident].copy() for ident in ids}
    done = exchange(tables.flows, chosen.slots, chosen.words, marks)
    chosen, marks = chosen.those(done), marks[done]
    survey.count_closed(tables, chosen.words, tables.backends["service"].astype(np.int64))
    return Ended(chosen, marks, rows)


def segments(tables: SharedTables, ended: Ended) -> Iterator[Segment]:
    """Yield the segments that tell both ends of these flows that the flows are over.

    Flows whose slots have gone to other flows since are left out.
    """
    ended = ended.those(tables.flows[ended.flows.slots] == ended.marks)
    cold, warm = tables.flows_cold[ended.flows.slots], tables.flows_warm[ended.flows.slots]
    for i in range(len(ended)):
        to_client = _client_ends(cold[i])
        # The numbers that the client and the server expect next, if the other end has been silent.
        clients, servers = int(warm[i]["ack"]), int(warm[i]["seq"])
        yield from _reset_and_probe(to_client, clients, servers)
        slot, word = int(ended.flows.slots[i]), int(ended.flows.words[i])
        to_server = _server_ends(tables, slot, word, cold[i], warm[i], ended)
        if to_server is not None:
            yield from _reset_and_probe(to_server, servers, clients)


type Ends = tuple[Address, int, Address, int]  # from address and port to address and port


def _reset_and_probe(ends: Ends, seq: int, ack: int) -> tuple[Segment, Segment]:
    """Return a reset, and a keep-alive probe: a byte that the receiver got long ago."""
    before = (seq - 1) % 2**32
    return (
        Segment(*ends, seq=seq, ack=0, flags=RST),
        Segment(*ends, seq=before, ack=ack, flags=ACK),
    )


def _client_ends(cold: Table) -> Ends:
    """Return the ends of a segment from the VIP to the client."""
    family = int(cold["family"])
    vip, client = (flows.address_of(cold[name], family) for name in ("daddr", "saddr"))
    return vip, int(cold["dport"]), client, int(cold["sport"])


def _server_ends(
    tables: SharedTables, slot: int, word: int, cold: Table, warm: Table, ended: Ended
) -> Ends | None:
    """Return the ends of a segment to the server, from what the server knows as its client.

    None if packets do not reach the server at its own address, or if the port of fullnat has gone
    to another flow.
    """
    ident = (word >> abi.FLOW_BACKEND_SHIFT) & 0xFFFF
    backend = ended.backends[ident]
    family, port = int(cold["family"]), int(backend["port"]) or int(cold["dport"])
    server = flows.address_of(backend["addr"], family)
    if backend["forward"] == abi.ForwardId.NAT:
        return flows.address_of(cold["saddr"], family), int(cold["sport"]), server, port
    if backend["forward"] != abi.ForwardId.FULLNAT:
        return None
    owner = (slot + 1) << 32 | word >> abi.FLOW_TAG_SHIFT
    nat = int(warm["nat"]) - 1
    if not 0 <= nat < len(tables.nat_slots):
        return None
    row = tables.nat_slots[nat]
    if int(row["owner"]) != owner or int(row["backend"]) != ident:
        return None
    source = flows.address_of(tables.nat_sources[int(row["source"])]["addr"], family)
    return source, tables.size.nat_first_port + nat % tables.size.nat_ports, server, port
