"""Snapshots of a data plane that is plain arrays."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.dataplane import abi, contents, keys, latency
from agent.dataplane.abi import FlowState, ForwardId
from agent.metrics.observer import AgentFacts, Observer
from agent.model import Backend, BackendRef, Config, Forward, Hook, Scheduler
from agent.rebalancing import Rebalancer
from agent.state.desired import desired
from agent.state.identities import Identities, assign
from agent.state.queries import ListQuery, SortBy
from agent.state.situation import Past, Situation, situation
from agent.state.snapshot import BackendSnapshot, Handshakes, NatPorts, Snapshot
from agent.state.tables import OriginEntry, ServiceSlot, TableContents
from agent.weighing.weigher import Weigher
from tests.unit.dataplane.fakes import CLOCK, FakeTables, word
from tests.unit.state.world import TABLES, A, B, hop, status, surroundings, web

JIFFIES = 5000 << CLOCK.shift
FACTS = AgentFacts("0.1.0", "test", 1, 0.0, "agent.yaml", "virtio_net")

NO_COMPANIONS = SimpleNamespace(problem_of=lambda _: "", key_names=lambda _: ())


@dataclass
class FakeDataplane:
    """Has of ``Dataplane`` what an observer reads."""

    tables: FakeTables = field(default_factory=lambda: FakeTables(TABLES))
    clock = CLOCK
    interface = "eth0"
    abi_version = abi.ABI_VERSION
    features = SimpleNamespace(names=("ipv4", "nat"))
    attachments = tuple(
        SimpleNamespace(interface=name, ifindex=n, mode=Hook.TC, reason="native: no")
        for n, name in enumerate(("eth0", "eth1"), 2)
    )
    program = SimpleNamespace(
        compile_s=0.25,
        info=SimpleNamespace(id=7, instructions=900, jited_bytes=5000, verified_insns=12_345),
    )

    @property
    def size(self):
        return self.tables.size

    @property
    def attachment(self):
        return self.attachments[0]

    def is_attached(self) -> bool:
        return True

    def now_jiffies(self) -> int:
        return JIFFIES


@dataclass
class World:
    """A configuration in force, and the observer of it."""

    config: Config
    dataplane: FakeDataplane = field(default_factory=FakeDataplane)

    def __post_init__(self) -> None:
        self.weigher = Weigher(self.dataplane, lambda: None)
        self.rebalancer = Rebalancer(self.dataplane)
        around = surroundings(self.config)
        self.ids: Identities = assign(self.config, TableContents(), frozenset(), lambda: 77)
        self.contents = desired(self.config, self.ids, around)
        health = dict.fromkeys(around.eligibility, status())
        hops = {b.address: hop(str(b.address)) for s in self.config.services for b in s.backends}
        self.situation: Situation = situation(
            Past({}, {}), self.config, self.ids, health, hops, around.eligibility, 0.0
        )
        for ident, entry in self.contents.backends.items():
            self.tables.backends["service"][ident] = entry.service_id
            self.tables.backends["timeout_ticks"][ident] = 1000

    @property
    def tables(self) -> FakeTables:
        return self.dataplane.tables

    def backend_id(self, name: str) -> int:
        (service,) = self.config.services
        return next(self.ids.backend_id(service, b) for b in service.backends if b.name == name)

    def observer(self) -> Observer:
        return Observer(
            self.dataplane, self.weigher, self.rebalancer, {}, NO_COMPANIONS, lambda _: None
        )

    def look(self) -> Snapshot:
        observer = self.observer()
        observer.sample(self.situation, 100.0)
        return self.told_by(observer)

    def told_by(self, observer: Observer) -> Snapshot:
        return asyncio.run(observer.snapshot(self.situation, self.contents, FACTS, 1000.0))

    def backend(self, name: str) -> BackendSnapshot:
        (service,) = self.look().services
        return next(b for b in service.backends if b.backend.name == name)


def world(**fields: object) -> World:
    return World(Config("test", "eth0", tables=TABLES, services=(web(A, B, **fields),)))


def test_open_connections_are_those_of_the_flow_table():
    here = world()
    ident = here.backend_id("a")
    here.tables.flows[:4] = [
        word(ident, state, 5000)
        for state in (FlowState.EMBRYONIC, FlowState.ESTABLISHED, FlowState.ESTABLISHED_AWAITING,
                      FlowState.CLOSING)
    ]  # fmt: skip
    here.tables.flows_warm["request"][2] = time.monotonic_ns()
    found = here.backend("a")
    assert (found.load.open, found.flows, found.load.awaiting) == (3, 2, 1)
    assert here.backend("b").load.open == 0


def test_waiting_bytes_are_as_of_this_moment():
    here = world()
    row = here.tables.backend_load[here.backend_id("a") : here.backend_id("a") + 1]
    row["waiting"], row["waiting_fix"] = 5000, -200
    assert here.backend("a").load.waiting_bytes == 4800
    row["waiting"] = 100
    assert here.backend("a").load.waiting_bytes == 0, "not below zero"


@pytest.mark.parametrize(
    "fields", [{"count_waiting": False}, {"count_waiting": False, "scheduler": Scheduler.SOURCE}]
)
def test_what_is_not_counted_is_not_told(fields: dict):
    load = world(**fields).backend("a").load
    assert (load.waiting_bytes, load.awaiting, load.first_byte, load.handshake) == (None,) * 4


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [(Scheduler.LEAST_CONN, 6.0), (Scheduler.LEAST_LOAD, 5.0), (Scheduler.MAGLEV, None)],
)
def test_a_score_is_there_where_the_scheduler_has_one(scheduler: Scheduler, expected):
    here = world(scheduler=scheduler)
    row = here.tables.backend_load[here.backend_id("a") : here.backend_id("a") + 1]
    row["open"], row["kappa"], row["inverse_weight"] = 5, 256, round(2**20 / 100)
    found = here.backend("a").load.score
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_a_report_that_is_old_is_no_part_of_the_score():
    here = world(scheduler=Scheduler.LEAST_LOAD)
    row = here.tables.backend_load[here.backend_id("a") : here.backend_id("a") + 1]
    row["queue"], row["is_hot"], row["inverse_weight"] = 5 * 256, 1, round(2**20 / 100)
    row["report_until"] = JIFFIES + 1
    load = here.backend("a").load
    assert (load.hot, load.score) == (True, pytest.approx(5.0, rel=1e-3))
    row["report_until"] = JIFFIES
    load = here.backend("a").load
    assert (load.hot, load.score) == (False, 0.0)


def test_nothing_is_reported_where_nobody_is_asked_and_learned_where_nobody_learns():
    load = world(learn_speed=False).backend("a").load
    assert (load.reported, load.learned) == (None, None)


def test_times_are_told_of_the_last_minute_and_of_all():
    here = world()
    times = here.tables.backend_latency[here.backend_id("a") : here.backend_id("a") + 1]
    times["first_byte"][0, 11] = 8  # 2.0 to 3.1 ms
    observer = here.observer()
    observer.sample(here.situation, 100.0)
    times["first_byte"][0, 21] = 2  # 65 to 98 ms
    times["handshake"][0, 3] = 5
    observer.sample(here.situation, 130.0)
    (service,) = here.told_by(observer).services
    load = service.backends[0].load
    assert (load.first_byte.count, load.first_byte.recent_count) == (10, 2)
    assert 65 < load.first_byte.recent_p50_ms < 99
    assert load.handshake.recent_count == 5


def test_a_service_adds_up_what_backends_and_their_predecessors_had():
    here = world(forward=Forward.NAT)
    here.tables.backend_count["reply_packets"][0, here.backend_id("a")] = 3
    here.tables.backend_count["reply_packets"][1, here.backend_id("b")] = 4
    (service_id,) = {ident for ident, _ in here.ids.services.values()}
    here.tables.service_count["gone_reply_packets"][-1, service_id] = 100
    here.tables.service_count["replied"][:2, service_id] = 6
    (service,) = here.look().services
    assert (service.counts.reply_packets, service.replied) == (107, 12)


def test_shares_are_expected_by_weight_where_the_ring_does_not_say():
    here = world(scheduler=Scheduler.LEAST_CONN)
    assert here.backend("a").share_expected == 0.25
    assert here.backend("b").share_expected == 0.75
    ring = world(scheduler=Scheduler.MAGLEV)
    assert ring.backend("a").share_expected == pytest.approx(0.25, abs=0.01)


SERVER = ServiceSlot(ip_address("10.0.0.21"), 80, 6)


def fullnat_world() -> World:
    """Towards the server, its source address has block 3."""
    here = world(forward=Forward.FULLNAT)
    ident = here.backend_id("a")
    here.tables.backends["forward"][ident] = ForwardId.FULLNAT
    here.tables.nat_sources["addr"][0] = contents.words(ip_address("10.0.0.1"))
    here.tables.nat_sources["count"][0] = 1
    origin = OriginEntry(ip_address("0.0.0.0"), blocks=(4, 0, 0, 0, 0, 0, 0, 0))
    key, row = keys.packed_slot(SERVER), contents.origin_row(origin).tobytes()
    here.tables.put("origins4", key, row)
    return here


def take_ports(here: World, number: int) -> None:
    ports = here.dataplane.size.nat_ports
    here.tables.flows[:number] = word(here.backend_id("a"), FlowState.CLOSING, 5000)
    here.tables.flows_warm["nat"][:number] = 3 * ports + 1 + np.arange(number)


def test_ports_of_fullnat_are_counted_by_source_and_server():
    here = fullnat_world()
    take_ports(here, 2)
    here.tables.flows[2] = here.tables.flows[0]  # without a port
    ports = here.dataplane.size.nat_ports
    expected = NatPorts(ip_address("10.0.0.1"), SERVER, 2, ports)
    assert here.look().dataplane.nat_ports == (expected,)
    assert world().look().dataplane.nat_ports == ()


def test_a_server_that_runs_out_of_ports_is_told_once():
    here = fullnat_world()
    here.tables.size = replace(here.tables.size, nat_ports=100)
    observer = here.observer()
    with capture_logs() as logs:
        for number in (94, 95, 100, 81, 79, 0):
            here.tables.flows[:] = 0
            take_ports(here, number)
            asyncio.run(observer.look_at_flows())
    assert [line["event"] for line in logs] == [
        "fullnat is short of ports", "fullnat has ports again",
    ]  # fmt: skip
    assert "95 of 100 source ports towards 10.0.0.21:80/tcp" in logs[0]["problem"]
    assert logs[1]["server"] == "10.0.0.21:80/tcp"


def test_a_backend_that_leaves_much_unanswered_is_named_once():
    here = world()
    ident = here.backend_id("a")
    here.tables.flows[0] = word(ident, FlowState.ESTABLISHED_AWAITING, 5000)
    here.tables.flows_warm["request"][0] = 1  # when this host began
    observer = here.observer()
    with capture_logs() as logs, mock.patch.object(latency, "MOST_PATIENCE_S", 1.0):
        for number in (0, 1 << 17, 1 << 18, 1 << 19, 1 << 17, 1 << 18):
            here.tables.flows_warm["waiting"][0] = number
            asyncio.run(observer.look_at_flows())
            observer.sample(here.situation, 100.0)
    told = [(line["log_level"], line["backend"], line.get("bytes")) for line in logs]
    a_is = str(BackendRef("web", "a"))
    assert told == [
        ("warning", a_is, 1 << 18), ("info", a_is, None), ("warning", a_is, 1 << 18),
    ]  # fmt: skip
    (service,) = here.told_by(observer).services
    assert [b.load.unanswered_bytes for b in service.backends] == [1 << 18, 0]


def test_the_program_is_described():
    here = world()
    here.tables.trace["lost"] = 9
    here.tables.flows[:2] = [word(1, FlowState.CLOSING_AWAITING, 0), word(1, FlowState.ACKED, 0)]
    found = here.look().dataplane
    assert (found.hook, found.hook_reason) == ("tc", "native: no")
    assert (found.interface, found.backend_interfaces) == ("eth0", ("eth1",))
    assert (found.instructions, found.jited_bytes, found.verified_insns) == (900, 5000, 12_345)
    assert found.events_lost == 9
    assert found.flows_by_state == {"embryonic": 0, "acked": 1, "established": 0, "closing": 1}


def test_backends_that_are_out_have_no_share():
    here = world(scheduler=Scheduler.LEAST_CONN)
    out = {ref: replace(v, weight=0) for ref, v in here.situation.verdicts.items()}
    here.situation = replace(here.situation, verdicts=out)
    (service,) = here.look().services
    assert [b.share_expected for b in service.backends] == [0.0, 0.0]
    assert np.isfinite(service.backends[0].share_expected)


def test_a_service_to_which_nobody_gets_a_connection_is_named_once():
    here = world()
    observer, ident = here.observer(), here.backend_id("a")
    row = here.tables.backend_count[0]
    with capture_logs() as logs:
        for second in range(1, 131):
            row["opened"][ident] += 1
            row["established"][ident] += second > 100  # somebody gets through
            observer.sample(here.situation, float(second))
            if second == 90:
                assert set(observer.unconnected) == {"web"}
    assert observer.unconnected == {}
    begin, end = logs
    assert (begin["event"], begin["log_level"]) == ("nobody gets a connection", "error")
    assert (begin["service"], begin["begun"] >= 20) == ("web", True)
    assert (end["service"], end["log_level"]) == ("web", "info")


def test_pages_tell_of_a_backend_what_its_service_tells():
    here = world(scheduler=Scheduler.LEAST_LOAD)
    for name, waiting in (("a", 100), ("b", 5000)):
        here.tables.backend_load["waiting"][here.backend_id(name)] = waiting
    observer = here.observer()
    observer.sample(here.situation, 100.0)
    (service,) = here.told_by(observer).services
    query = ListQuery(SortBy.WAITING, limit=1)
    page = asyncio.run(observer.page_of_backends(here.situation, here.contents, query, 1000.0))
    ((of, first),) = page.backends
    assert (of.name, page.matched, page.total) == ("web", 2, 2)
    assert first == service.backends[1]
    (row,) = observer.page_of_services(here.situation, ListQuery(), 1000.0).services
    assert (row.state, row.reason, row.since) == (service.state, service.reason, service.since)
    assert (row.backends_up, row.backends_total, row.waiting_bytes) == (2, 2, 5100)
    assert row.rates == service.rates


def test_a_row_of_a_service_has_the_times_and_handshakes_of_all_its_backends():
    here = world(scheduler=Scheduler.LEAST_LOAD)
    a, b = (here.backend_id(name) for name in ("a", "b"))
    times = here.tables.backend_latency["first_byte"]
    times[a][30] = 1000  # before the window
    observer = here.observer()
    observer.sample(here.situation, 100.0)
    times[a][10] += 98
    times[b][20] += 2
    here.tables.backend_count[0]["opened"][a] += 40
    here.tables.backend_count[0]["established"][b] += 30
    observer.sample(here.situation, 120.0)
    (row,) = observer.page_of_services(here.situation, ListQuery(), 1000.0).services
    assert row.first_byte is not None
    assert row.handshakes == Handshakes(40, 30, 20.0)
    assert row.first_byte.count == 100
    bounds = latency.BOUNDS_US
    assert row.first_byte.p50_ms is not None
    assert bounds[10] <= row.first_byte.p50_ms * 1000 <= bounds[11]
    assert row.first_byte.p99_ms is not None
    assert bounds[20] <= row.first_byte.p99_ms * 1000 <= bounds[21]


def test_the_map_has_the_backends_that_lists_have():
    here = world(scheduler=Scheduler.LEAST_LOAD)
    here.tables.backend_load["waiting"][here.backend_id("b")] = 500
    found = here.observer().matrix(here.situation)
    assert [(cell.backend, cell.load) for cell in found.cells] == [("a", 0.0), ("b", 1.0)]
    assert found.services == ("web",)


def test_the_slowest_of_the_last_minute_come_first():
    here = world(scheduler=Scheduler.LEAST_LOAD)
    a, b = (here.backend_id(name) for name in ("a", "b"))
    times = here.tables.backend_latency["first_byte"]
    times[a][30] = 1000  # before the window
    observer = here.observer()
    observer.sample(here.situation, 100.0)
    query = ListQuery(SortBy.FIRST_BYTE)

    def order() -> list[str]:
        page = asyncio.run(observer.page_of_backends(here.situation, here.contents, query, 1000.0))
        return [one.backend.name for _, one in page.backends]

    times[a][5] += 100
    times[b][9] += 100
    assert order() == ["b", "a"]
    times[a][12] += 100
    assert order() == ["a", "b"]


def test_the_event_loop_goes_on_while_thousands_are_put_together():
    many = tuple(Backend(f"gpu-{n}", ip_address(f"10.0.1.{n}")) for n in range(1, 30))
    here = World(Config("test", "eth0", tables=TABLES, services=(web(*many),)))
    observer, turns = here.observer(), 0
    observer.sample(here.situation, 100.0)

    async def look() -> Snapshot:
        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(others())
        try:
            return await observer.snapshot(here.situation, here.contents, FACTS, 1000.0)
        finally:
            beside.cancel()

    (service,) = asyncio.run(look()).services
    assert turns >= 2
    assert [one.backend for one in service.backends] == list(many)


def test_only_the_chosen_services_are_put_together():
    here = world()
    observer = here.observer()

    def chosen(*names: str) -> Snapshot:
        found = observer.snapshot(here.situation, here.contents, FACTS, 1000.0, names)
        return asyncio.run(found)

    assert [each.service.name for each in chosen("web", "nobody").services] == ["web"]
    assert chosen().services == ()
