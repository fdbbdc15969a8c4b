"""Steps on the tables: a packet at any moment sees the old state or the new one."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from agent.dataplane import abi, contents
from agent.errors import DataplaneError
from agent.model import Forward, Scheduler
from agent.reconcile.apply import Applier
from agent.reconcile.diff import ClearBackend, PutBackend, PutService, SetNatSources, diff
from agent.state.tables import MarkEntry, ServiceEntry, ServiceSlot, TableContents
from tests.unit.dataplane.fakes import FakeTables
from tests.unit.dataplane.test_contents import entry

VIP = ip_address("203.0.113.10")
SLOT, MARK = ServiceSlot(VIP, 80, 6), ServiceSlot(VIP, 0, 0)
RING = bytes((5, 0)) * 101
SERVICE = ServiceEntry(3, 77, Forward.IPIP, Scheduler.MAGLEV, 0, RING)
FULL = TableContents({5: entry("10.0.0.21")}, {SLOT: SERVICE}, {MARK: MarkEntry()})


@pytest.fixture
def tables() -> FakeTables:
    return FakeTables()


def bring(tables: FakeTables, applier: Applier, wanted: TableContents) -> None:
    for step in diff(contents.read(tables), wanted):
        applier.apply(step)
    assert contents.read(tables) == wanted


def region(tables: FakeTables) -> int:
    rows = dict(contents.service_rows(tables))
    return int(rows[SLOT]["ring_line"]) // tables.size.lines_per_ring


def test_from_nothing_to_all_and_back(tables: FakeTables):
    applier = Applier(tables)
    bring(tables, applier, FULL)
    bring(tables, applier, TableContents())
    assert not tables.backends.tobytes().strip(b"\0")


def test_a_new_ring_is_written_beside_the_one_in_use(tables: FakeTables):
    applier = Applier(tables)
    bring(tables, applier, FULL)
    old = region(tables)
    before = tables.rings.reshape(-1, tables.size.lines_per_ring * 32)[old].copy()
    changed = replace(SERVICE, ring=bytes((6, 0)) * 101)
    bring(tables, applier, replace(FULL, services={SLOT: changed}))
    assert region(tables) != old
    after = tables.rings.reshape(-1, tables.size.lines_per_ring * 32)[old]
    assert np.array_equal(after, before), "a packet may still be drawing there"


def test_the_region_given_up_last_rests_for_one_flip(tables: FakeTables):
    applier = Applier(tables)
    bring(tables, applier, FULL)
    previous = region(tables)
    for n in range(1, 30):
        changed = replace(SERVICE, ring=bytes((n, 0)) * 101)
        bring(tables, applier, replace(FULL, services={SLOT: changed}))
        assert region(tables) != previous
        previous = region(tables)


def test_a_service_that_keeps_its_ring_keeps_its_region(tables: FakeTables):
    applier = Applier(tables)
    bring(tables, applier, FULL)
    old, rings = region(tables), tables.rings.copy()
    bring(tables, applier, replace(FULL, services={SLOT: replace(SERVICE, pick_seed=9)}))
    assert region(tables) == old
    assert np.array_equal(tables.rings, rings)


def test_all_services_that_fit_have_a_ring_and_still_can_flip(tables: FakeTables):
    applier = Applier(tables)
    slots = [ServiceSlot(VIP, port, 6) for port in range(1, tables.size.services)]
    services = {slot: replace(SERVICE, id=n) for n, slot in enumerate(slots, 1)}
    wanted = TableContents({5: entry("10.0.0.21")}, services, FULL.marks)
    bring(tables, applier, wanted)
    for n in range(6, 12):
        ring = bytes((n, 0)) * 101
        wanted = replace(
            wanted, services={slot: replace(e, ring=ring) for slot, e in services.items()}
        )
        bring(tables, applier, wanted)


def test_no_free_region_is_an_error_and_changes_nothing(tables: FakeTables):
    count = tables.size.ring_lines // tables.size.lines_per_ring
    for port in range(1, count + 1):
        tables.put_service(
            ServiceSlot(VIP, port, 6),
            contents.service_row(SERVICE, (port - 1) * tables.size.lines_per_ring),
        )
    applier = Applier(tables)
    before = tables.rings.copy(), dict(contents.service_rows(tables))
    with pytest.raises(DataplaneError, match="no ring is free"):
        applier.apply(PutService(ServiceSlot(VIP, 999, 6), SERVICE, True, False))
    assert np.array_equal(tables.rings, before[0])
    assert dict(contents.service_rows(tables)) == before[1]


def test_a_fresh_backend_starts_with_no_counts(tables: FakeTables):
    tables.backend_count["packets"][:, 5] = 99
    Applier(tables).apply(PutBackend(5, entry("10.0.0.21"), fresh=True))
    assert tables.backend_count["packets"][:, 5].sum() == 0


def test_a_changed_backend_keeps_its_counts(tables: FakeTables):
    tables.backend_count["packets"][:, 5] = 99
    Applier(tables).apply(PutBackend(5, entry("10.0.0.21"), fresh=False))
    assert tables.backend_count["packets"][:, 5].sum() == 99 * tables.size.rows


def test_what_a_removed_backend_counted_goes_to_its_service(tables: FakeTables):
    tables.backend_count["bytes"][0, 5], tables.backend_count["bytes"][1, 5] = 10, 5
    tables.backend_count["opened"][-1, 5] = 2
    Applier(tables).apply(ClearBackend(5, 3))
    assert tables.service_count["gone_bytes"][-1, 3] == 15
    assert tables.service_count["gone_opened"][-1, 3] == 2
    assert tables.backend_count["bytes"][:, 5].sum() == 0
    Applier(tables).apply(ClearBackend(5, 3))
    assert tables.service_count["gone_bytes"][-1, 3] == 15


def test_a_removed_backends_replies_are_kept_too(tables: FakeTables):
    tables.backend_count["reply_packets"][0, 5] = 7
    tables.backend_count["reply_bytes"][0, 5] = 700
    Applier(tables).apply(ClearBackend(5, 3))
    assert tables.service_count["gone_reply_packets"][-1, 3] == 7
    assert tables.service_count["gone_reply_bytes"][-1, 3] == 700


def busy(tables: FakeTables) -> None:
    """What the packet path has counted of backend 5."""
    row = tables.backend_load[5:6]
    row["open"], row["waiting"], row["open_fix"], row["waiting_fix"] = 3, 4096, -1, -96
    row["queue"], row["report_open"] = 512, 2
    tables.backend_latency["first_byte"][5] = 9
    tables.backend_latency["handshake_us"][5] = 9


def test_a_changed_backend_keeps_what_is_open_and_waits(tables: FakeTables):
    busy(tables)
    given = entry("10.0.0.21", weight=50, bytes_per_connection=1000)
    Applier(tables).apply(PutBackend(5, given, fresh=False))
    row = tables.backend_load[5]
    assert (row["open"], row["waiting"], row["open_fix"], row["waiting_fix"]) == (3, 4096, -1, -96)
    assert (row["queue"], row["report_open"]) == (512, 2), "the report is another's"
    assert (row["weight"], row["inverse_weight"]) == (50, 20_972)
    assert (row["per_byte"], row["kappa"]) == (16_777, 256)
    assert tables.backend_latency["handshake_us"][5] == 9


@pytest.mark.parametrize(
    "step",
    [PutBackend(5, entry("10.0.0.21"), fresh=True), ClearBackend(5, 3)],
    ids=["put", "clear"],
)
def test_a_fresh_or_removed_backend_has_nothing_open_and_no_times(tables: FakeTables, step):
    busy(tables)
    Applier(tables).apply(step)
    row = tables.backend_load[5]
    for name in ("open", "waiting", "open_fix", "waiting_fix", "queue", "report_open"):
        assert row[name] == 0
    assert not tables.backend_latency[5].tobytes().strip(b"\0")


def test_a_fresh_service_has_nothing_open(tables: FakeTables):
    tables.service_load[3] = (9, -2, 100, 5000, 0)
    bounded = replace(SERVICE, scheduler=Scheduler.SOURCE, bound=320, load_weight=400)
    Applier(tables).apply(PutService(SLOT, bounded, ring_changed=True, fresh=True))
    row = tables.service_load[3]
    assert (row["open"], row["open_fix"], row["weight"], row["escape"]) == (0, 0, 400, 0)
    tables.service_load["open"][3] = 5
    heavier = replace(bounded, load_weight=500)
    Applier(tables).apply(PutService(SLOT, heavier, ring_changed=False, fresh=False))
    assert tables.service_load["open"][3] == 5
    assert tables.service_load["weight"][3] == 500


class Sources:
    """Stands for the rows of source addresses; keeps what a packet may send from."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.seen = rows, []

    def __getitem__(self, name: str):
        outer = self

        class Column:
            def __getitem__(self, index):
                return outer.rows[name][index]

            def __setitem__(self, index, value) -> None:
                outer.rows[name][index] = value
                count = int(outer.rows["count"][0])
                outer.seen.append([int(w[0]) for w in outer.rows["addr"][:count]])

        return Column()


def test_no_packet_is_sent_from_an_address_that_is_not_there_yet(tables: FakeTables):
    one, two = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    tables.nat_sources = sources = Sources(tables.nat_sources)
    applier = Applier(tables)
    for wanted in ({0: one}, {0: one, 1: two}, {0: two}, {}):
        applier.apply(SetNatSources(wanted))
        assert sources.seen[-1] == [int(a) for a in wanted.values()]
    assert all(address for seen in sources.seen for address in seen)


class Recorder:
    """Stands for the rows of backends; keeps the 16 words after each store."""

    def __init__(self, tables: FakeTables) -> None:
        self.history: list[np.ndarray] = []
        outer = self

        class Words:
            def __init__(self, words: np.ndarray) -> None:
                self.words = words

            def __getitem__(self, index):
                return self.words[index]

            def __setitem__(self, index, value) -> None:
                places = np.atleast_1d(np.arange(len(self.words))[index])
                values = np.broadcast_to(value, places.shape)
                for place, each in zip(places, values, strict=True):
                    self.words[place] = each
                    outer.history.append(self.words.copy())

        class Rows:
            def __getitem__(self, index):
                rows = tables.backends[index]

                class View:
                    @staticmethod
                    def view(_dtype) -> Words:
                        return Words(rows.view(np.uint64))

                return View()

        self.rows = Rows()


def states_of(tables: FakeTables, step) -> list[np.ndarray]:
    """The row of a backend after each 8-byte store of a step, as packets could see it."""
    recorder = Recorder(tables)
    shadow = FakeTables.__new__(FakeTables)
    shadow.__dict__ = {**tables.__dict__, "backends": recorder.rows}
    Applier(shadow).apply(step)
    return [row.view(abi.BACKEND)[0] for row in recorder.history]


def test_a_new_backend_is_usable_only_once_it_is_whole(tables: FakeTables):
    value = entry("10.0.0.21")
    whole = contents.backend_row(value).tobytes()
    states = states_of(tables, PutBackend(5, value, fresh=True))
    assert states
    for state in states:
        if state["flags"]:
            assert state.tobytes() == whole


def test_a_backend_is_taken_away_before_anything_else_of_it_changes(tables: FakeTables):
    value = entry("10.0.0.21")
    tables.backends[5] = contents.backend_row(value)[0]
    old = tables.backends[5].tobytes()
    gone = replace(value, usable=False, alive=False, mac="00:00:00:00:00:00", mtu=0)
    for state in states_of(tables, PutBackend(5, gone, fresh=False)):
        assert not state["flags"]
    tables.backends[5] = np.frombuffer(old, dtype=abi.BACKEND)[0]
    for state in states_of(tables, ClearBackend(5, 3)):
        assert not state["flags"]


def test_a_new_mac_comes_in_one_store(tables: FakeTables):
    value = entry("10.0.0.21")
    tables.backends[5] = contents.backend_row(value)[0]
    moved = replace(value, mac="02:ff:ff:ff:ff:ff")
    macs = {s["mac"].tobytes().hex(":") for s in states_of(tables, PutBackend(5, moved, False))}
    assert macs <= {value.mac, moved.mac}
    assert contents.read(tables).backends[5] == moved
