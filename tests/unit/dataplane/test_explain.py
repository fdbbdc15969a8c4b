"""What an explanation says, step by step."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from agent.dataplane import abi, contents
from agent.dataplane.explain import DataplaneView, explain
from agent.dataplane.flows import Names
from agent.model import BackendRef, Forward, Scheduler
from agent.rings import maglev
from agent.state.queries import Explanation, FiveTuple
from agent.state.ranges import blocks
from agent.state.tables import (
    BackendEntry,
    MarkEntry,
    PortBlock,
    ServiceEntry,
    ServiceSlot,
    TableContents,
)
from tests.unit.dataplane.fakes import CLOCK, KEYS, FakeTables, five, record
from tests.unit.dataplane.test_contents import entry

VIP = ip_address("203.0.113.10")
NOW = 1_000_000
NAMES = Names({3: "web"}, {5: BackendRef("web", "a"), 6: BackendRef("web", "b")}, {3: 77})


def tables_with(**flags: dict) -> FakeTables:
    """A service with the backends a and b; ``flags`` changes an entry by name."""
    tables = FakeTables()
    members = []
    for ident, name in ((5, "a"), (6, "b")):
        value = entry(f"10.0.0.{ident}", **flags.get(name, {}))
        tables.backends[ident] = contents.backend_row(value)[0]
        members.append(maglev.Member(value.address.packed, 100, ident))
    ring = maglev.build(tuple(members), 101)
    tables.rings[:101] = ring
    value = ServiceEntry(3, 77, Forward.DSR, Scheduler.MAGLEV, 0, ring.tobytes())
    tables.put_service(ServiceSlot(VIP, 80, 6), contents.service_row(value, 0))
    tables.put_service(ServiceSlot(VIP, 0, 0), np.zeros(1, dtype=abi.SERVICE))
    return tables


def said(tables: FakeTables, flow=None):
    view = DataplaneView(tables, contents.read(tables), NAMES, KEYS, CLOCK, NOW)
    return explain(view, flow or five("198.51.100.7"))


def test_a_new_flow_is_picked_from_the_ring():
    found = said(tables_with())
    assert (found.verdict, found.service, found.reason) == (
        "forward",
        "web",
        "picked from the ring",
    )
    assert found.backend in ("a", "b")
    assert found.ring_slots == 101
    assert [draw.usable for draw in found.draws] == [True]


def test_draws_that_are_passed_over_are_told():
    picked = said(tables_with()).backend
    other = {"a": "b", "b": "a"}[picked]
    found = said(tables_with(**{picked: {"usable": False}}))
    assert found.backend == other
    assert [draw.usable for draw in found.draws[:-1]] == [False] * (len(found.draws) - 1)
    assert f"names {picked}, not usable, next draw" in " ".join(found.steps)


def test_no_usable_backend_is_a_drop():
    down = {"usable": False}
    found = said(tables_with(a=down, b=down))
    assert (found.verdict, found.reason, found.backend) == ("drop", "no-backend", None)
    assert len(found.draws) == 32


def test_a_service_without_a_ring_is_a_drop():
    tables = tables_with()
    value = ServiceEntry(3, 77, Forward.DSR, Scheduler.MAGLEV, 0, b"")
    tables.put_service(ServiceSlot(VIP, 80, 6), contents.service_row(value, 0))
    assert said(tables).verdict == "drop"


def test_what_is_not_ours_passes():
    found = said(tables_with(), five("198.51.100.7", port=81))
    assert (found.verdict, found.service) == ("pass", None)
    assert "is a VIP, but has no service on port 81" in " ".join(found.steps)
    found = said(tables_with(), five("198.51.100.7", vip="203.0.113.11"))
    assert "is not a VIP" in " ".join(found.steps)


def test_any_port_answers_where_no_exact_port_does():
    tables = tables_with()
    value = ServiceEntry(3, 77, Forward.DSR, Scheduler.MAGLEV, 0, b"\5\0" * 101)
    tables.rings[128:229] = 5
    tables.put_service(ServiceSlot(VIP, 0, 6), contents.service_row(value, 4))
    assert said(tables, five("198.51.100.7", port=8080)).backend == "a"


def with_flow(tables: FakeTables, backend: int, state=abi.FlowState.ESTABLISHED) -> FakeTables:
    record(
        tables, five("198.51.100.7"), service=3, salt=77, backend=backend, state=state,
        jiffies=NOW - 8 * CLOCK.hz, start=NOW - 100 * CLOCK.hz,
    )  # fmt: skip
    return tables


def test_a_recorded_flow_stays():
    for ident, name in ((5, "a"), (6, "b")):
        found = said(with_flow(tables_with(), ident))
        assert (found.backend, found.reason, found.draws) == (name, "recorded flow", ())
        assert (found.recorded.state, found.recorded.age_s) == ("established", 100)


def test_a_recorded_flow_stays_at_a_backend_that_drains():
    found = said(with_flow(tables_with(a={"usable": False}), 5))
    assert (found.backend, found.reason) == ("a", "recorded flow")


def test_a_flow_that_its_backend_gives_up_is_picked_for_anew():
    gone = {"usable": False, "alive": False}
    found = said(with_flow(tables_with(a=gone), 5))
    assert (found.backend, found.reason) == ("b", "picked from the ring")
    assert found.recorded is not None


def test_a_flow_of_a_backend_that_is_gone_is_picked_for_anew():
    found = said(with_flow(tables_with(), 9))
    assert (found.recorded, found.reason) == (None, "picked from the ring")


def test_an_embryonic_flow_has_no_age():
    found = said(with_flow(tables_with(), 5, abi.FlowState.EMBRYONIC))
    assert (found.recorded.state, found.recorded.age_s) == ("embryonic", 0)


def backend(ident: int, **changes: object) -> BackendEntry:
    return entry(f"10.0.0.{ident}", **changes)


def service(scheduler: Scheduler = Scheduler.MAGLEV, **fields: object) -> ServiceEntry:
    """A service of whose ring every slot names backend 5."""
    return replace(ServiceEntry(3, 77, Forward.DSR, scheduler, 0, b"\5\0" * 101), **fields)


def explained(
    services: dict[ServiceSlot, ServiceEntry],
    flow: FiveTuple,
    names: Names = NAMES,
    held: BackendEntry | None = None,
    tables: FakeTables | None = None,
    **contents: object,
) -> Explanation:
    found = TableContents(backends={5: held or backend(5)}, services=services, **contents)
    return explain(DataplaneView(tables or FakeTables(), found, names, KEYS, CLOCK, NOW), flow)


FLOW = five("198.51.100.7")
SLOT = ServiceSlot(VIP, 80, 6)


def test_a_port_in_a_range_finds_the_ranges_service():
    marks = {ServiceSlot(VIP, 0, 0): MarkEntry(ranges=True)}
    ranges = {PortBlock(VIP, 6, first, bits): 8000 for first, bits in blocks(8000, 8010)}
    services = {ServiceSlot(VIP, 8000, 6): service(port_last=8010)}
    for port in (8000, 8005, 8010):
        found = explained(services, five("198.51.100.7", port=port), marks=marks, ranges=ranges)
        assert found.backend == "a"
    assert "port 8010 is in the range 8000-8010" in found.steps
    for flow in (five("198.51.100.7", port=8011), five("198.51.100.7", port=8005, udp=True)):
        assert explained(services, flow, marks=marks, ranges=ranges).verdict == "pass"


def below(address: str, *prefixes: str, **contents: object) -> Explanation:
    networks = frozenset(ip_network(prefix) for prefix in prefixes)
    firsts = [network.network_address for network in networks]
    return explained(
        {ServiceSlot(first, 80, 6): service(vip_bits=24) for first in firsts},
        five("198.51.100.7", vip=address),
        marks={ServiceSlot(first, 0, 0): MarkEntry() for first in firsts},
        prefixes=networks,
        **contents,
    )


def test_an_address_below_a_prefix_finds_the_prefixs_service():
    found = below("203.0.113.77", "203.0.113.0/24", "203.0.0.0/16", "192.0.2.0/24")
    assert found.backend == "a"
    assert "203.0.113.77 is below the prefix VIP of 203.0.113.0" in found.steps
    assert below("203.0.114.1", "203.0.113.0/24").verdict == "pass"


def test_a_flow_below_a_prefix_is_found_under_its_own_address():
    tables = FakeTables()
    for vip in ("203.0.113.77", "203.0.113.78"):
        record(
            tables, five("198.51.100.7", vip=vip), service=3, salt=77, backend=5,
            state=abi.FlowState.ESTABLISHED, jiffies=NOW, below_prefix=ip_address(vip),
        )  # fmt: skip
    for vip, reason in (
        ("203.0.113.78", "recorded flow"),
        ("203.0.113.79", "picked from the ring"),
    ):
        assert below(vip, "203.0.113.0/24", tables=tables).reason == reason


def test_a_packet_to_a_source_of_fullnat_is_an_answer():
    marks = {ServiceSlot(VIP, 0, 0): MarkEntry(nat_source=0)}
    found = explained({}, FLOW, marks=marks)
    assert found.verdict == "pass"
    assert "is a source address of fullnat" in found.steps[0]


def test_nobody_usable_is_answered_where_the_service_says_so():
    out = backend(5, usable=False)
    for flow, with_what in ((FLOW, "a RST"), (five("198.51.100.7", udp=True), "an ICMP")):
        slot = ServiceSlot(VIP, 80, flow.protocol.number)
        found = explained({slot: service(reset=True)}, flow, held=out)
        assert (found.verdict, found.reason, found.backend) == ("reset", "no-backend", None)
        assert with_what in found.steps[-1]


def test_a_client_that_waits_for_a_backend_is_said_to():
    out = backend(5, usable=False)
    for flow, how in ((FLOW, "kept"), (five("198.51.100.7", udp=True), "send it again")):
        slot = ServiceSlot(VIP, 80, flow.protocol.number)
        found = explained({slot: service(holds=True)}, flow, held=out)
        assert (found.verdict, found.reason, found.backend) == ("drop", "held", None)
        assert how in found.steps[-1]


def test_failing_open_is_said():
    for why, words in (("fail open", "no backend is up"), ("panic", "too few backends are up")):
        names = replace(NAMES, in_spite={3: why})
        assert words in " ".join(explained({SLOT: service()}, FLOW, names).steps)
        assert words not in " ".join(explained({SLOT: service()}, FLOW).steps)


def test_what_depends_on_the_load_or_the_turn_says_so():
    for scheduler, depends_on, reason in (
        (Scheduler.MAGLEV, None, "picked from the ring"),
        (Scheduler.ROUND_ROBIN, "turn", "the next in turn"),
        (Scheduler.LEAST_CONN, "load", "depends on the load of the moment"),
        (Scheduler.LEAST_LOAD, "load", "depends on the load of the moment"),
    ):
        found = explained({SLOT: service(scheduler, draws=4)}, FLOW)
        assert (found.backend, found.scheduler) == ("a", scheduler.value)
        assert found.depends_on == depends_on
        assert reason in found.reason


def test_whose_turn_it_is_may_be_open():
    ring = b"\5\0\6\0"
    value = service(Scheduler.ROUND_ROBIN, ring=ring)
    contents = TableContents(backends={5: backend(5), 6: backend(6)}, services={SLOT: value})
    view = DataplaneView(FakeTables(cpus=2), contents, NAMES, KEYS, CLOCK, NOW)
    found = explain(view, FLOW)
    assert (found.verdict, found.backend, found.depends_on) == ("forward", None, "turn")
    assert [draw.backend for draw in found.draws] == ["a", "b"]
    assert found.steps[-1] == "each CPU takes its own turn; next are a (CPU 0), b (CPU 1)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"forward": Forward.DSR}, "dsr: to the MAC"),
        ({"forward": Forward.IPIP}, "ipip: an outer header to 10.0.0.5"),
        ({"forward": Forward.GUE}, "gue: an outer header to 10.0.0.5"),
        ({"forward": Forward.NAT}, "nat: the destination becomes 10.0.0.5 port 80"),
        ({"forward": Forward.NAT, "port": 8080}, "becomes 10.0.0.5 port 8080"),
        ({"forward": Forward.FULLNAT}, "the source one of the balancer's"),
    ],
)
def test_the_last_step_says_how_the_packet_goes(changes: dict, said: str):
    assert said in explained({SLOT: service()}, FLOW, held=backend(5, **changes)).steps[-1]


def test_a_recorded_flow_of_fullnat_says_from_where():
    tables = FakeTables()
    index = record(
        tables, FLOW, service=3, salt=77, backend=5, state=abi.FlowState.ESTABLISHED_AWAITING,
        jiffies=NOW,
    )  # fmt: skip
    tables.backends["forward"][5] = abi.ForwardId.FULLNAT
    tables.nat_sources["addr"][0, 0] = int(ip_address("10.0.0.1"))
    tables.flows_warm["nat"][index] = 8
    tables.flows_warm["waiting"][index] = 1234
    found = explained(
        {SLOT: service()}, FLOW, replace(NAMES, counting=frozenset({3})),
        backend(5, forward=Forward.FULLNAT), tables,
    )  # fmt: skip
    port = tables.size.nat_first_port + 7
    assert f"the source 10.0.0.1 port {port}" in found.steps[-1]
    assert found.recorded.nat_source == (ip_address("10.0.0.1"), port)
    assert (found.recorded.requests.awaiting, found.recorded.requests.waiting_bytes) == (True, 1234)


def test_of_an_embryonic_flow_no_requests_are_told():
    tables = FakeTables()
    index = record(
        tables, FLOW, service=3, salt=77, backend=5, state=abi.FlowState.EMBRYONIC, jiffies=NOW
    )
    tables.flows_warm["talk"][index] = abi.Talk.TLS  # of the flow before it
    found = explained(
        {SLOT: service()}, FLOW, replace(NAMES, counting=frozenset({3})), None, tables
    )
    assert (found.recorded.state, found.recorded.requests) == ("embryonic", None)


def test_a_quic_service_says_that_connection_ids_go_first():
    flow = five("198.51.100.7", udp=True)
    found = explained({ServiceSlot(VIP, 80, 17): service(quic_id_bytes=4)}, flow)
    assert "a QUIC packet whose connection id names a backend goes there instead" in found.steps
