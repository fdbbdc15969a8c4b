"""Decides which flows are sent to a peer, and turns them into records.

A look compares the flow table, slot by slot, with what was sent before. It finds established and
closing flows that are new or have changed, and flows that are over. For a flow that merely goes
on, the time of its last packet is sent again when it is newer than the one that the peer knows by
a quarter of the flow's timeout. Slots that the caller names are compared at once, in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.dataplane import abi, flowhash, survey
from agent.dataplane.abi import FlowState
from agent.dataplane.survey import Slots
from agent.dataplane.tables import Table
from agent.flowsync import records
from agent.flowsync.ledger import SENT_BITS, Ledger
from agent.flowsync.nat import owners
from agent.flowsync.records import RECORD, Records
from agent.flowsync.view import FlowTables, View, limits_of

CHUNK = 1 << 15  # slots compared at a time: few enough to stay in a CPU cache
MOST = 1 << 15  # records of one look by default
REFRESH = 4  # a stamp is sent again when a quarter (1 / REFRESH) of the timeout has passed
SYNCED = frozenset({FlowState.ESTABLISHED, FlowState.CLOSING})
ALL = SYNCED | {FlowState.EMBRYONIC, FlowState.ACKED}  # for a planned handover

_STAMP = np.uint64(abi.FLOW_STAMP_MASK)
_SYNCED_BIT = np.uint64(FlowState.ESTABLISHED << abi.FLOW_STATE_SHIFT)  # CLOSING has it too
_AWAITING = np.uint64(FlowState.ESTABLISHED_AWAITING << abi.FLOW_STATE_SHIFT)
_PLACE = np.uint64((1 << abi.FLOW_TAG_SHIFT) - (1 << abi.FLOW_STATE_SHIFT))  # backend, state
_ENDED = np.uint64(FlowState.CLOSING << abi.FLOW_STATE_SHIFT)
_MOST_MS = 2**32 - 1
# Fields copied from the warm array; tables of an older ABI may lack some of them.
_OF_WARM = ("rtt_us", "seq", "talk", "mac", "vlan", "tags")

type Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Look:
    """What is new in a part of the table: slots whose flow is over, and flows to be sent."""

    over: Indices
    slots: Indices
    words: Slots


class Exporter:
    """Makes the records for one peer; shares its ledger with the installer of that peer's flows."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._next = 0  # where the next look begins
        self._left = 0  # slots that this round of looks has yet to compare; 0: no round has begun

    @property
    def round_ended(self) -> bool:
        """Whether the last looks have covered the whole table.

        A look that returns few records or none may still have ended early: it counts every flow
        that it finds, but flows that are not whole become no records.
        """
        return self._left == 0

    def changed(
        self,
        view: View,
        jiffies: int,
        most: int = MOST,
        states: frozenset[FlowState] = SYNCED,
    ) -> Records:
        """Return what the peer does not know yet, from one look over the table.

        ``states`` is SYNCED or ALL. The look ends once it has found ``most`` or more; the next
        look of the round goes on from there.
        """
        size = len(view.tables.flows)
        looks: list[_Look] = []
        number, self._left = 0, self._left or size
        while self._left:
            first = self._next
            self._next = (first + CHUNK) % size
            self._left = max(self._left - CHUNK, 0)
            look = self._look(view.tables, first, unfinished=states == ALL)
            if look is not None:
                looks.append(look)
                number += len(look.over) + len(look.slots)
            if number >= most:
                break
        return self._collect(view, jiffies, looks)

    def named(self, view: View, jiffies: int, slots: Indices) -> Records:
        """Return what the peer does not know yet about these slots, which may be in any order."""
        flows = view.tables.flows
        slots = np.unique(slots[slots < len(flows)])
        look = self._news(view.tables, flows[slots], slots, unfinished=False)
        return self._collect(view, jiffies, [] if look is None else [look])

    def everything(
        self, view: View, jiffies: int, states: frozenset[FlowState] = SYNCED
    ) -> Iterator[Records]:
        """Yield all flows in these states, in parts, without those that came from the peer itself.

        Changes made meanwhile are returned by ``changed`` afterwards.
        """
        ledger, flows = self._ledger, view.tables.flows
        self._left = 0  # forget a round that the end of the stream has cut off
        wanted = np.zeros(abi.FLOW_STATES, dtype=bool)
        wanted[list(states)] = True
        for first in range(0, len(flows), CHUNK):
            words = _without_waiting(flows[first : first + CHUNK])
            slots = np.flatnonzero(words)
            words, slots = words[slots], slots + first
            theirs = ledger.is_untouched(words, slots)
            ledger.sent[first : first + CHUNK] = 0
            ledger.sent[slots[theirs]] = words[theirs]
            chosen = wanted[survey.state_of(words)] & ~theirs
            rows = self._export(view, jiffies, slots[chosen], words[chosen])
            if len(rows):
                yield rows

    def _look(self, tables: FlowTables, first: int, *, unfinished: bool) -> _Look | None:
        """Return what is new in the slots from ``first`` on, or None. ``unfinished`` includes flows
        with an unfinished handshake.
        """
        raw = tables.flows[first : first + CHUNK].copy()
        moved = np.flatnonzero(_as_known(raw) ^ self._ledger.sent[first : first + CHUNK])
        return self._news(tables, raw[moved], moved + first, unfinished=unfinished)

    def _news(
        self, tables: FlowTables, raw: Slots, slots: Indices, *, unfinished: bool
    ) -> _Look | None:
        """Return what is new in these slots, which held the words ``raw``, or None."""
        if not len(slots):
            return None
        words, known = _as_known(raw), self._ledger.sent[slots]
        is_other = (words ^ known) > _STAMP
        is_exported = words != 0 if unfinished else words & _SYNCED_BIT != 0
        is_over = is_other & ~is_exported & (known != 0)
        is_new = is_exported & (is_other | _is_due(tables, words, known))
        return _Look(slots[is_over], slots[is_new], _without_waiting(raw[is_new]))

    def _collect(self, view: View, jiffies: int, looks: list[_Look]) -> Records:
        """Return records of what these looks have found."""
        if not looks:
            return records.joined(())
        gone = self._gone(np.concatenate([look.over for look in looks]))
        slots = np.concatenate([look.slots for look in looks])
        words = np.concatenate([look.words for look in looks])
        return records.joined((gone, self._export(view, jiffies, slots, words)))

    def _gone(self, slots: Indices) -> Records:
        self._ledger.sent[slots] = 0
        gone = np.zeros(len(slots), dtype=RECORD)
        gone["slot"] = slots
        return gone

    def _export(self, view: View, jiffies: int, slots: Indices, words: Slots) -> Records:
        """Return records of the flows that are whole; the others wait for the next look."""
        rows, whole = records_of(view, jiffies, slots, words)
        self._ledger.sent[slots[whole]] = words[whole] & SENT_BITS
        return rows[whole]


def _as_known(raw: Slots) -> Slots:
    """Return the words as a peer should know them. Flows that the agent has ended are closing at
    no backend; the peer should see them as over (0).
    """
    known: Slots = np.where(raw & _PLACE == _ENDED, np.uint64(0), raw & SENT_BITS)
    return known


def _without_waiting(words: Slots) -> Slots:
    """Return the words with the awaiting bit cleared, in states that have one."""
    awaits = words & _AWAITING == _AWAITING
    bare: Slots = np.where(awaits, words & SENT_BITS, words)
    return bare


def _is_due(tables: FlowTables, words: Slots, known: Slots) -> npt.NDArray[np.bool_]:
    """Return which of these flows have a stamp so much newer that the peer should get it."""
    gone_on = ((words - known) & _STAMP).astype(np.int64)
    limit = limits_of(tables, survey.backend_of(words), survey.state_of(words))
    return gone_on >= np.maximum(limit // REFRESH, 1)


def records_of(
    view: View, jiffies: int, slots: Indices, words: Slots
) -> tuple[Records, npt.NDArray[np.bool_]]:
    """Return the flows in these slots as records, and a mask of those that are whole. The others
    are not to be used: their slot has changed since, or they are embryonic and have no addresses.
    """
    tables = view.tables
    cold, warm = tables.flows_cold[slots], tables.flows_warm[slots]
    held, nat = _nat_of(tables, slots, words, warm)
    _ends_of_new(tables, cold, held & (survey.state_of(words) == FlowState.EMBRYONIC), nat)
    service = cold["service"]
    backend = survey.backend_of(words)
    hashes = view.keys.hashes(service, flowhash.wire_of(cold), flowhash.daddr_of(cold))
    whole = flowhash.is_at(hashes, words, slots, tables.size.flow_buckets)
    known = np.where(backend < len(tables.backends), backend, 0)
    whole &= (service != 0) & (tables.backends["service"][known] == service)
    rows = np.zeros(len(slots), dtype=RECORD)
    rows["slot"], rows["state"] = slots, survey.state_of(words)
    rows["family"], rows["l4_proto"] = cold["family"], cold["l4_proto"]
    rows["client"], rows["vip"] = _bytes(cold["saddr"]), _bytes(cold["daddr"])
    rows["client_port"], rows["vip_port"] = cold["sport"], cold["dport"]
    rows["service"], rows["backend"] = service, backend
    age = survey.age_jiffies(cold["start"], jiffies)
    rows["age_ms"] = np.minimum(age * 1000 / view.clock.hz, _MOST_MS)
    idle = survey.idle_ticks(words, jiffies >> view.clock.shift)
    rows["idle_ms"] = np.round(idle * (view.clock.tick_s * 1000))
    for name in _OF_WARM:
        if name in (warm.dtype.names or ()):
            rows[name] = warm[name]
    port = nat % tables.size.nat_ports
    rows["nat_source"] = np.where(held, tables.nat_sources_of(nat), 0)
    rows["nat_port"] = np.where(held, port + tables.size.nat_first_port, 0)
    return rows, whole


def _bytes(addresses: Table) -> npt.NDArray[np.uint8]:
    """Return addresses given as (n, 4) words as (n, 16) bytes."""
    return np.ascontiguousarray(addresses).view(np.uint8)


def _nat_of(
    tables: FlowTables, slots: Indices, words: Slots, warm: Table
) -> tuple[npt.NDArray[np.bool_], Indices]:
    """Return which flows have a source address and port of fullnat, and their NAT slots' index."""
    nat = warm["nat"].astype(np.int64) - 1
    held = (nat >= 0) & (nat < len(tables.nat_slots))
    nat = np.where(held, nat, 0)
    held &= tables.nat_slots["owner"][nat] == owners(slots, words)
    return held, nat


def _ends_of_new(
    tables: FlowTables, cold: Table, mask: npt.NDArray[np.bool_], nat: Indices
) -> None:
    """Fill in ``cold`` the addresses of embryonic flows from their NAT slots, for the flows in the
    mask. The cold array does not hold them.
    """
    nat_rows = tables.nat_slots[nat[mask]]
    for name, column in (
        ("saddr", "client"), ("daddr", "vip"), ("sport", "client_port"), ("dport", "vip_port"),
        ("service", "service"), ("l4_proto", "l4_proto"), ("family", "family"),
    ):  # fmt: skip
        cold[name][mask] = nat_rows[column]
