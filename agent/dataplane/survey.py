"""Decides what the flow table says: how many flows in which state, whose, and which are over.

Pure functions over the slots as they lie in shared memory; a million slots take some
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
type Lows = npt.NDArray[np.uint16]  # of slots: state and stamp
type Counts = npt.NDArray[np.int64]

OPEN = (
    abi.FlowState.EMBRYONIC,
    abi.FlowState.ESTABLISHED,
    abi.FlowState.ACKED,
    abi.FlowState.ESTABLISHED_AWAITING,
)
_IS_OPEN = np.isin(np.arange(8), OPEN)  # by a state's three bits
_AWAITING = np.uint64(abi.FlowState.ESTABLISHED_AWAITING << abi.FLOW_STATE_SHIFT)
_IDS = 1 << 16  # that a slot can name
BUSY_TICKS = 2  # an established flow with a packet in the last 8 to 12 s is busy
# The packet path remembers so long what the agent has ended (agent.dataplane.ending).
ENDED_TICKS = 16
_LATELY = 4  # counted as a state of its own, which the packet path does not use: busy
# A request of which a head has been seen and so long no more: the head was all of the answer.
ANSWERED_NS = 30 * 10**9
_FORGOTTEN = np.uint64(1 << abi.WAITING_FORGOTTEN_SHIFT)
# Far more than a reading of the table takes: a minute.
_AHEAD_TICKS = 16
_AHEAD_JIFFIES = 60_000
_CHUNK = 1 << 15  # slots read at once: small enough to stay in a cache
_FORGET_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Sums:
    """What had been added up at one moment, by the packet path and by the agent.

    By backend id, ``service_open`` by service id. ``opened``, ``established`` and ``closed`` are
    of all rows; what is ``open``, ``embryonic`` and ``waiting`` has the agent's own fix in it.
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
        """The sums of these backends, 0 for all others. What is counted is read first, so
        that whatever happens meanwhile is counted as happening later.
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

    ``by_state`` has 8 counts; by backend id: ``live`` (acked and established), ``open``
    (embryonic ones too), ``awaiting`` (a request waits for its answer), without those that count
    as answered and those that have waited too long, the bytes of which are ``unanswered``;
    ``waiting`` (bytes that flows hold in the sums), ``busy`` (awaiting, or established with a
    packet in the last ``BUSY_TICKS``). ``over_long``: slots of requests that wait no more and are
    in the sums still. ``expired``: indices of slots idle past their timeout or of a backend that is
    gone, ``words`` what they held. ``service``: whose the backends were, 0 nobody's. ``nat_used``:
    ports that flows have of each source address of fullnat, by its number.
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
        """Slots in a state, whether or not a request waits in them."""
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
    """The backends of the slots that hold open flows, and of those that hold embryonic ones."""
    states, backends = state_of(words), backend_of(words)
    return backends[_IS_OPEN[states]], backends[states == abi.FlowState.EMBRYONIC]


def _known(ids: Counts, size: int) -> Counts:
    """0, which is nobody, for ids beyond the table."""
    return np.where(ids < size, ids, 0)


def idle_ticks(words: Slots | Lows, now: int) -> Lows:
    """Ticks since the last packet, modulo those that a stamp can hold.

    A packet that came after ``now`` was read, in the next tick, is of this moment: it must not
    look as if it had come all the way round.
    """
    stamps = words.astype(np.uint16, copy=False)
    idle = (np.uint16(now & abi.FLOW_STAMP_MASK) - stamps) & np.uint16(abi.FLOW_STAMP_MASK)
    idle[idle > abi.FLOW_STAMP_MASK - _AHEAD_TICKS] = 0
    return idle


def age_jiffies(start: npt.ArrayLike, now: int) -> npt.NDArray[np.int64]:
    """Jiffies since flows began, modulo 2 ** 32: 49 days at 1000 Hz.

    A flow that began after ``now`` was read is of this moment, and not 49 days old.
    """
    age = (now - np.asarray(start, dtype=np.int64)) % 2**32
    return np.where(age > 2**32 - _AHEAD_JIFFIES, 0, age)


def used_chunks(flows: Slots) -> Iterator[tuple[Counts, Slots]]:
    """The slots that hold a flow, indices and words, piece by piece.

    Every slot is read once: a flow that moves while the table is read, by ending in one slot
    and beginning in another, is counted once on average, and numpy, which counts the non-zeros
    of an array before it lists them, never sees one change in between.
    """
    for first in range(0, len(flows), _CHUNK):
        chunk = flows[first : first + _CHUNK].copy()
        used = np.flatnonzero(chunk)
        if len(used):
            yield used + first, chunk[used]


def used_slots(flows: Slots) -> tuple[Counts, Slots]:
    """The same, all of them at once."""
    pieces = list(used_chunks(flows))
    if not pieces:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    indices, words = zip(*pieces, strict=True)
    return np.concatenate(indices), np.concatenate(words)


def waiting_bytes(warm: Table) -> Counts:
    """Request bytes that flows hold, in the sums or not; of slots in which a request waits."""
    held: Counts = (warm["waiting"] & (_FORGOTTEN - np.uint64(1))).view(np.int64)
    return held


def _waits(warm: Table, age: Counts) -> npt.NDArray[np.bool_]:
    """Which of these requests wait indeed.

    A whole answer that is as small and early as a head is taken for one, and if nothing follows
    on the connection the packet path has no moment to see that it was all.
    """
    is_unsure = (warm["interim"] & abi.INTERIM_BYTES) != 0
    is_unsure &= (warm["interim"] & abi.INTERIM_SURE) == 0
    waits: npt.NDArray[np.bool_] = ~is_unsure | (age <= ANSWERED_NS)
    return waits


def _lately(low: Lows, idle: Lows) -> npt.NDArray[np.uint8]:
    """What to add to the state of an established flow that had a packet in the last ticks.

    A flow in which a request waits is counted by that.
    """
    state = low >> np.uint16(abi.FLOW_STATE_SHIFT)
    recent = (idle <= BUSY_TICKS) & (state == abi.FlowState.ESTABLISHED)
    more: npt.NDArray[np.uint8] = recent.view(np.uint8) * np.uint8(
        _LATELY - abi.FlowState.ESTABLISHED
    )
    return more


def survey(
    tables: SharedTables, now: int, now_ns: int | None = None, patience_ns: Counts | None = None
) -> Survey:
    """Read the whole table; ``now`` in ticks, ``now_ns`` of the clock that requests are timed
    by, if not of this moment. ``patience_ns``: for so long a request waits, by backend id.
    """
    backends = tables.backends
    service = backends["service"].astype(np.int64)
    ids = np.flatnonzero(service)
    before = Sums.read(tables, ids)
    used, words = used_slots(tables.flows)
    awaits = (words & _AWAITING) == _AWAITING  # and, when closing, one bit more
    warm = tables.flows_warm[used[awaits]]
    after = Sums.read(tables, ids)
    # A backend and a state are one number in the slot, and one in these tables of all of them.
    each = ((words >> np.uint64(abi.FLOW_STATE_SHIFT)) & np.uint64(_IDS * 8 - 1)).view(np.int64)
    low = words.astype(np.uint16)
    idle = idle_ticks(low, now)
    each += _lately(low, idle)
    counts = np.bincount(each, minlength=_IDS * 8).reshape(_IDS, 8)
    limits = np.full((_IDS, 8), -1, dtype=np.int32)  # of nobody: over at once
    limits[ids] = backends["timeout_ticks"][ids]
    limits[0, abi.FlowState.CLOSING] = ENDED_TICKS
    limits[ids, _LATELY] = limits[ids, abi.FlowState.ESTABLISHED]
    over = idle > limits.reshape(-1)[each]
    of_backends = np.where(service[:, np.newaxis] != 0, counts[: len(backends)], 0)
    lately = of_backends[:, _LATELY].copy()
    by_state = counts.sum(axis=0)
    for those in (by_state, of_backends):
        those[..., abi.FlowState.ESTABLISHED] += those[..., _LATELY]
        those[..., _LATELY] = 0
    now_ns = time.monotonic_ns() if now_ns is None else now_ns
    age = now_ns - warm["request"].astype(np.int64)
    owner = _known(each[awaits] >> 3, len(backends))
    waits = _waits(warm, age)
    too_long = np.zeros_like(waits)
    if patience_ns is not None:
        too_long = waits & (age > patience_ns[owner])
        waits &= ~too_long

    def sums_of(those: npt.NDArray[np.bool_], values: Counts) -> Counts:
        """By backend id."""
        sums = np.bincount(owner[those], values[those], len(backends))
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
        busy=lately + awaiting,
        expired=used[over],
        words=words[over],
        service=service,
        nat_used=_nat_used(tables, used[~over], each[~over] >> 3),
        before=before,
        after=after,
    )


def _nat_used(tables: SharedTables, slots: Counts, backend: Counts) -> Counts:
    """Ports of fullnat that the flows in these slots have, by block."""
    is_fullnat = np.zeros(_IDS, dtype=bool)
    is_fullnat[: len(tables.backends)] = tables.backends["forward"] == abi.ForwardId.FULLNAT
    if not is_fullnat.any():
        return np.zeros(tables.size.nat_blocks, dtype=np.int64)
    held = tables.flows_warm["nat"][slots[is_fullnat[backend]]].astype(np.int64)
    block = (held[held > 0] - 1) // tables.size.nat_ports
    return np.bincount(block, minlength=tables.size.nat_blocks)[: tables.size.nat_blocks]


def pieces(found: Survey) -> Iterator[Survey]:
    """The same survey, with some of the expired slots at a time."""
    for first in range(0, len(found.expired), _CHUNK):
        part = slice(first, first + _CHUNK)
        yield replace(found, expired=found.expired[part], words=found.words[part])


def sweep(tables: SharedTables, found: Survey) -> int:
    """Free the expired slots of a survey that nothing has changed since; how many.

    It keeps stamps from coming round again (after 9 hours). Request bytes that waited in a slot
    are left to ``trueup``.
    """
    freed = exchange(tables.flows, found.expired, found.words, 0)
    index, words = found.expired[freed], found.words[freed]
    count_closed(tables, words, found.service)
    return len(index)


def forget(tables: SharedTables, found: Survey) -> None:
    """Take the bytes of requests that wait no more out of the sums, and mark it in their flows,
    so that nobody does it again.

    The packet path takes a flow's bytes by one exchange, and this reads and writes: of an answer
    that begins in between, some microseconds after a minute, the bytes are taken twice, until
    ``trueup`` has seen it.
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
    """Take flows that the agent has closed out of the sums; ``words``: what their slots held,
    ``service``: whose the backends were.
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
    """Ids of the backends that any slot names."""
    seen = np.zeros(_IDS, dtype=np.bool_)
    for _, words in used_chunks(flows):
        seen[backend_of(words)] = True
    return frozenset(np.flatnonzero(seen).tolist())
