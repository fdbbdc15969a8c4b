"""Decides which recorded flows answer a query, from the slots and the cold array."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, flowhash, survey
from agent.dataplane.constants import Clock, HashKeys
from agent.dataplane.tables import SharedTables, Table
from agent.model import Address, BackendRef, Protocol
from agent.state.queries import FiveTuple, FlowPage, FlowQuery, FlowView

STATE_NAMES = {
    int(abi.FlowState.EMBRYONIC): "embryonic",
    int(abi.FlowState.ESTABLISHED): "established",
    int(abi.FlowState.CLOSING): "closing",
    int(abi.FlowState.ACKED): "acked",
    6: "established",
    7: "closing",
}


@dataclass(frozen=True, slots=True)
class Names:
    """What the ids in the tables are called."""

    services: Mapping[int, str]  # by service id
    backends: Mapping[int, BackendRef]  # by backend id
    salts: Mapping[int, int]  # flow salt by service id


def query_flows(
    tables: SharedTables,
    names: Names,
    query: FlowQuery,
    keys: HashKeys,
    clock: Clock,
    jiffies: int,
) -> FlowPage:
    """The flows that match, the most recently active first.

    Embryonic flows have no addresses yet and are not listed. A record whose hash is not its
    slot's (it was being replaced as we read) is left out.
    """
    now = jiffies >> clock.shift
    used = np.flatnonzero(tables.flows != 0)
    words = tables.flows[used]
    state = survey.state_of(words)
    keep = state != abi.FlowState.EMBRYONIC
    keep &= _matches_state(state, query.state)
    keep &= _matches_backend(survey.backend_of(words), names, query)
    used, words = used[keep], words[keep]
    cold = tables.flows_cold[used]
    keep = _is_whole(words, used, cold, names, keys, tables.size.flow_buckets)
    if query.client is not None:
        keep &= _matches_client(cold, query.client)
    used, words, cold = used[keep], words[keep], cold[keep]
    idle = survey.idle_ticks(words, now)
    shown = np.argsort(idle, kind="stable")[: query.limit]
    view = _viewer(names, clock, jiffies)
    flows = tuple(view(words[i], cold[i], int(idle[i])) for i in shown)
    return FlowPage(flows, matched=len(used))


def _matches_state(state: npt.NDArray[np.int64], wanted: str | None) -> npt.NDArray[np.bool_]:
    if wanted is None:
        return np.ones(len(state), dtype=bool)
    return np.isin(state, [number for number, name in STATE_NAMES.items() if name == wanted])


def _matches_backend(
    ids: npt.NDArray[np.int64], names: Names, query: FlowQuery
) -> npt.NDArray[np.bool_]:
    wanted = [
        ident
        for ident, ref in names.backends.items()
        if query.service in (None, ref.service) and query.backend in (None, ref.backend, str(ref))
    ]
    return np.isin(ids, wanted)


def _matches_client(cold: Table, network: IPv4Network | IPv6Network) -> npt.NDArray[np.bool_]:
    words = network.network_address.packed.ljust(16, b"\0")
    masks = network.netmask.packed.ljust(16, b"\0")
    value = np.frombuffer(words, dtype=">u4")
    mask = np.frombuffer(masks, dtype=">u4")
    same: npt.NDArray[np.bool_] = ((cold["saddr"] & mask) == value).all(axis=1)
    same &= cold["family"] == network.version
    return same


def _is_whole(
    words: survey.Slots,
    index: npt.NDArray[np.int64],
    cold: Table,
    names: Names,
    keys: HashKeys,
    buckets: int,
) -> npt.NDArray[np.bool_]:
    salts = np.zeros(1 << 16, dtype=np.uint64)
    for service_id, salt in names.salts.items():
        salts[service_id] = flowhash.flow_key(keys, salt)
    wire = flowhash.Wire(
        np.ascontiguousarray(cold["saddr"]).view(np.uint32),
        np.ascontiguousarray(cold["sport"]).view(np.uint16),
        np.ascontiguousarray(cold["dport"]).view(np.uint16),
        cold["family"] == 6,
    )
    hashes = flowhash.tuple_hashes(wire, salts[cold["service"]], keys.mul0, keys.mul1)
    tags = hashes & np.uint64(0xFFFFFFFF)
    bucket = (hashes >> np.uint64(32)) & np.uint64(buckets - 1)
    place = (index // abi.FLOW_WAYS).astype(np.uint64)
    whole: npt.NDArray[np.bool_] = (tags == words >> np.uint64(32)) & (bucket == place)
    return whole


def _viewer(
    names: Names, clock: Clock, jiffies: int
) -> Callable[[np.uint64, Table, int], FlowView]:
    def view(word: np.uint64, row: Table, idle: int) -> FlowView:
        ident = int(word >> np.uint64(abi.FLOW_BACKEND_SHIFT)) & 0xFFFF
        state = int(word >> np.uint64(abi.FLOW_STATE_SHIFT)) & 7
        ref = names.backends[ident]
        family = int(row["family"])
        age = (jiffies - int(row["start"])) % 2**32 / clock.hz
        return FlowView(
            service=ref.service,
            tuple5=FiveTuple(
                Protocol.TCP if int(row["l4_proto"]) == Protocol.TCP.number else Protocol.UDP,
                address_of(row["saddr"], family),
                int(row["sport"]),
                address_of(row["daddr"], family),
                int(row["dport"]),
            ),
            backend=ref.backend,
            state=STATE_NAMES[state],
            age_s=age,
            idle_s=min(idle * clock.tick_s, age),
        )

    return view


def address_of(words: Table, family: int) -> Address:
    """An address as the tables hold it."""
    raw = words.tobytes()
    return IPv4Address(raw[:4]) if family == 4 else IPv6Address(raw)
