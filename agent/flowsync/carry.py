"""Carries the recorded flows over from tables of another ABI or of other sizes, on one node.

The old program balances until the new one takes its place, so the flows are carried in four steps:

1. all flows, while packets are being forwarded;
2. the changes since then;
3. the rest, including flows of which only a SYN has been seen, during a moment in which the old
   program takes no new flow (it drops their first packets, which clients send again);
4. after the change of programs, once more, the packets that were in flight during it.

The new tables use the keys, salts and ids of the old ones. So a flow without addresses, of which
the table holds only the hash, can be carried too: its tag stays the same, and its new bucket
follows from the old one.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from agent.dataplane import abi, contents, survey
from agent.dataplane.abi import FlowState
from agent.dataplane.constants import Sizes
from agent.dataplane.old import OldTables
from agent.dataplane.program import Dataplane
from agent.dataplane.survey import Slots
from agent.dataplane.tables import SharedTables
from agent.failover.times import CARRY_SETTLE_S
from agent.flowsync.export import ALL, CHUNK, Exporter, records_of
from agent.flowsync.identity import IdMap, id_map
from agent.flowsync.install import Arrival, Installer, Outcome, account
from agent.flowsync.ledger import Ledger
from agent.flowsync.plan import Plan, Refusal, plan
from agent.flowsync.records import Records
from agent.flowsync.view import View, view_of
from agent.logs import get_logger
from agent.reconcile.apply import Applier
from agent.reconcile.diff import diff
from agent.state.tables import TableContents

log = get_logger()

_LOOKS = 5  # at most, while the old program still takes new flows
# With fewer changes than this in one look, little is left for the moment without new flows.
_FEW = 256
_YOUNG = (FlowState.EMBRYONIC, FlowState.ACKED)
_MOST_COPIES = 16


def prepare(dataplane: Dataplane) -> None:
    """Have the loaded data plane take over the contents of older tables, if there are any: ids,
    salts and backends now, flows when its program replaces the old one.
    """
    if dataplane.old is None:
        return
    try:
        _prepare(dataplane, dataplane.old)
    except Exception:  # balancing must start, whatever the old tables hold
        log.exception("flows are not carried over", tables=dataplane.old.ident)


def _prepare(dataplane: Dataplane, old: OldTables) -> None:
    carry = Carry(old, dataplane.tables, dataplane.now_jiffies)
    present = contents.read(dataplane.tables)
    if not present.services:  # otherwise an earlier start has already begun to fill the tables
        applier = Applier(dataplane.tables)
        for step in diff(present, kept(carry.held, dataplane.size)):
            applier.apply(step)
    dataplane.around_attach = carry.around


def kept(held: TableContents, size: Sizes) -> TableContents:
    """Return the contents that the new tables start with: which service and backend has which id,
    and which backends were up. The next pass adds the rest.
    """
    services = {s: replace(e, ring=b"") for s, e in held.services.items() if e.id < size.services}
    ids = {entry.id for entry in services.values()}
    backends = {
        ident: entry
        for ident, entry in held.backends.items()
        if ident < size.backends and entry.service_id in ids
    }
    return TableContents(services=services, backends=backends, nat_sources=held.nat_sources)


class Carry:
    """The flows of the old tables on their way into the new ones."""

    def __init__(self, old: OldTables, tables: SharedTables, jiffies: Callable[[], int]) -> None:
        self._old, self._tables, self._jiffies = old, tables, jiffies
        self.held = contents.read(cast("SharedTables", old))  # it has all tables that are read
        boot = old.boot
        self._from = view_of(old, self.held, boot.keys, boot.clock)
        self._exporter = Exporter(Ledger(len(old.flows)))
        self._ledger = Ledger(len(tables.flows))
        # The way back to each client stays the same, because this is the same node.
        self._arrival = Arrival(old.flows_warm["ifindex"], old.flows_warm["source_mac"])
        self._installed = 0
        self._refused: Counter[Refusal] = Counter()

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Wrap the replacement of the old program by the new one, and carry the flows before and
        after it. The new tables must be complete but for the flows.
        """
        begun = time.monotonic()
        boot = self._old.boot
        into = view_of(self._tables, contents.read(self._tables), boot.keys, boot.clock)
        installer = Installer(self._ledger, id_map(self._from.ids, into.ids))
        for records in self._exporter.everything(self._from, self._jiffies(), ALL):
            self._install(installer, into, records)
        for _ in range(_LOOKS):
            if self._bring(installer, into) < _FEW:
                break
        with self._old.new_flows_held() as renew:
            held = time.monotonic()
            time.sleep(CARRY_SETTLE_S)
            self._bring(installer, into)
            self._bring_young(installer, into)
            renew()
            yield
            held_s = time.monotonic() - held
            self._bring(installer, into)
            self._bring_young(installer, into)
        log.info(
            "flows carried over",
            tables=str(self._old.pins.folder),
            slots=self._installed,
            seconds=round(time.monotonic() - begun, 3),
            new_flows_held_ms=round(held_s * 1000),
            **{reason.value: number for reason, number in self._refused.items()},
        )

    def _bring(self, installer: Installer, into: View) -> int:
        """Carry the flows that have changed since the last look, and return how many they are."""
        number = len(self._old.flows)
        records = self._exporter.changed(self._from, self._jiffies(), number)
        for first in range(0, len(records), CHUNK):
            self._install(installer, into, records[first : first + CHUNK])
        return len(records)

    def _bring_young(self, installer: Installer, into: View) -> None:
        """Carry the flows that have had no payload yet."""
        slots, words = survey.used_slots(self._old.flows)
        is_young = np.isin(survey.state_of(words), _YOUNG)
        records, whole = records_of(self._from, self._jiffies(), slots[is_young], words[is_young])
        known = records[whole]
        planned, refused = plan(into, installer.ids, known, self._jiffies())
        self._refused.update(refused)
        self._count(installer.place(into, known, planned, self._jiffies(), self._arrival))
        bare, tags = records[~whole], words[is_young][~whole] >> np.uint64(abi.FLOW_TAG_SHIFT)
        bare["client"], bare["vip"], bare["client_port"], bare["vip_port"] = 0, 0, 0, 0
        for planned in self._by_tag(installer.ids, into, bare, tags):
            self._count(installer.place(into, bare, planned, self._jiffies(), self._arrival))

    def _by_tag(self, ids: IdMap, into: View, records: Records, tags: Slots) -> Iterator[Plan]:
        """Yield plans for the places where flows without addresses can be. In a larger table these
        are several buckets, because the hash bits that would tell them apart are not known.
        """
        owner = self._old.backends["service"][records["backend"]]
        service, backend = ids.services[owner], ids.backends[records["backend"]]
        tables = into.tables
        good = (backend != 0) & (tables.backends["service"][backend] == service)
        good &= into.keys.own[service] == self._from.keys.own[owner]
        rows = np.flatnonzero(good)
        idle = np.round(records["idle_ms"] / (into.clock.tick_s * 1000)).astype(np.int64)
        stamp = (self._jiffies() >> into.clock.shift) - idle & abi.FLOW_STAMP_MASK
        low = backend << abi.FLOW_BACKEND_SHIFT | stamp
        low |= records["state"].astype(np.int64) << abi.FLOW_STATE_SHIFT
        word = tags << np.uint64(abi.FLOW_TAG_SHIFT) | low.astype(np.uint64)
        old, new = self._old.size.flow_buckets, tables.size.flow_buckets
        nat, source = np.full(len(rows), -1), np.zeros(len(rows), dtype=np.int64)
        for copy in range(min(max(new // old, 1), _MOST_COPIES)):
            bucket = (records["slot"].astype(np.int64)[rows] // abi.FLOW_WAYS + copy * old) & (
                new - 1
            )
            yield Plan(rows, bucket, word[rows], service[rows], backend[rows], nat, source)

    def _install(self, installer: Installer, into: View, records: Records) -> None:
        self._count(installer.install(into, records, self._jiffies(), self._arrival))

    def _count(self, done: Outcome) -> None:
        account(self._tables, done)
        self._installed += done.installed
        self._refused.update(done.refused)
