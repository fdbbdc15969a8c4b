"""Decides which recorded flows match a query, from the slots and the cold array."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, flowhash, survey
from agent.dataplane.constants import Clock, HashKeys
from agent.dataplane.tables import SharedTables, Table
from agent.model import Address, BackendRef, Limits, Network, Protocol, Service
from agent.state import threats
from agent.state.eligibility import IN_SPITE
from agent.state.loads import counts_waiting
from agent.state.queries import (
    FiveTuple,
    FlowPage,
    FlowQuery,
    FlowRequests,
    FlowView,
    TopPage,
    TopQuery,
    TopSource,
)
from agent.state.situation import Situation
from agent.state.threats import Sign

type Ranks = npt.NDArray[np.int64]

STATE_NAMES = {
    int(abi.FlowState.EMBRYONIC): "embryonic",
    int(abi.FlowState.ESTABLISHED): "established",
    int(abi.FlowState.CLOSING): "closing",
    int(abi.FlowState.ACKED): "acked",
    int(abi.FlowState.ESTABLISHED_AWAITING): "established",
    int(abi.FlowState.CLOSING_AWAITING): "closing",
}
AWAITING = "awaiting"  # a state for queries: a request waits, in whichever state the flow is
_TALKS: dict[int, str] = {
    abi.Talk.PLAIN: "plain",
    abi.Talk.TLS_HANDSHAKE: "tls",
    abi.Talk.TLS_FIRST: "tls",
    abi.Talk.TLS: "tls",
    abi.Talk.HTTP2_FIRST: "http2",
    abi.Talk.HTTP2: "http2",
}


_SOURCE = np.dtype(
    [
        ("service", "u2"),
        ("backend", "u2"),
        ("family", "u1"),
        ("source", ">u4", (4,)),
        ("flows", "i8"),
        ("waiting", "i8"),
        ("new", "i8"),
        ("unused", "i8"),
        ("slow", "i8"),
        ("slow_apart", "i8"),
        ("waiting_apart", "i8"),
    ]
)
_SUMS = ("flows", "waiting", "new", "unused", "slow")
_NO_SOURCES = np.zeros(0, dtype=_SOURCE)


@dataclass(frozen=True, slots=True)
class Names:
    """The names for the ids in the tables, and what else is known of services and backends."""

    services: Mapping[int, str]  # by service id
    backends: Mapping[int, BackendRef]  # by backend id
    salts: Mapping[int, int]  # flow salt by service id
    prefixes: frozenset[int] = frozenset()  # service ids of prefix VIPs
    counting: frozenset[int] = frozenset()  # service ids that count waiting bytes
    in_spite: Mapping[int, str] = field(default_factory=dict)  # by service id: why all get flows
    zones: Mapping[int, str] = field(default_factory=dict)  # by zone id


def names_of(now: Situation) -> Names:
    """Return the names of what is configured."""
    ids, services = now.ids, now.config.services
    in_spite = {
        ref.service: verdict.weight_reason
        for ref, verdict in now.verdicts.items()
        if verdict.weight_reason in IN_SPITE
    }

    def ids_where(chosen: Callable[[Service], bool]) -> frozenset[int]:
        return frozenset(ids.service_id(service) for service in services if chosen(service))

    return Names(
        services={ids.service_id(service): service.name for service in services},
        backends={
            ids.backend_id(service, backend): BackendRef(service.name, backend.name)
            for service in services
            for backend in service.backends
        },
        salts={ids.service_id(service): ids.salt(service) for service in services},
        prefixes=ids_where(lambda service: service.key.vip_bits is not None),
        counting=ids_where(counts_waiting),
        in_spite={
            ids.service_id(service): in_spite[service.name]
            for service in services
            if service.name in in_spite
        },
        zones={ident: name for name, ident in ids.zones.items()},
    )


def query_flows(
    tables: SharedTables,
    names: Names,
    query: FlowQuery,
    keys: HashKeys,
    clock: Clock,
    jiffies: int,
) -> FlowPage:
    """Return the flows that match, the most recently active first, or the hottest.

    Embryonic flows have no addresses yet and are not listed. A record whose hash does not belong to
    its slot is left out: it was being replaced as we read.
    """
    best = _Best(query.limit)
    # In chunks: a thread that works on a million slots at once would hold up all others.
    for used, words in survey.used_chunks(tables.flows):
        found = _matching(tables, names, query, keys, used, words)
        ranks = _hottest_first if query.hottest else _latest_first
        best.add(found, ranks(tables, found, jiffies, clock))
    flows = tuple(
        view(tables, names, clock, jiffies, int(index), int(word), cold)
        for index, word, cold in zip(
            best.found.used, best.found.words, best.found.cold, strict=True
        )
    )
    return FlowPage(flows, matched=best.matched)


def top_sources(tables: SharedTables, names: Names, query: TopQuery, keys: HashKeys) -> TopPage:
    """Return the sources that have the most open flows, or the most waiting bytes."""
    summed = _by_source(
        _of_any_service(rows) for rows in _sources(tables, names, query.service, keys)
    )
    summed = summed[(summed["flows"] > 0) | (summed["waiting"] > 0)]
    first, second = ("waiting", "flows") if query.waiting else ("flows", "waiting")
    order = np.lexsort((summed[second], summed[first]))[::-1][: query.limit]
    sources = tuple(
        TopSource(
            address_of(row["source"].astype(">u4"), int(row["family"])),
            int(row["flows"]),
            int(row["waiting"]),
        )
        for row in summed[order]
    )
    return TopPage(sources, total=len(summed))


def heavy_sources(
    tables: SharedTables, names: Names, limits: Mapping[int, Limits], keys: HashKeys
) -> dict[bytes, int]:
    """Return the sources that have as much of a service as they may: keys of the table ``limited``,
    and bits by ``Limit``.

    ``limits`` is by service id. An IPv6 source is the first 64 bits of an address.
    """
    wanted = np.array([*limits], dtype=np.uint16)
    summed = _by_source(
        _halved(rows[np.isin(rows["service"], wanted)])
        for rows in _sources(tables, names, None, keys)
    )
    found: dict[bytes, int] = {}
    for ident, limit in limits.items():
        here = summed[summed["service"] == ident]
        for which, has, most in (
            (abi.Limit.OPEN, here["flows"], limit.open_flows_per_source),
            (abi.Limit.WAITING, here["waiting"], limit.waiting_per_source),
        ):
            rows = here[has >= most] if most is not None else _NO_SOURCES
            held = np.zeros(len(rows), dtype=abi.LIMITED_KEY)
            held["addr"], held["service"] = rows["source"][:, :2], ident
            held["family"] = rows["family"]
            raw, size = held.tobytes(), held.dtype.itemsize
            for at in range(0, len(raw), size):
                key = raw[at : at + size]
                found[key] = found.get(key, 0) | 1 << which
    return found


@dataclass(frozen=True, slots=True)
class Since:
    """The moment of a look at the flows, ``now``, and that of the look before, in jiffies.

    ``last`` None: there was none. ``hz``: jiffies a second.
    """

    now: int
    hz: int
    last: int | None = None

    @property
    def passed(self) -> int:
        """Jiffies since the last look, at least 1; 0: there was none."""
        return 0 if self.last is None else max(self.now - self.last, 1)

    @property
    def per_s(self) -> float:
        """Looks like this one in a second; 0: this is the first one."""
        return self.hz / self.passed if self.passed else 0.0


def crowds(
    tables: SharedTables, names: Names, keys: HashKeys, since: Since
) -> dict[str, threats.Crowd]:
    """Return what the sources of each service have; of IPv6, a source is 64 bits of an address."""
    summed = _apart(_by_source(map(_halved, _sources(tables, names, None, keys, since))))
    summed = summed[(summed["flows"] > 0) | (summed["new"] > 0)]
    return {
        name: _crowd(summed[summed["service"] == ident], since.per_s)
        for ident, name in names.services.items()
    }


def _crowd(rows: Table, per_s: float) -> threats.Crowd:
    values = {
        Sign.OPEN: rows["flows"].astype(float),
        Sign.NEW: rows["new"] * per_s,
        Sign.UNUSED: rows["unused"].astype(float),
        Sign.SLOW: rows["slow_apart"].astype(float),
        Sign.WAITING: rows["waiting_apart"].astype(float),
    }
    some = {sign: each if len(each) else np.zeros(1) for sign, each in values.items()}
    usual = {sign: float(np.median(each)) for sign, each in some.items()}
    is_suspect = np.zeros(len(rows), dtype=bool)
    for sign, each in values.items():
        is_suspect |= each >= threats.NOTICED[sign]
    return threats.Crowd(
        sources=len(rows),
        usual=usual,
        spread={
            sign: threats.NORMAL * float(np.median(np.abs(each - usual[sign])))
            for sign, each in some.items()
        },
        total={sign: float(each.sum()) for sign, each in values.items()},
        slow=float(rows["slow"].sum()),
        suspects=tuple(
            threats.Held(
                _network_of(rows[at]),
                {sign: float(each[at]) for sign, each in values.items()},
                float(rows["slow"][at]),
            )
            for at in np.flatnonzero(is_suspect).tolist()
        ),
    )


def _network_of(row: Table) -> Network:
    address = address_of(row["source"].astype(">u4"), int(row["family"]))
    return ip_network((address, 64 if address.version == 6 else 32))


def _sources(
    tables: SharedTables,
    names: Names,
    service: str | None,
    keys: HashKeys,
    since: Since | None = None,
) -> Iterator[Table]:
    """Yield a row for each flow, with its source and what it has, chunk by chunk.

    Without ``since``, ages and backends are not looked at: no flow is new, unused or slow.
    """
    for used, words in survey.used_chunks(tables.flows):
        found = _matching(tables, names, FlowQuery(service), keys, used, words)
        state = survey.state_of(found.words)
        awaits = state >= abi.FlowState.ESTABLISHED_AWAITING
        rows = np.zeros(len(found.used), dtype=_SOURCE)
        for name, field_ in (("family", "family"), ("source", "saddr"), ("service", "service")):
            rows[name] = found.cold[field_]
        rows["flows"] = ~np.isin(state, (abi.FlowState.CLOSING, abi.FlowState.CLOSING_AWAITING))
        held = survey.waiting_bytes(tables.flows_warm[found.used])
        rows["waiting"] = np.where(awaits, held, 0)
        if since is not None:
            rows["backend"] = survey.backend_of(found.words)
            age = survey.age_jiffies(found.cold["start"], since.now)
            rows["new"] = age < since.passed
            is_tcp = found.cold["l4_proto"] == Protocol.TCP.number
            is_acked = (state == abi.FlowState.ACKED) & is_tcp
            rows["unused"] = is_acked & (age >= threats.UNUSED_AFTER_S * since.hz)
            rows["slow"] = (state == abi.FlowState.ESTABLISHED_AWAITING) & (
                age >= threats.SLOW_AFTER_S * since.hz
            )
        yield rows


def _of_any_service(rows: Table) -> Table:
    rows["service"] = 0
    return rows


def _halved(rows: Table) -> Table:
    """Make the first 64 bits of an IPv6 address the source."""
    rows["source"][:, 2:] = 0
    return rows


def _by_source(chunks: Iterable[Table]) -> Table:
    """Return one row for each source, service and backend (0 where the rows name none).

    New rows wait until they are as many as those that are summed already, so that the sum of a
    large table is not sorted again for each chunk.
    """
    summed, waiting, count = _NO_SOURCES, list[Table](), 0
    for rows in chunks:
        waiting.append(rows)
        count += len(rows)
        if count > len(summed):
            summed, waiting, count = _summed(np.concatenate((summed, *waiting))), [], 0
    return _summed(np.concatenate((summed, *waiting)))


def _summed(rows: Table) -> Table:
    """Return one row for each source, service and backend, in this order, with the sums of its
    rows.
    """
    words = [rows["source"][:, i] for i in range(4)]
    rows = rows[np.lexsort((rows["backend"], *words, rows["family"], rows["service"]))]
    firsts = _firsts(rows, "service", "family", "source", "backend")
    found = rows[firsts]
    for name in _SUMS if len(rows) else ():
        found[name] = np.add.reduceat(rows[name], firsts)
    return found


def _apart(rows: Table) -> Table:
    """Return one row for each source and service, of rows as ``_summed`` returns them.

    ``slow_apart`` and ``waiting_apart`` are without the backend that has most of them.
    """
    firsts = _firsts(rows, "service", "family", "source")
    found = rows[firsts]
    for name in _SUMS if len(rows) else ():
        found[name] = np.add.reduceat(rows[name], firsts)
    for name in ("slow", "waiting") if len(rows) else ():
        found[f"{name}_apart"] = found[name] - np.maximum.reduceat(rows[name], firsts)
    return found


def _firsts(rows: Table, *names: str) -> npt.NDArray[np.int64]:
    """Return the rows that differ from the one before in one of these fields."""
    is_first = np.zeros(len(rows), dtype=bool)
    is_first[:1] = True
    for name in names:
        differs = rows[name][1:] != rows[name][:-1]
        is_first[1:] |= differs.any(axis=1) if differs.ndim > 1 else differs
    return np.flatnonzero(is_first)


@dataclass(frozen=True, slots=True)
class _Found:
    """Flows: their slots, the words in these, and their records."""

    used: npt.NDArray[np.int64]
    words: survey.Slots
    cold: Table

    def and_also(self, more: _Found) -> _Found:
        return _Found(
            np.concatenate((self.used, more.used)),
            np.concatenate((self.words, more.words)),
            # As raw bytes: NumPy would convert the fields to another byte order.
            np.concatenate((_raw(self.cold), _raw(more.cold))).view(abi.FLOW_COLD),
        )

    def at(self, order: npt.NDArray[np.int64]) -> _Found:
        return _Found(self.used[order], self.words[order], self.cold[order])


def _raw(rows: Table) -> Table:
    return rows.view(np.dtype((np.void, rows.dtype.itemsize)))


class _Best:
    """The flows that rank first of all that were added; of equals, the one added first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ranks: Ranks | None = None
        self.found = _Found(
            np.zeros(0, dtype=np.int64),
            np.zeros(0, dtype=np.uint64),
            np.zeros(0, dtype=abi.FLOW_COLD),
        )
        self.matched = 0

    def add(self, found: _Found, ranks: Ranks) -> None:
        """Add flows. ``ranks``: a row for each, compared from the left; the lowest is first."""
        self.matched += len(found.used)
        combined = self.found.and_also(found)
        ranks = ranks if self._ranks is None else np.concatenate((self._ranks, ranks))
        order = np.lexsort(ranks.T[::-1])[: self._limit]
        self._ranks, self.found = ranks[order], combined.at(order)


def _matching(
    tables: SharedTables,
    names: Names,
    query: FlowQuery,
    keys: HashKeys,
    used: npt.NDArray[np.int64],
    words: survey.Slots,
) -> _Found:
    """Return the slots among these whose flows are listed and match."""
    state = survey.state_of(words)
    keep = state != abi.FlowState.EMBRYONIC
    keep &= _matches_state(state, query.state)
    keep &= _matches_backend(survey.backend_of(words), names, query)
    used, words = used[keep], words[keep]
    cold = tables.flows_cold[used]
    keep = is_whole(words, used, cold, names, keys, tables.size.flow_buckets)
    if query.client is not None:
        keep &= _matches_client(cold, query.client)
    return _Found(used[keep], words[keep], cold[keep])


def _latest_first(_tables: SharedTables, found: _Found, jiffies: int, clock: Clock) -> Ranks:
    """Rank flows by their last packet, the latest first."""
    idle = survey.idle_ticks(found.words, jiffies >> clock.shift)
    return idle.astype(np.int64).reshape(-1, 1)


def _hottest_first(tables: SharedTables, found: _Found, jiffies: int, clock: Clock) -> Ranks:
    """Rank flows by their waiting bytes, the most first; then by their last packet, the latest
    first; then by their age, the oldest first.
    """
    awaits = survey.state_of(found.words) >= abi.FlowState.ESTABLISHED_AWAITING
    waiting = np.where(awaits, survey.waiting_bytes(tables.flows_warm[found.used]), -1)
    idle = survey.idle_ticks(found.words, jiffies >> clock.shift).astype(np.int64)
    age = survey.age_jiffies(found.cold["start"], jiffies)
    return np.stack((-waiting, idle, -age), axis=1)


def _matches_state(state: npt.NDArray[np.int64], wanted: str | None) -> npt.NDArray[np.bool_]:
    if wanted is None:
        return np.ones(len(state), dtype=bool)
    if wanted == AWAITING:
        return state >= abi.FlowState.ESTABLISHED_AWAITING
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


def is_whole(
    words: survey.Slots,
    index: npt.NDArray[np.int64],
    cold: Table,
    names: Names,
    keys: HashKeys,
    buckets: int,
) -> npt.NDArray[np.bool_]:
    """Return which records of the cold array belong to their slots."""
    known = flowhash.ServiceKeys.of(keys, names.salts, names.prefixes)
    hashes = known.hashes(cold["service"], flowhash.wire_of(cold), flowhash.daddr_of(cold))
    return flowhash.is_at(hashes, words, index, buckets)


def view(
    tables: SharedTables,
    names: Names,
    clock: Clock,
    jiffies: int,
    index: int,
    word: int,
    cold: Table,
) -> FlowView:
    """Return the flow in slot ``index``, whose record ``cold`` is whole, for display."""
    ident = (word >> abi.FLOW_BACKEND_SHIFT) & 0xFFFF
    ref, family = names.backends[ident], int(cold["family"])
    age = float(survey.age_jiffies(cold["start"], jiffies)) / clock.hz
    idle = ((jiffies >> clock.shift) - word) & abi.FLOW_STAMP_MASK
    tuple5 = FiveTuple(
        Protocol.TCP if int(cold["l4_proto"]) == Protocol.TCP.number else Protocol.UDP,
        address_of(cold["saddr"], family),
        int(cold["sport"]),
        address_of(cold["daddr"], family),
        int(cold["dport"]),
    )
    return FlowView(
        service=ref.service,
        tuple5=tuple5,
        backend=ref.backend,
        state=STATE_NAMES[(word >> abi.FLOW_STATE_SHIFT) & 7],
        age_s=age,
        idle_s=min(idle * clock.tick_s, age),
        nat_source=nat_source(tables, index, ident),
        requests=requests(tables, names, int(cold["service"]), index, word),
    )


def nat_source(tables: SharedTables, index: int, backend: int) -> tuple[Address, int] | None:
    """Return the address and port that fullnat gave the flow in a slot.

    None if the backend is not behind fullnat, or the flow has no port.
    """
    nat = int(tables.flows_warm[index]["nat"])
    if tables.backends[backend]["forward"] != abi.ForwardId.FULLNAT or not nat:
        return None
    if nat > len(tables.nat_slots):
        return None
    number = int(tables.nat_slots[nat - 1]["source"])
    if number >= len(tables.nat_sources):
        return None
    family = 4 if number < abi.NAT_SOURCES else 6
    address = address_of(tables.nat_sources[number]["addr"], family)
    return address, tables.size.nat_first_port + (nat - 1) % tables.size.nat_ports


def requests(
    tables: SharedTables, names: Names, service: int, index: int, word: int
) -> FlowRequests | None:
    """Return what is known of the requests of the flow in a slot; None if they are not counted."""
    if service not in names.counting:
        return None
    warm = tables.flows_warm[index : index + 1]
    state = (word >> abi.FLOW_STATE_SHIFT) & 7
    awaits = state >= abi.FlowState.ESTABLISHED_AWAITING
    rtt_us = int(warm["rtt_us"][0])
    return FlowRequests(
        awaiting=awaits,
        waiting_bytes=int(survey.waiting_bytes(warm)[0]) if awaits else 0,
        handshake_ms=rtt_us / 1000 if rtt_us else None,
        talk=_TALKS.get(int(warm["talk"][0])),
    )


def tagged(tables: SharedTables, value: int) -> Iterator[tuple[int, int]]:
    """Yield each slot that may hold the flow with this hash (``flowhash.flow_hash``), and its word.

    It is the flow's unless another flow has the same 32 bits, which nearly never happens.
    """
    first = ((value >> 32) & (tables.size.flow_buckets - 1)) * abi.FLOW_WAYS
    for index in range(first, first + abi.FLOW_WAYS):
        word = int(tables.flows[index])
        if word >> abi.FLOW_TAG_SHIFT == value & 0xFFFFFFFF:
            yield index, word


def address_of(words: Table, family: int) -> Address:
    """Return the address in the words of a table."""
    raw = words.tobytes()
    return IPv4Address(raw[:4]) if family == 4 else IPv6Address(raw)
