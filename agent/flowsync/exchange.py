"""Owns the exchange with one peer: its ledger, and which ids each side has announced."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.dataplane.survey import Counts, Slots
from agent.flowsync import records
from agent.flowsync.export import ALL, MOST, SYNCED, Exporter
from agent.flowsync.flows import Installed, Look, SlotNumbers
from agent.flowsync.identity import Identities, from_plain, id_map, to_plain
from agent.flowsync.install import Arrival, Installer, Outcome
from agent.flowsync.kept import Kept
from agent.flowsync.ledger import Ledger
from agent.flowsync.plan import Refusal
from agent.flowsync.records import GONE, RECORD, Records
from agent.flowsync.view import View, takes_flows

# Flows dropped for one of these reasons may be taken once our ids have changed.
_FOR_LACK = (Refusal.NO_SERVICE, Refusal.NO_BACKEND, Refusal.NO_NAT_SOURCE)
_NOT_DROPPED = Refusal.KNOWN


@dataclass(frozen=True, slots=True)
class Node:
    """Access to this node's tables as they are at the time of the call.

    ``view`` returns the same object while nothing changes. ``account`` counts what was installed;
    it is called from the event loop.
    """

    view: Callable[[], View]
    jiffies: Callable[[], int]
    arrival: Callable[[], Arrival]
    account: Callable[[Outcome], None]


class Exchange:
    """The exchange with one peer, over all its connections; implements ``flows.Flows``."""

    record_bytes = RECORD.itemsize

    def __init__(self, node: Node, kept: Kept | None = None) -> None:
        self._node = node
        self._lock = threading.Lock()  # a ledger is for one thread at a time
        self._ledger = Ledger(len(node.view().tables.flows), kept)
        self._exporter = Exporter(self._ledger)
        self._installer: Installer | None = None  # until the peer has announced its ids
        self._parts: Iterator[Records] = iter(())
        self._announced: Identities | None = None  # what the peer knows of our ids
        self._theirs: Identities | None = None  # what the peer's ids stand for
        self._ours: Identities | None = None  # our ids, to which the installer maps them
        self._lacks = False  # flows were dropped that other ids might have had room for
        # Our backends that took no flows when the peer sent some for them: their next hop was not
        # known yet, or they were in maintenance.
        self._barred: set[int] = set()
        self._wants_resync = False  # flows that were dropped may be taken now

    def is_untouched(self, words: Slots, slots: Counts) -> npt.NDArray[np.bool_]:
        """Return which of these slots hold, with these words, a flow just as the peer sent it."""
        return self._ledger.is_untouched(words, slots)

    # -- outgoing

    def begin(self) -> bytes:
        with self._lock:
            view = self._node.view()
            self._parts = self._exporter.everything(view, self._node.jiffies())
            return self._announce(view.ids)

    def part(self) -> Look | None:
        with self._lock:
            rows = next(self._parts, None)
        return None if rows is None else _look(None, rows, complete=True)

    def changed(self, *, unfinished: bool = False) -> Look:
        with self._lock:
            view = self._node.view()
            identities = None if self._knows(view.ids) else self._announce(view.ids)
            states = ALL if unfinished else SYNCED
            rows = self._exporter.changed(view, self._node.jiffies(), MOST, states)
            complete = self._exporter.round_ended
            self._follow(view)
            self._see_who_is_back(view)
            wants, self._wants_resync = self._wants_resync, False
        return _look(identities, rows, complete=complete, wants_resync=wants)

    def named(self, slots: SlotNumbers) -> Look:
        with self._lock:
            view = self._node.view()
            identities = None if self._knows(view.ids) else self._announce(view.ids)
            rows = self._exporter.named(view, self._node.jiffies(), slots)
        return _look(identities, rows, complete=False)

    def _knows(self, ids: Identities) -> bool:
        if ids is not self._announced and ids == self._announced:
            # Keep the equal object: comparing many ids is slow, and every look would repeat it.
            self._announced = ids
        return ids is self._announced

    def _announce(self, ids: Identities) -> bytes:
        self._announced = ids
        return json.dumps(to_plain(ids), separators=(",", ":")).encode()

    # -- incoming

    def meet(self, identities: bytes) -> None:
        theirs = from_plain(json.loads(identities))
        with self._lock:
            self._theirs, self._ours = theirs, None
            self._follow(self._node.view())

    def begin_full(self) -> None:
        with self._lock:
            self._taker().begin_full()
            self._lacks = self._wants_resync = False
            self._barred.clear()

    def end_full(self) -> Installed:
        with self._lock:
            outcome = self._taker().end_full(self._node.view())
        return self._installed(records.joined([]), outcome)

    def install(self, data: bytes) -> Installed:
        rows = records.from_bytes(data)
        with self._lock:
            view = self._node.view()
            self._follow(view)
            jiffies, arrival = self._node.jiffies(), self._node.arrival()
            taker, before = self._taker(), takes_flows(view.tables)
            outcome = taker.install(view, rows, jiffies, arrival)
            self._lacks |= any(reason in outcome.refused for reason in _FOR_LACK)
            if Refusal.NO_BACKEND in outcome.refused:
                named = np.unique(taker.ids.backends[rows["backend"]])
                # A backend that changed during the call may have been in either state.
                takes = before & takes_flows(view.tables)
                self._barred.update(
                    n for n in named.tolist() if 0 < n < len(takes) and not takes[n]
                )
        return self._installed(rows, outcome)

    def _follow(self, view: View) -> None:
        """Bring the mapping from the peer's ids to ours up to date."""
        if self._theirs is None or view.ids is self._ours:
            return
        if view.ids == self._ours:
            self._ours = view.ids  # as in `_knows`
            return
        ids = id_map(self._theirs, view.ids)
        self._ours = view.ids
        if self._installer is None:
            self._installer = Installer(self._ledger, ids)
            return
        if self._lacks and ids.has_more_than(self._installer.ids):
            self._wants_resync, self._lacks = True, False
        self._installer.map(ids)

    def _see_who_is_back(self, view: View) -> None:
        """Ask for a resync when a backend that took no flows takes them again.

        The peer does not send the dropped flows again by itself, and the backend keeps its id, so
        no change of ids triggers the resync.
        """
        if self._barred and takes_flows(view.tables)[list(self._barred)].any():
            self._wants_resync = True
            self._barred.clear()

    def _taker(self) -> Installer:
        if self._installer is None:
            raise ValueError("records came before the ids that they name")
        return self._installer

    def _installed(self, rows: Records, outcome: Outcome) -> Installed:
        gone = int(np.count_nonzero(rows["state"] == GONE))
        dropped = {
            reason.value: number
            for reason, number in outcome.refused.items()
            if number and reason is not _NOT_DROPPED
        }
        done = outcome.installed + outcome.refreshed + outcome.refused.get(_NOT_DROPPED, 0)
        return Installed(len(rows) - gone, gone, done, dropped, lambda: self._node.account(outcome))


def _look(
    identities: bytes | None, rows: Records, *, complete: bool, wants_resync: bool = False
) -> Look:
    gone = int(np.count_nonzero(rows["state"] == GONE))
    data = records.to_bytes(rows)
    return Look(identities, data, len(rows) - gone, gone, complete, wants_resync)
