"""The watch over long-lived connections, on plain arrays: nothing is sent."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from agent.dataplane import survey
from agent.dataplane.abi import FlowState
from agent.dataplane.idle import IdleFlow
from agent.dataplane.rerun import Frame
from agent.model import Address, BackendRef, Config, Rebalance
from agent.rebalancing import SEND_TIMES, Rebalancer, flow_words
from agent.state.identities import assign
from agent.state.queries import FlowRequests, FlowView
from agent.state.rebalance import Budget
from agent.state.situation import Past, Situation, situation
from agent.state.skew import LASTING_S
from agent.state.tables import TableContents
from tests.unit.dataplane.fakes import CLOCK, KEYS, FakeTables, five, record
from tests.unit.state.world import TABLES, A, B, status, surroundings, web

JIFFIES = 1_000_000
CONFIG = Config("lb", "eth0", tables=TABLES, services=(web(A, B),))


def situation_of(config: Config = CONFIG) -> Situation:
    around = surroundings(config)
    ids = assign(config, TableContents(), frozenset(), lambda: 7)
    health = {ref: status() for ref in around.eligibility}
    return situation(Past({}, {}), config, ids, health, around.hops, around.eligibility, 0.0)


@pytest.fixture
def now() -> Situation:
    return situation_of()


def rebalancer_of(tables: FakeTables) -> Rebalancer:
    plane = SimpleNamespace(
        tables=tables, keys=KEYS, clock=CLOCK, now_jiffies=lambda: JIFFIES, ifindex=2, program=None
    )
    return Rebalancer(plane)


def busy_tables(now: Situation, **flows: int) -> FakeTables:
    """So many busy flows of each backend."""
    tables = FakeTables()
    (service,) = now.config.services
    port = 4000
    for backend in service.backends:
        ident, count = now.ids.backend_id(service, backend), flows[backend.name]
        tables.backends["service"][ident] = now.ids.service_id(service)
        tables.backends["timeout_ticks"][ident] = 225
        for _ in range(count):
            port += 1
            record(
                tables, five("198.51.100.1", port), service=now.ids.service_id(service),
                salt=now.ids.salt(service), backend=ident, state=FlowState.ESTABLISHED,
                jiffies=JIFFIES, start=JIFFIES - 50 * CLOCK.hz,
            )  # fmt: skip
    return tables


def take(rebalancer: Rebalancer, now: Situation, tables: FakeTables, *times: float) -> None:
    found = survey.survey(tables, JIFFIES >> CLOCK.shift)
    for at in times:
        asyncio.run(rebalancer.take(now, found, at))


def test_a_lasting_skew_is_logged_once_with_the_hottest_flows(now: Situation):
    tables = busy_tables(now, a=30, b=30)  # b has three times the weight of a
    rebalancer = rebalancer_of(tables)
    with capture_logs() as logs:
        take(rebalancer, now, tables, 0.0, LASTING_S, LASTING_S + 1, 2 * LASTING_S)
    assert rebalancer.skews["web"].value == 2.0
    (line,) = logs
    assert (line["service"], line["old"], line["new"]) == ("web", "even", "skewed")
    assert (line["backend"], line["skew"]) == ("web/a", 2.0)
    assert len(line["hottest"]) == 3
    assert line["hottest"][0].startswith("198.51.100.1:40")
    with capture_logs() as logs:
        take(rebalancer, now, busy_tables(now, a=1, b=1), 300.0, 300.0 + LASTING_S)
    assert [(one["old"], one["new"], one["backend"]) for one in logs] == [
        ("skewed", "even", "web/a")
    ]
    assert rebalancer.skews["web"] is None


def test_nothing_is_reset_unless_a_service_wants_it(now: Situation):
    tables = busy_tables(now, a=40, b=0)
    before = tables.flows.copy()
    rebalancer = rebalancer_of(tables)
    take(rebalancer, now, tables, 0.0, 10.0)
    assert (tables.flows == before).all()
    assert not rebalancer.resets


def test_where_it_is_wanted_busy_flows_stay_all_the_same():
    wanted = web(A, B, rebalance=Rebalance(rate_per_s=100, idle_s=30))
    now = situation_of(Config("lb", "eth0", tables=TABLES, services=(wanted,)))
    tables = busy_tables(now, a=40, b=0)
    rebalancer = rebalancer_of(tables)
    take(rebalancer, now, tables, 0.0, 10.0)
    assert not rebalancer.resets


class Closer:
    """Closes every flow; those in ``gone`` have given their place to others since."""

    def __init__(self) -> None:
        self.gone: set[int] = set()

    def close(self, flow: IdleFlow) -> Frame:
        return Frame(2, b"a RST for the backend")

    def is_left(self, flow: IdleFlow) -> bool:
        return flow.slot not in self.gone


class Sender:
    """What was sent, by slot: to the backend and to the client."""

    def __init__(self) -> None:
        self.clients: list[Address] = []

    def frame(self, ifindex: int, data: bytes) -> None:
        assert (ifindex, data) == (2, b"a RST for the backend")

    def packet(self, to: Address, data: bytes) -> None:
        self.clients.append(to)


def idle(slot: int) -> IdleFlow:
    view = FlowView("web", five(f"198.51.100.{slot}", 4000), "a", "established", 61.0, 40.0)
    return IdleFlow(slot, 1, view, seq=7, ack=9)


def telling() -> tuple[Rebalancer, Closer, Sender]:
    rebalancer, closer = rebalancer_of(FakeTables()), Closer()
    rebalancer._closer = closer  # type: ignore[assignment]
    rebalancer._budgets = {"web": Budget().refilled(100.0, 0.0)}
    return rebalancer, closer, Sender()


def test_both_ends_are_told_three_times_and_no_more():
    rebalancer, _, sender = telling()
    rebalancer._reset(sender, (idle(1), idle(2)))
    for _ in range(5):
        rebalancer._send_again(sender)
    told = Counter(str(client) for client in sender.clients)
    assert told == {"198.51.100.1": SEND_TIMES, "198.51.100.2": SEND_TIMES}
    assert rebalancer.resets == {BackendRef("web", "a"): 2}


def test_whoever_has_the_place_of_a_flow_now_is_told_nothing():
    rebalancer, closer, sender = telling()
    rebalancer._reset(sender, (idle(1), idle(2)))
    closer.gone.add(1)
    rebalancer._send_again(sender)
    assert [str(client) for client in sender.clients] == [
        "198.51.100.1", "198.51.100.2", "198.51.100.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("client", "requests", "words"),
    [
        ("198.51.100.1", None, "198.51.100.1:4000 open for 61 s, idle for 4 s"),
        ("2001:db8::c", FlowRequests(False, 9, None, "tls"),
         "[2001:db8::c]:4000 open for 61 s, idle for 4 s"),
        ("198.51.100.1", FlowRequests(True, 9000, 0.1, "plain"),
         "198.51.100.1:4000 open for 61 s, 9000 bytes wait"),
    ],
)  # fmt: skip
def test_a_hot_flow_is_told_in_few_words(client: str, requests: FlowRequests | None, words: str):
    flow = FlowView("web", five(client), "a", "established", 61.2, 4.1, requests=requests)
    assert flow_words(flow) == words
