"""Which recorded flows answer a query."""

from ipaddress import ip_address, ip_network

import pytest

from agent.dataplane.abi import FlowState
from agent.dataplane.flows import Names, query_flows
from agent.model import BackendRef, Protocol
from agent.state.queries import FlowPage, FlowQuery
from tests.unit.dataplane.fakes import CLOCK, KEYS, FakeTables, five, record

NAMES = Names(
    services={1: "web", 2: "dns"},
    backends={3: BackendRef("web", "a"), 4: BackendRef("web", "b"), 5: BackendRef("dns", "a")},
    salts={1: 111, 2: 222},
)
NOW = 1_000_000  # jiffies


def put(
    tables: FakeTables, flow, backend: int = 3, state=FlowState.ESTABLISHED, idle_s=0, age_s=60
):
    service = 2 if backend == 5 else 1
    return record(
        tables,
        flow,
        service=service,
        salt=NAMES.salts[service],
        backend=backend,
        state=state,
        jiffies=NOW - int(idle_s * CLOCK.hz),
        start=NOW - int(age_s * CLOCK.hz),
    )


@pytest.fixture
def tables() -> FakeTables:
    tables = FakeTables()
    put(tables, five("198.51.100.1"))
    put(tables, five("198.51.100.2"), backend=4, idle_s=40, age_s=100)
    put(tables, five("198.51.101.3"), state=FlowState.CLOSING, idle_s=8)
    put(tables, five("2001:db8::c"), state=FlowState.ACKED, idle_s=20)
    put(tables, five("198.51.100.4"), state=FlowState.EMBRYONIC)
    put(tables, five("198.51.100.5", port=53, udp=True), backend=5, idle_s=12)
    put(tables, five("198.51.100.6"), state=6, idle_s=60, age_s=100)
    return tables


def ask(tables: FakeTables, **query: object) -> FlowPage:
    return query_flows(tables, NAMES, FlowQuery(**query), KEYS, CLOCK, NOW)


def clients(page: FlowPage) -> list[str]:
    return [str(flow.tuple5.client) for flow in page.flows]


def test_all_but_embryonic_flows_the_most_active_first(tables: FakeTables):
    page = ask(tables)
    assert page.matched == 6
    assert clients(page) == [
        "198.51.100.1", "198.51.101.3", "198.51.100.5", "2001:db8::c", "198.51.100.2",
        "198.51.100.6",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"service": "dns"}, ["198.51.100.5"]),
        ({"service": "web", "backend": "b"}, ["198.51.100.2"]),
        ({"backend": "web/b"}, ["198.51.100.2"]),
        ({"backend": "a", "service": "dns"}, ["198.51.100.5"]),
        ({"state": "acked"}, ["2001:db8::c"]),
        (
            {"state": "established", "service": "web"},
            ["198.51.100.1", "198.51.100.2", "198.51.100.6"],
        ),
        ({"state": "closing"}, ["198.51.101.3"]),
        ({"client": ip_network("198.51.101.0/24")}, ["198.51.101.3"]),
        ({"client": ip_network("198.51.100.2")}, ["198.51.100.2"]),
        ({"client": ip_network("2001:db8::/32")}, ["2001:db8::c"]),
        ({"client": ip_network("::/0")}, ["2001:db8::c"]),
        ({"service": "nobody"}, []),
        ({"state": "embryonic"}, []),
    ],
)
def test_filters(tables: FakeTables, query: dict, expected: list[str]):
    page = ask(tables, **query)
    assert clients(page) == expected
    assert page.matched == len(expected)


def test_the_limit_cuts_what_is_shown_not_what_matched(tables: FakeTables):
    page = ask(tables, limit=2)
    assert clients(page) == ["198.51.100.1", "198.51.101.3"]
    assert page.matched == 6


def test_a_flow_says_all_of_itself(tables: FakeTables):
    (flow,) = ask(tables, service="dns").flows
    assert (flow.service, flow.backend, flow.state) == ("dns", "a", "established")
    assert flow.tuple5 == five("198.51.100.5", port=53, udp=True)
    assert flow.tuple5.protocol is Protocol.UDP
    assert flow.age_s == 60
    assert abs(flow.idle_s - 12) <= CLOCK.tick_s


def test_a_flow_is_never_idle_for_longer_than_it_is_old():
    tables = FakeTables()
    put(tables, five("198.51.100.1"), idle_s=0, age_s=0.5)
    (flow,) = query_flows(tables, NAMES, FlowQuery(), KEYS, CLOCK, NOW + 1024).flows
    assert flow.idle_s <= flow.age_s


def test_a_record_of_another_flow_than_the_slots_is_left_out(tables: FakeTables):
    index = put(tables, five("198.51.100.9"))
    tables.flows_cold["sport"][index] += 1
    assert "198.51.100.9" not in clients(ask(tables))


def test_flows_of_unknown_backends_and_services_are_left_out(tables: FakeTables):
    only = Names({}, {4: BackendRef("web", "b")}, NAMES.salts)
    page = query_flows(tables, only, FlowQuery(), KEYS, CLOCK, NOW)
    assert clients(page) == ["198.51.100.2"]
    unsalted = Names(NAMES.services, NAMES.backends, {})
    assert query_flows(tables, unsalted, FlowQuery(), KEYS, CLOCK, NOW).matched == 0


def test_an_empty_table_answers():
    assert ask(FakeTables()) == FlowPage((), 0)


def test_ages_survive_the_wrap_of_jiffies():
    tables = FakeTables()
    record(
        tables, five("198.51.100.1"), service=1, salt=111, backend=3, state=FlowState.ESTABLISHED,
        jiffies=100, start=2**32 - 150,
    )  # fmt: skip
    (flow,) = query_flows(tables, NAMES, FlowQuery(), KEYS, CLOCK, 100).flows
    assert flow.age_s == 1.0
    assert flow.tuple5.vip == ip_address("203.0.113.10")
