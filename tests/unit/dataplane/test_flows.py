"""Which recorded flows answer a query."""

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from agent.dataplane import survey
from agent.dataplane.abi import NAT_SOURCES, FlowState, ForwardId, Talk
from agent.dataplane.flows import Names, names_of, query_flows
from agent.model import BackendRef, Config, Health, NoBackend, Protocol, Service, ServiceKey
from agent.state.identities import assign
from agent.state.queries import FlowPage, FlowQuery, FlowRequests
from agent.state.situation import Past, situation
from agent.state.tables import TableContents
from tests.unit.dataplane.fakes import CLOCK, KEYS, FakeTables, five, record
from tests.unit.state.world import TABLES, A, B, surroundings, web

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


def put_prefixed(tables: FakeTables, flow) -> int:
    """A flow of service 1, whose VIP is a prefix."""
    return record(
        tables, flow, service=1, salt=111, backend=3, state=FlowState.ESTABLISHED, jiffies=NOW,
        below_prefix=flow.vip,
    )  # fmt: skip


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


def test_a_flow_that_has_just_begun_is_not_49_days_old():
    """It came between the reading of the clock and that of the table."""
    tables = FakeTables()
    put(tables, five("198.51.100.1"), age_s=-0.1)
    assert [flow.age_s for flow in ask(tables).flows] == [0]


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
        ({"state": "awaiting"}, ["198.51.100.6"]),
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


def test_the_hottest_have_most_bytes_waiting_then_were_busy_last_then_are_old():
    tables = FakeTables()
    for host, state, idle_s, age_s, waiting in (
        (1, FlowState.ESTABLISHED, 0, 10, 9000),  # left over: nothing waits
        (2, FlowState.ESTABLISHED, 60, 900, 0),
        (3, FlowState.ESTABLISHED_AWAITING, 60, 100, 20),
        (4, FlowState.ESTABLISHED_AWAITING, 0, 100, 5000),
        (5, FlowState.ESTABLISHED, 0, 500, 0),
    ):
        flow = five(f"198.51.100.{host}")
        index = put(tables, flow, state=state, idle_s=idle_s, age_s=age_s)
        tables.flows_warm["waiting"][index] = waiting
    hosts = [int(name.rpartition(".")[2]) for name in clients(ask(tables, hottest=True))]
    assert hosts == [4, 3, 5, 1, 2]
    assert len(clients(ask(tables, hottest=True, limit=2))) == 2


@pytest.mark.parametrize("hottest", [True, False])
def test_read_in_pieces_the_answer_is_the_same(
    hottest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million slots in one step would hold up everything else that the agent does."""
    tables, chance = FakeTables(), random.Random(4)
    for host in range(200):
        state = chance.choice((FlowState.ESTABLISHED, FlowState.ESTABLISHED_AWAITING))
        flow, idle_s = five(f"198.51.100.{host}"), chance.randrange(0, 40, 8)
        index = put(tables, flow, state=state, idle_s=idle_s, age_s=chance.randrange(40, 90))
        tables.flows_warm["waiting"][index] = chance.randrange(5)
    whole = [ask(tables, hottest=hottest, limit=limit) for limit in (7, 1000)]
    monkeypatch.setattr(survey, "_CHUNK", 16)
    assert [ask(tables, hottest=hottest, limit=limit) for limit in (7, 1000)] == whole


def test_a_flow_says_all_of_itself(tables: FakeTables):
    (flow,) = ask(tables, service="dns").flows
    assert (flow.service, flow.backend, flow.state) == ("dns", "a", "established")
    assert flow.tuple5 == five("198.51.100.5", port=53, udp=True)
    assert flow.tuple5.protocol is Protocol.UDP
    assert flow.age_s == 60
    assert abs(flow.idle_s - 12) <= CLOCK.tick_s


def test_flows_of_a_half_closed_client_that_waits_are_closing_and_awaiting(tables: FakeTables):
    put(tables, five("198.51.100.8"), state=FlowState.CLOSING_AWAITING)
    assert clients(ask(tables, state="closing")) == ["198.51.100.8", "198.51.101.3"]
    assert clients(ask(tables, state="awaiting")) == ["198.51.100.8", "198.51.100.6"]


def asked(tables: FakeTables, index: int, **warm: int):
    """What is known of the requests of one flow, in service 1."""
    for name, value in warm.items():
        tables.flows_warm[name][index] = value
    names = replace(NAMES, counting=frozenset({1}))
    return query_flows(tables, names, FlowQuery(service="web"), KEYS, CLOCK, NOW).flows[0].requests


def test_a_flow_says_what_it_waits_for():
    tables = FakeTables()
    index = put(tables, five("198.51.100.1"), state=FlowState.ESTABLISHED_AWAITING)
    found = asked(tables, index, waiting=5000, rtt_us=731, talk=Talk.TLS_FIRST)
    assert found == FlowRequests(True, 5000, 0.731, "tls")


def test_a_flow_that_waits_for_nothing_says_so():
    tables = FakeTables()
    index = put(tables, five("198.51.100.1"))
    assert asked(tables, index, waiting=77) == FlowRequests(False, 0, None, None)


@pytest.mark.parametrize("talk", list(Talk)[1:])
def test_every_talk_has_a_name(talk: Talk):
    tables = FakeTables()
    index = put(tables, five("198.51.100.1"))
    assert asked(tables, index, talk=talk).talk == talk.name.lower().split("_")[0]


def test_what_another_flow_left_is_not_told_where_nothing_is_counted(tables: FakeTables):
    tables.flows_warm["talk"], tables.flows_warm["rtt_us"] = 1, 500
    assert {flow.requests for flow in ask(tables).flows} == {None}


@pytest.mark.parametrize(
    ("number", "address"), [(0, "198.51.100.200"), (NAT_SOURCES + 1, "2001:db8::200")]
)
def test_a_flow_of_fullnat_says_what_the_backend_sees(number: int, address: str):
    tables = FakeTables()
    index = put(tables, five("198.51.100.1"))
    words = np.frombuffer(ip_address(address).packed.ljust(16, b"\0"), dtype=">u4")
    tables.nat_sources["addr"][number] = words
    nat = 3 * tables.size.nat_ports + 5
    tables.flows_warm["nat"][index], tables.nat_slots["source"][nat] = nat + 1, number
    assert ask(tables).flows[0].nat_source is None, "not what its backend is for"
    tables.backends["forward"][3] = ForwardId.FULLNAT
    assert ask(tables).flows[0].nat_source == (
        ip_address(address),
        tables.size.nat_first_port + 5,
    )
    tables.flows_warm["nat"][index] = 0
    assert ask(tables).flows[0].nat_source is None


@pytest.mark.parametrize("vips", [("203.0.113.10", "203.0.113.77"), ("2001:db8::1", "2001:db8::2")])
def test_below_a_prefix_the_address_tells_flows_apart(vips: tuple[str, str]):
    tables = FakeTables()
    client = "198.51.100.1" if "." in vips[0] else "2001:db8::c"
    for vip in vips:
        put_prefixed(tables, five(client, vip=vip))
    names = replace(NAMES, prefixes=frozenset({1}))
    page = query_flows(tables, names, FlowQuery(), KEYS, CLOCK, NOW)
    assert {str(flow.tuple5.vip) for flow in page.flows} == set(vips)
    assert query_flows(tables, NAMES, FlowQuery(), KEYS, CLOCK, NOW).matched == 0


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


def test_names_are_those_of_what_is_configured():
    services = (
        web(A, B),
        Service("wide", ServiceKey(ip_address("192.0.2.0"), 53, Protocol.UDP, vip_bits=24)),
        web(A, name="open", vip="203.0.113.11", no_backend=NoBackend.ANY, count_waiting=False),
    )
    config = Config("test", "eth0", tables=TABLES, services=services)
    around = surroundings(config, health={"a": Health.DOWN})
    ids = assign(config, TableContents(), frozenset(), lambda: 77)
    now = situation(Past({}, {}), config, ids, {}, {}, around.eligibility, 0.0)
    names = names_of(now)
    by_name = {name: ident for ident, name in names.services.items()}
    assert set(by_name) == {"web", "wide", "open"}
    assert sorted(map(str, names.backends.values())) == ["open/a", "web/a", "web/b"]
    assert set(names.salts.values()) == {77}
    assert names.prefixes == {by_name["wide"]}
    assert names.counting == {by_name["web"]}, "only tcp, and where it is wanted"
    assert names.in_spite == {by_name["open"]: "fail open"}
