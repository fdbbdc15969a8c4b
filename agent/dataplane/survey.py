"""Decides what the flow table says: how many flows are in which state and at which backend, and
which of them are over.

These are pure functions over the slots as they lie in shared memory. A million slots take some
milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi
from agent.dataplane.atomics import exchange
from agent.dataplane.tables import SharedTables, Table

type Slots = npt.NDArray[np.uint64]
type Lows = npt.NDArray[np.uint16]  # the low bits of slots: state and stamp
type Counts = npt.NDArray[np.int64]

OPEN = (
    abi.FlowState.EMBRYONIC,
    abi.FlowState.ESTABLISHED,
    abi.FlowState.ACKED,
    abi.FlowState.ESTABLISHED_AWAITING,
)
_IS_OPEN = np.isin(np.arange(8), OPEN)  # by a state's three bits
_AWAITING = np.uint64(abi.FlowState.ESTABLISHED_AWAITING << abi.FLOW_STATE_SHIFT)
_IDS = 1 << 16  # backend ids that a slot can name
BUSY_TICKS = 2  # an established flow with a packet in the last 8 to 12 s is busy
# How long the packet path remembers flows that the agent has ended (agent.dataplane.ending).
ENDED_TICKS = 16
_RECENT = 4  # busy: counted as a state of its own, a number that the packet path does not use
# If nothing follows a head for this long, the head was the whole answer.
ANSWERED_NS = 30 * 10**9
_FORGOTTEN = np.uint64(1 << abi.WAITING_FORGOTTEN_SHIFT)
# A minute, which is far more than a reading of the table takes.
_AHEAD_TICKS = 16
_AHEAD_JIFFIES = 60_000
_CHUNK = 1 << 15  # slots read at once: small enough to stay in a cache
_FORGET_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Sums:
    """What the packet path and the agent had added up at one moment.

    All are by backend id, but ``service_open`` is by service id. ``opened``, ``established`` and
    ``closed`` are summed over all rows; ``open``, ``embryonic`` and ``waiting`` include the agent's
    own fix.
    """

    opened: Counts
    established: Counts
    closed: Counts
    open: Counts
    embryonic: Counts
    waiting: Counts
    service_open: Counts

    @classmethod
    def read(cls, tables: SharedTables, ids: Counts) -> Self:
        """Read the sums of these backends, 0 for all others.

        The counters are read first, so that whatever happens meanwhile counts as happening later.
        """
        rows = tables.backend_count[:, ids]
        load, of_services = tables.backend_load[ids], tables.service_load

        def of_all(values: Counts) -> Counts:
            found = np.zeros(len(tables.backends), dtype=np.int64)
            found[ids] = values
            return found

        def counted(name: str) -> Counts:
            return of_all(rows[name].sum(axis=0, dtype=np.int64))

        def summed(name: str) -> Counts:
            return of_all(load[name].astype(np.int64) + load[f"{name}_fix"])

        service_open = of_services["open"] + of_services["open_fix"]
        return cls(
            opened=counted("opened"),
            established=counted("established"),
            closed=counted("closed"),
            open=summed("open"),
            embryonic=summed("embryonic"),
            waiting=summed("waiting"),
            service_open=service_open,
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """The flow table, as read between two moments.

    ``by_state`` has 8 counts. These are by backend id: ``live`` (flows acked and established),
    ``open`` (embryonic ones too), ``awaiting`` (flows whose request waits for its answer, except
    for requests that count as answered and those that have waited too long), ``unanswered`` (the
    bytes of those that have waited too long), ``waiting`` (bytes that flows hold in the sums) and
    ``busy`` (flows that are awaiting, or established with a packet in the last ``BUSY_TICKS``).
    ``over_long``: the slots of requests that no longer wait but are still in the sums. ``expired``:
    the indices of slots that are idle past their timeout or whose backend is gone; ``words``: what
    they held. ``service``: the service of each backend, 0: none. ``nat_used``: the ports of fullnat
    that flows have, by block.
    """

    by_state: Counts
    live: Counts
    open: Counts
    awaiting: Counts
    waiting: Counts
    unanswered: Counts
    over_long: Counts
    busy: Counts
    expired: Counts
    words: Slots
    service: Counts
    nat_used: Counts
    before: Sums
    after: Sums

    def state_count(self, state: abi.FlowState) -> int:
        """Return how many slots are in a state, whether or not a request waits in them."""
        awaiting = {
            abi.FlowState.ESTABLISHED: abi.FlowState.ESTABLISHED_AWAITING,
            abi.FlowState.CLOSING: abi.FlowState.CLOSING_AWAITING,
        }.get(state)
        return int(self.by_state[state] + (self.by_state[awaiting] if awaiting else 0))


def backend_of(words: Slots) -> Counts:
    return ((words >> np.uint64(abi.FLOW_BACKEND_SHIFT)) & np.uint64(0xFFFF)).astype(np.int64)


def state_of(words: Slots) -> Counts:
    return ((words >> np.uint64(abi.FLOW_STATE_SHIFT)) & np.uint64(7)).astype(np.int64)


def open_backends(words: Slots) -> tuple[Counts, Counts]:
    """Return the backends of the slots with open flows, and of those with embryonic flows."""
    states, backends = state_of(words), backend_of(words)
    return backends[_IS_OPEN[states]], backends[states == abi.FlowState.EMBRYONIC]


def _known(ids: Counts, size: int) -> Counts:
    """Return the ids, with 0, which is no backend, for those beyond the table."""
    return np.where(ids < size, ids, 0)


def idle_ticks(words: Slots | Lows, now: int) -> Lows:
    """Return the ticks since the last packet, modulo what a stamp can hold.

    A packet that came after ``now`` was read, in the next tick, counts as 0 ticks old: it must not
    look as if the stamp had come round again.
    """
    stamps = words.astype(np.uint16, copy=False)
    idle = (np.uint16(now & abi.FLOW_STAMP_MASK) - stamps) & np.uint16(abi.FLOW_STAMP_MASK)
    idle[idle > abi.FLOW_STAMP_MASK - _AHEAD_TICKS] = 0
    return idle


def age_jiffies(start: npt.ArrayLike, now: int) -> npt.NDArray[np.int64]:
    """Return the jiffies since flows began, modulo 2 ** 32: 49 days at 1000 Hz.

    A flow that began after ``now`` was read has an age of 0, not of 49 days.
    """
    age = (now - np.asarray(start, dtype=np.int64)) % 2**32
    return np.where(age > 2**32 - _AHEAD_JIFFIES, 0, age)


def used_chunks(flows: Slots) -> Iterator[tuple[Counts, Slots]]:
    """Yield the slots that hold a flow, indices and words, chunk by chunk.

    Every slot is read once. A flow that moves while the table is read, by ending in one slot and
    beginning in another, is thus counted once on average. NumPy counts the non-zeros of an array
    before it lists them, and in a copy it never sees one change in between.
    """
    for first in range(0, len(flows), _CHUNK):
        chunk = flows[first : first + _CHUNK].copy()
        used = np.flatnonzero(chunk)
        if len(used):
            yield used + first, chunk[used]


def used_slots(flows: Slots) -> tuple[Counts, Slots]:
    """Return the slots that hold a flow, indices and words, all at once."""
    pieces = list(used_chunks(flows))
    if not pieces:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    indices, words = zip(*pieces, strict=True)
    return np.concatenate(indices), np.concatenate(words)


def waiting_bytes(warm: Table) -> Counts:
    """Return the request bytes that flows hold, in the sums or not.

    ``warm`` has rows of slots in which a request waits.
    """
    held: Counts = (warm["waiting"] & (_FORGOTTEN - np.uint64(1))).view(np.int64)
    return held


def _waits(warm: Table, age: Counts) -> npt.NDArray[np.bool_]:
    """Return which of these requests really wait.

    A whole answer that is as small and early as a head is taken for a head. If nothing follows on
    the connection, the packet path has no moment at which to see that it was the whole answer.
    """
    is_unsure = (warm["interim"] & abi.INTERIM_BYTES) != 0
    is_unsure &= (warm["interim"] & abi.INTERIM_SURE) == 0
    waits: npt.NDArray[np.bool_] = ~is_unsure | (age <= ANSWERED_NS)
    return waits


def _recent_offset(low: Lows, idle: Lows) -> npt.NDArray[np.uint8]:
    """Return what to add to the state of an established flow that had a packet in the last ticks.

    A flow in which a request waits is counted by its awaiting state instead.
    """
    state = low >> np.uint16(abi.FLOW_STATE_SHIFT)
    recent = (idle <= BUSY_TICKS) & (state == abi.FlowState.ESTABLISHED)
    more: npt.NDArray[np.uint8] = recent.view(np.uint8) * np.uint8(
        _RECENT - abi.FlowState.ESTABLISHED
    )
    return more


def survey(
    tables: SharedTables, now: int, now_ns: int | None = None, patience_ns: Counts | None = None
) -> Survey:
    """Read the whole table.

    ``now`` is in ticks, ``now_ns`` of the clock that times requests (by default its present time),
    ``patience_ns``, how long a request may wait, by backend id.
    """
    backends = tables.backends
    service = backends["service"].astype(np.int64)
    ids = np.flatnonzero(service)
    before = Sums.read(tables, ids)
    used, words = used_slots(tables.flows)
    awaits = (words & _AWAITING) == _AWAITING  # a closing flow has one more bit set
    warm = tables.flows_warm[used[awaits]]
    after = Sums.read(tables, ids)
    # Backend and state are one number in the slot, which is an index into a table of all pairs.
    each = ((words >> np.uint64(abi.FLOW_STATE_SHIFT)) & np.uint64(_IDS * 8 - 1)).view(np.int64)
    low = words.astype(np.uint16)
    idle = idle_ticks(low, now)
    each += _recent_offset(low, idle)
    counts = np.bincount(each, minlength=_IDS * 8).reshape(_IDS, 8)
    over = idle > _timeout_ticks(backends, ids)[each]
    of_backends = np.where(service[:, np.newaxis] != 0, counts[: len(backends)], 0)
    recent = of_backends[:, _RECENT].copy()
    by_state = counts.sum(axis=0)
    for totals in (by_state, of_backends):
        totals[..., abi.FlowState.ESTABLISHED] += totals[..., _RECENT]
        totals[..., _RECENT] = 0
    now_ns = time.monotonic_ns() if now_ns is None else now_ns
    age = now_ns - warm["request"].astype(np.int64)
    owner = _known(each[awaits] >> 3, len(backends))
    waits = _waits(warm, age)
    too_long = np.zeros_like(waits)
    if patience_ns is not None:
        too_long = waits & (age > patience_ns[owner])
        waits &= ~too_long

    def sums_of(chosen: npt.NDArray[np.bool_], values: Counts) -> Counts:
        """Return the sums of the values of these requests, by backend id."""
        sums = np.bincount(owner[chosen], values[chosen], len(backends))
        return np.where(service != 0, sums, 0).astype(np.int64)

    awaiting, sizes = sums_of(waits, np.ones_like(owner)), waiting_bytes(warm)
    in_sum = warm["waiting"] < _FORGOTTEN
    is_open = of_backends[:, OPEN].sum(axis=1)
    return Survey(
        by_state=by_state,
        live=is_open - of_backends[:, abi.FlowState.EMBRYONIC],
        open=is_open,
        awaiting=awaiting,
        waiting=sums_of(in_sum, sizes),
        unanswered=sums_of(too_long, sizes),
        over_long=used[awaits][in_sum & ~waits & (sizes > 0) & (service[owner] != 0)],
        busy=recent + awaiting,
        expired=used[over],
        words=words[over],
        service=service,
        nat_used=_nat_used(tables, used[~over], each[~over] >> 3),
        before=before,
        after=after,
    )


def _timeout_ticks(backends: Table, ids: Counts) -> npt.NDArray[np.int32]:
    """Return the timeouts of flows in ticks, by backend id and state as one index."""
    limits = np.full((_IDS, 8), -1, dtype=np.int32)  # ids of no backend: expired at once
    limits[ids] = backends["timeout_ticks"][ids]
    limits[0, abi.FlowState.CLOSING] = ENDED_TICKS
    limits[ids, _RECENT] = limits[ids, abi.FlowState.ESTABLISHED]
    return limits.reshape(-1)


def _nat_used(tables: SharedTables, slots: Counts, backend: Counts) -> Counts:
    """Return how many ports of fullnat the flows in these slots have, by block."""
    is_fullnat = np.zeros(_IDS, dtype=bool)
    is_fullnat[: len(tables.backends)] = tables.backends["forward"] == abi.ForwardId.FULLNAT
    if not is_fullnat.any():
        return np.zeros(tables.size.nat_blocks, dtype=np.int64)
    held = tables.flows_warm["nat"][slots[is_fullnat[backend]]].astype(np.int64)
    block = (held[held > 0] - 1) // tables.size.nat_ports
    return np.bincount(block, minlength=tables.size.nat_blocks)[: tables.size.nat_blocks]


def pieces(found: Survey) -> Iterator[Survey]:
    """Yield the same survey, with some of the expired slots at a time."""
    for first in range(0, len(found.expired), _CHUNK):
        part = slice(first, first + _CHUNK)
        yield replace(found, expired=found.expired[part], words=found.words[part])


def sweep(tables: SharedTables, found: Survey) -> int:
    """Free the expired slots of a survey that have not changed since; return how many.

    This keeps stamps from coming round again (after 9 hours). Request bytes that waited in a slot
    are left to ``trueup``.
    """
    freed = exchange(tables.flows, found.expired, found.words, 0)
    index, words = found.expired[freed], found.words[freed]
    count_closed(tables, words, found.service)
    return len(index)


def forget(tables: SharedTables, found: Survey) -> None:
    """Take the bytes of requests that no longer wait out of the sums, and mark this in their flows,
    so that it happens only once.

    The packet path takes a flow's bytes by one exchange, whereas this reads and then writes. If an
    answer begins in between (a window of microseconds, after a minute of waiting), its bytes are
    taken out twice, until ``trueup`` has seen it.
    """
    for first in range(0, len(found.over_long), _FORGET_CHUNK):
        slots = found.over_long[first : first + _FORGET_CHUNK]
        words = tables.flows[slots]
        held = tables.flows_warm["waiting"][slots]
        same = ((words & _AWAITING) == _AWAITING) & (held > 0) & (held < _FORGOTTEN)
        slots, words, held = slots[same], words[same], held[same]
        tables.flows_warm["waiting"][slots] = held | _FORGOTTEN
        owner = _known(backend_of(words), len(tables.backends))
        np.subtract.at(tables.backend_load["waiting_fix"], owner, held.view(np.int64))


def count_closed(tables: SharedTables, words: Slots, service: Counts) -> None:
    """Take flows that the agent has closed out of the sums.

    ``words``: what their slots held; ``service``: the service of each backend.
    """
    size = len(service)
    closed, embryonic = (
        np.bincount(_known(ids, size), minlength=size) for ids in open_backends(words)
    )
    ids = np.flatnonzero(closed)
    tables.backend_count["closed"][-1, ids] += closed[ids].astype(np.uint64)
    tables.backend_load["open_fix"][ids] -= closed[ids]
    tables.backend_load["embryonic_fix"][ids] -= embryonic[ids]
    np.subtract.at(tables.service_load["open_fix"], service[ids], closed[ids])


def named_backends(flows: Slots) -> frozenset[int]:
    """Return the ids of the backends that any slot names."""
    seen = np.zeros(_IDS, dtype=np.bool_)
    for _, words in used_chunks(flows):
        seen[backend_of(words)] = True
    return frozenset(np.flatnonzero(seen).tolist())
