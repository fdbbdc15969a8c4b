"""Decides where the flows of a peer go in this node's table, and puts them there.

The packet path writes the same table meanwhile. A flow takes the slot that it already has, or a
free one, or one whose flow is over by the packet path's own rules; it never takes the slot of a
live flow. The packet path takes the last free slot of a bucket, or else the first that is over;
this module takes the first free one, or else the last that is over. So they compete only when one
slot is left, and then exactly one of them gets it, because slots, and the owners of fullnat's
ports, change by compare-and-exchange only. Before anything is written beside a slot, the slot is
claimed with a closed flow that has the complement of the new flow's tag, so the new flow's packets
do not find it yet.

A carried flow has no request waiting: this node saw neither the bytes of the request nor the
answer to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, survey
from agent.dataplane.atomics import exchange
from agent.dataplane.survey import Counts, Slots
from agent.dataplane.tables import SharedTables, Table
from agent.flowsync import nat
from agent.flowsync.identity import IdMap
from agent.flowsync.ledger import Ledger
from agent.flowsync.places import places, rounds
from agent.flowsync.plan import Mask, Plan, Refusal, cold_of, plan
from agent.flowsync.records import GONE, Records
from agent.flowsync.view import FlowTables, View

# The carried sequence number is set back by so much that the next segment counts as a jump: all of
# it is new and nothing more (FRESH_MAX in bpf/waiting.h), however much was sent meanwhile.
_SEQ_BACK = 1 << 30


@dataclass(frozen=True, slots=True)
class Arrival:
    """The interface, and the source MAC address, of clients' packets as they arrive here. nat and
    fullnat send answers back that way until the client's next packet. There is one value for all
    flows, or one by the sender's slot: then ``source_mac`` has shape (slots, 6).

    ``elsewhere``: packets arrive at the peer now, so its records are newer than this table.
    """

    ifindex: int | Counts
    source_mac: npt.NDArray[np.uint8]
    elsewhere: bool = False

    def of(self, slots: Counts) -> tuple[int | Counts, npt.NDArray[np.uint8]]:
        """Return the values for the flows in these slots of the sender's table."""
        if self.source_mac.ndim == 1:
            return self.ifindex, self.source_mac
        return np.asarray(self.ifindex)[slots], self.source_mac[slots]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of records. ``opened``, ``established``, ``closed`` and ``embryonic`` are
    numbers of slots by backend id, which ``account`` counts.
    """

    installed: int
    refreshed: int
    removed: int
    refused: dict[Refusal, int]
    opened: Counts
    established: Counts  # how many of those opened were already past embryonic at the other node
    closed: Counts
    embryonic: Counts  # by how much the number of embryonic flows has changed


@dataclass(slots=True)
class _Tally:
    """The counts from which an outcome is made."""

    backends: int
    installed: int = 0
    refreshed: int = 0
    removed: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)
    opened: list[tuple[Counts, Counts]] = field(default_factory=list)
    closed: list[tuple[Counts, Counts]] = field(default_factory=list)

    def outcome(self) -> Outcome:
        opened = self._by_backend([ids for ids, _ in self.opened])
        embryonic = self._by_backend([ids for _, ids in self.opened])
        return Outcome(
            self.installed,
            self.refreshed,
            self.removed,
            {reason: number for reason, number in self.refused.items() if number},
            opened,
            opened - embryonic,
            self._by_backend([ids for ids, _ in self.closed]),
            embryonic - self._by_backend([ids for _, ids in self.closed]),
        )

    def _by_backend(self, parts: list[Counts]) -> Counts:
        ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        return np.bincount(ids[ids < self.backends], minlength=self.backends)

    def closes(self, words: Slots) -> None:
        """Note that these words are no longer in the table."""
        self.closed.append(survey.open_backends(words))

    def opens(self, words: Slots) -> None:
        """Note that these words are in the table now."""
        self.opened.append(survey.open_backends(words))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Records that are being installed, and the context that they are read with."""

    view: View
    records: Records
    cold: Table  # the cold row for each record
    warm: Table
    now: int
    tally: _Tally
    embryonic_ways: int
    peer_wins: bool  # the peer's records replace flows that live here


class Installer:
    """Installs the flows of one peer; shares its ledger with the exporter for that peer."""

    def __init__(self, ledger: Ledger, ids: IdMap) -> None:
        self._ledger = ledger
        self.ids = ids
        self._unconfirmed: Mask | None = None
        ledger.meet(ids.tables, ids.slots)

    def map(self, ids: IdMap) -> None:
        """Use another map of ids from now on, because the peer's ids or ours have changed."""
        self.ids = ids
        self._ledger.meet(ids.tables, ids.slots)

    def begin_full(self) -> None:
        """Note that the peer begins to send everything."""
        self._unconfirmed = self._ledger.holder != 0

    def end_full(self, view: View) -> Outcome:
        """Note that the peer has sent everything. Flows that it sent earlier but not again are
        over at the peer, and are removed unless they have had a packet here.
        """
        tally = _Tally(len(view.tables.backends))
        if self._unconfirmed is not None:
            self._remove(view.tables, np.flatnonzero(self._unconfirmed), tally)
        self._unconfirmed = None
        return tally.outcome()

    def install(self, view: View, records: Records, jiffies: int, arrival: Arrival) -> Outcome:
        """Install records, which must come in the order in which the peer sent them."""
        tally = _Tally(len(view.tables.backends))
        records = self._newest(records, tally)
        is_gone = records["state"] == GONE
        self._remove(view.tables, self._held_by(records["slot"][is_gone]), tally)
        records = records[~is_gone]
        planned, refused = plan(view, self.ids, records, jiffies)
        tally.refused.update(refused)
        self._leave_old_places(view.tables, records, planned, tally)
        self._place(view, records, planned, jiffies, arrival, tally)
        return tally.outcome()

    def place(
        self, view: View, records: Records, planned: Plan, jiffies: int, arrival: Arrival
    ) -> Outcome:
        """Install records for which a plan exists already. Embryonic flows may take more than
        their share of a bucket, because they were within it in a larger table.
        """
        tally = _Tally(len(view.tables.backends))
        self._place(view, records, planned, jiffies, arrival, tally, abi.FLOW_WAYS)
        return tally.outcome()

    def _place(
        self,
        view: View,
        records: Records,
        planned: Plan,
        jiffies: int,
        arrival: Arrival,
        tally: _Tally,
        embryonic_ways: int = abi.FLOW_EMBRYONIC_WAYS,
    ) -> None:
        cold, warm = _cold_and_warm(view, self.ids, records, jiffies, arrival)
        batch = _Batch(
            view,
            records,
            cold,
            warm,
            jiffies >> view.clock.shift,
            tally,
            embryonic_ways,
            arrival.elsewhere,
        )
        left = len(planned)
        for chosen in rounds(planned.bucket):
            self._take(batch, planned.take(chosen))
            left -= len(chosen)
        tally.refused[Refusal.NO_ROOM] += left

    def _newest(self, records: Records, tally: _Tally) -> Records:
        """Return the last record for each of the peer's slots."""
        is_slot = records["slot"] < len(self._ledger.place)
        if not is_slot.all():
            tally.refused[Refusal.MALFORMED] += int(np.count_nonzero(~is_slot))
            records = records[is_slot]
        backwards = np.unique(records["slot"][::-1], return_index=True)[1]
        return records[len(records) - 1 - backwards]

    # -- removing flows

    def _held_by(self, theirs: npt.NDArray[np.integer]) -> Counts:
        """Return our slots that hold the flows of these slots of the peer's."""
        place = self._ledger.place[theirs].astype(np.int64)
        known = np.flatnonzero(place)
        ours: Counts = place[known] - 1
        is_still: Mask = self._ledger.holder[ours] == theirs[known].astype(np.int64) + 1
        return ours[is_still]

    def _leave_old_places(
        self, tables: FlowTables, records: Records, planned: Plan, tally: _Tally
    ) -> None:
        """Remove flows whose slot at the peer has been taken by another flow: they are over."""
        theirs = records["slot"].astype(np.int64)
        ours = self._ledger.place[theirs].astype(np.int64) - 1
        wanted = np.zeros(len(records), dtype=np.uint64)  # tags; 0 for refused records
        bucket = np.full(len(records), -1)
        wanted[planned.row] = planned.word >> np.uint64(abi.FLOW_TAG_SHIFT)
        bucket[planned.row] = planned.bucket
        is_held = (ours >= 0) & (self._ledger.holder[ours] == theirs + 1)
        held_tags = tables.flows[ours] >> np.uint64(abi.FLOW_TAG_SHIFT)
        is_other = (held_tags != wanted) | (bucket != ours // abi.FLOW_WAYS)
        self._remove(tables, ours[is_held & is_other], tally)

    def _remove(self, tables: FlowTables, slots: Counts, tally: _Tally) -> None:
        """Free those of these slots of the peer's flows that no packet has touched here."""
        if not len(slots):
            return
        words = tables.flows[slots]
        untouched = self._ledger.is_untouched(words, slots)
        self._ledger.holder[slots] = 0
        slots, words = slots[untouched], words[untouched]
        done = exchange(tables.flows, slots, words, 0)
        slots, words = slots[done], words[done]
        self._ledger.received[slots] = 0
        self._ledger.sent[slots] = 0
        tally.removed += len(slots)
        tally.closes(words)

    # -- installing flows

    def _take(self, batch: _Batch, planned: Plan) -> None:
        """Install flows that all hash to different buckets."""
        ledger, tally = self._ledger, batch.tally
        found = places(
            batch.view, ledger, planned, batch.now, batch.embryonic_ways, peer_wins=batch.peer_wins
        )
        for reason, refused in found.refused.items():
            tally.refused[reason] += int(np.count_nonzero(refused))
        fits = found.fits
        can, seen = nat.can_have(
            batch.view, ledger, planned, found.slots, batch.now, peer_wins=batch.peer_wins
        )
        tally.refused[Refusal.NAT_TAKEN] += int(np.count_nonzero(fits & ~can))
        fits &= can
        slots, words, goes_on = found.slots[fits], found.words[fits], found.goes_on[fits]
        planned = planned.take(fits)
        stored = _store(batch, planned, slots, words, goes_on)
        stored &= ~_without_port(batch, planned, slots, stored, seen[fits])
        tally.refused[Refusal.RACED] += int(np.count_nonzero(~stored))
        slots, words, planned = slots[stored], words[stored], planned.take(stored)
        self._note(slots, batch.records["slot"][planned.row].astype(np.int64), planned.word)
        tally.closes(words)
        tally.opens(planned.word)
        refreshed = int(np.count_nonzero(goes_on & stored))
        tally.refreshed += refreshed
        tally.installed += len(slots) - refreshed

    def _note(self, slots: Counts, theirs: Counts, words: Slots) -> None:
        ledger = self._ledger
        ledger.sent[slots] = ledger.received[slots] = words
        ledger.holder[slots], ledger.place[theirs] = theirs + 1, slots + 1
        if self._unconfirmed is not None:
            self._unconfirmed[slots] = False


def _cold_and_warm(
    view: View, ids: IdMap, records: Records, jiffies: int, arrival: Arrival
) -> tuple[Table, Table]:
    """Return the cold and the warm rows of these flows, still without their NAT slots."""
    cold = cold_of(records, ids.services[records["service"]])
    age = records["age_ms"].astype(np.int64) * view.clock.hz // 1000
    cold["start"] = (jiffies - age) % 2**32
    warm = np.zeros(len(records), dtype=abi.FLOW_WARM)
    for name in ("mac", "vlan", "tags", "talk", "rtt_us"):
        warm[name] = records[name]
    warm["seq"] = records["seq"].astype(np.uint32) - _SEQ_BACK
    warm["ifindex"], warm["source_mac"] = arrival.of(records["slot"].astype(np.int64))
    return cold, warm


def _store(batch: _Batch, planned: Plan, slots: Counts, expected: Slots, goes_on: Mask) -> Mask:
    """Write the flows to their slots, and their rows to the cold and warm arrays. Return a mask of
    those that were written, because their slots still held the expected words.
    """
    tables, stored = batch.view.tables, np.zeros(len(slots), dtype=bool)
    stored[goes_on] = exchange(
        tables.flows, slots[goes_on], expected[goes_on], planned.word[goes_on]
    )
    old = goes_on & stored
    for name in ("seq", "talk"):
        tables.flows_warm[name][slots[old]] = batch.warm[name][planned.row[old]]
    claims = _claims(planned.word, batch.now)
    stored[~goes_on] = exchange(tables.flows, slots[~goes_on], expected[~goes_on], claims[~goes_on])
    new = ~goes_on & stored
    fresh, at = planned.take(new), slots[new]
    cold, warm = batch.cold[fresh.row], batch.warm[fresh.row]
    warm["nat"] = fresh.nat + 1
    tables.flows_cold[at], tables.flows_warm[at] = cold, warm
    # If this process was suspended here for seconds, the packet path may have given the slot, which
    # looked like one of a closed flow, to another flow. Then the exchange fails.
    stored[new] = exchange(tables.flows, at, claims[new], fresh.word)
    return stored


def _claims(words: Slots, now: int) -> Slots:
    """Return the words that claim slots for these flows: flows that closed this moment, with the
    complement of the tag.
    """
    others = ~(words >> np.uint64(abi.FLOW_TAG_SHIFT)) << np.uint64(abi.FLOW_TAG_SHIFT)
    backends = words & np.uint64(0xFFFF << abi.FLOW_BACKEND_SHIFT)
    low = abi.FlowState.CLOSING << abi.FLOW_STATE_SHIFT | now & abi.FLOW_STAMP_MASK
    claims: Slots = others | backends | np.uint64(low)
    return claims


def _without_port(batch: _Batch, planned: Plan, slots: Counts, stored: Mask, seen: Slots) -> Mask:
    """Return which of the stored flows do not get their port of fullnat; they lose their slots."""
    lost = stored & (planned.nat >= 0)
    if not lost.any():
        return lost
    needy = planned.take(lost)
    lost[lost] = ~nat.take(batch.view, needy, slots[lost], batch.cold[needy.row], seen[lost])
    exchange(batch.view.tables.flows, slots[lost], planned.word[lost], 0)
    return lost


def account(tables: SharedTables, outcome: Outcome) -> None:
    """Count what an outcome has opened and closed. Call it in the thread that writes the tables."""
    opened, closed = outcome.opened, outcome.closed
    more = opened - closed
    tables.backend_load["open_fix"] += more
    tables.backend_load["embryonic_fix"] += outcome.embryonic
    np.add.at(tables.service_load["open_fix"], tables.backends["service"], more)
    mine = tables.backend_count[-1]
    mine["opened"] += opened.astype(np.uint64)
    mine["established"] += outcome.established.astype(np.uint64)
    mine["closed"] += closed.astype(np.uint64)
