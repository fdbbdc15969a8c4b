"""The watch over sources, on plain arrays: what it sees in the flow table, logs and blocks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from ipaddress import ip_network
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from agent.dataplane.abi import FlowState
from agent.dataplane.flows import Since, crowds, names_of
from agent.detecting import Detecting
from agent.errors import RequestError
from agent.model import Address, Detect, Forward, Network, Tables
from agent.state.blocks import Block
from agent.state.situation import Situation
from agent.state.threats import FEWEST_SOURCES, LEARN_S, Sign, Watch
from tests.unit.dataplane.fakes import CLOCK, KEYS, FakeTables, five, record
from tests.unit.state.world import A, B, all_up, web

NOW = 1_000_000  # jiffies, 250 a second
SIZE = Tables(flows=8192, services=8, backends=32, ring_slots=101)
ATTACKER = ip_network("203.0.113.66/32")


def situation_of(detect: Detect = Detect.LOG, trusted: tuple[str, ...] = ()) -> Situation:
    return all_up(web(A, B, forward=Forward.NAT, detect=detect, trusted=trusted))


class World:
    """A flow table with some sources, and everybody whom the watch has blocked."""

    def __init__(self, situation: Situation) -> None:
        self.situation, self.tables, self.jiffies = situation, FakeTables(SIZE), NOW
        self.blocks: dict[Network, Block] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.refusal = ""
        self.port = 1000
        plane = SimpleNamespace(
            tables=self.tables, keys=KEYS, clock=CLOCK, now_jiffies=lambda: self.jiffies
        )
        self.serves = True
        self.detecting = Detecting(
            plane, lambda _service: self.serves, lambda: self.blocks, self._lists_of, self._block
        )
        began = time.monotonic() - LEARN_S
        self.detecting._watch = Watch(begun_s={"web": began}, at_s=time.monotonic())
        for last in range(FEWEST_SOURCES + 5):
            self.flows(f"198.51.100.{last}", 2)

    def _lists_of(self, address: Address) -> tuple[str, ...]:
        return self.lists.get(str(address), ())

    async def _block(self, new: tuple[Block, ...]) -> None:
        if self.refusal:
            raise RequestError(self.refusal)
        self.blocks |= {each.prefix: each for each in new}

    def flows(
        self,
        client: str,
        many: int,
        state: FlowState = FlowState.ESTABLISHED,
        age_s: float = 60,
        at: int = 2,
    ) -> None:
        """So many flows, in turn at so many backends."""
        service = self.situation.config.services[0]
        for number in range(many):
            self.port += 1
            backend = service.backends[number % at]
            record(
                self.tables, five(client, self.port),
                service=self.situation.ids.service_id(service),
                salt=self.situation.ids.salt(service),
                backend=self.situation.ids.backend_id(service, backend),
                state=state, jiffies=self.jiffies, start=self.jiffies - round(age_s * CLOCK.hz),
            )  # fmt: skip

    def look(self, times: int = 1, between_s: float = 2) -> list[dict]:
        """Look so many times; the log lines."""
        with capture_logs() as lines:
            for _ in range(times):
                asyncio.run(self.detecting._look(self.situation))
                self.jiffies += round(between_s * CLOCK.hz)
        return lines

    def seen(self) -> dict[Sign, float]:
        """The values of the attacker, after a first look two seconds ago."""
        since = Since(self.jiffies, CLOCK.hz, self.jiffies - 2 * CLOCK.hz)
        found = crowds(self.tables, names_of(self.situation), KEYS, since)["web"]
        return next((dict(s.values) for s in found.suspects if s.source == ATTACKER), {})

    @property
    def threats(self):
        return self.detecting.view({each.name: each for each in self.situation.config.services})


@pytest.mark.parametrize(
    ("many", "state", "age_s", "sign", "value"),
    [
        (150, FlowState.ESTABLISHED, 60, Sign.OPEN, 150),
        (150, FlowState.CLOSING, 1, Sign.NEW, 75),
        (150, FlowState.ACKED, 6, Sign.UNUSED, 150),
        (150, FlowState.ESTABLISHED_AWAITING, 30, Sign.SLOW, 75),
    ],
)
def test_what_a_source_has(many, state, age_s, sign, value) -> None:
    world = World(situation_of())
    world.flows("203.0.113.66", many, state, age_s)
    seen = world.seen()
    assert seen[sign] == value
    others = {Sign.NEW, Sign.UNUSED, Sign.SLOW} - {sign}
    assert not any(seen[other] for other in others)


@pytest.mark.parametrize(
    ("state", "age_s"), [(FlowState.ACKED, 4), (FlowState.ESTABLISHED_AWAITING, 19)]
)
def test_a_young_connection_is_neither_unused_nor_slow(state, age_s) -> None:
    world = World(situation_of())
    world.flows("203.0.113.66", 150, state, age_s)
    assert (world.seen()[Sign.UNUSED], world.seen()[Sign.SLOW]) == (0, 0)


def test_request_bytes_that_wait_are_seen() -> None:
    world = World(situation_of())
    world.flows("203.0.113.66", 40, FlowState.ESTABLISHED_AWAITING)
    world.tables.flows_warm["waiting"] = 100_000
    assert world.seen()[Sign.WAITING] == 2_000_000


def test_what_waits_at_one_server_alone_is_that_servers_fault() -> None:
    world = World(situation_of())
    world.flows("203.0.113.66", 150, FlowState.ESTABLISHED_AWAITING, at=1)
    world.flows("203.0.113.66", 10, FlowState.ESTABLISHED_AWAITING, at=2)
    world.tables.flows_warm["waiting"] = 100_000
    seen = world.seen()
    assert (seen[Sign.OPEN], seen[Sign.SLOW], seen[Sign.WAITING]) == (160, 5, 500_000)


def test_where_the_service_is_slow_its_largest_client_is_no_threat() -> None:
    """Each of the others has one slow request, so nothing apart from one server."""
    world = World(situation_of())
    for last in range(FEWEST_SOURCES + 5):
        world.flows(f"198.51.100.{last}", 1, FlowState.ESTABLISHED_AWAITING, 30)
    world.flows("203.0.113.66", 90, FlowState.ESTABLISHED_AWAITING, 30)
    assert world.seen()[Sign.SLOW] == 45
    assert not world.look(4)


def test_of_ipv6_half_an_address_is_one_source() -> None:
    world = World(situation_of())
    for last in range(150):
        world.flows(f"2001:db8:66::{last:x}", 1)
    since = Since(NOW, CLOCK.hz)
    found = crowds(world.tables, names_of(world.situation), KEYS, since)["web"]
    assert [str(each.source) for each in found.suspects] == ["2001:db8:66::/64"]


def test_a_threat_is_logged_once_and_said_to_be_over() -> None:
    world = World(situation_of())
    world.flows("203.0.113.66", 150)
    (line,) = world.look(6)
    assert line["event"] == "a source behaves unlike all others"
    assert (line["source"], line["sign"], line["action"]) == (str(ATTACKER), "open-flows", "log")
    assert [each.threat.source for each in world.threats] == [ATTACKER]
    assert not world.blocks
    world.tables.flows[:] = 0
    (line,) = world.look(6)
    assert line["event"] == "a source behaves like the others again"
    assert not world.threats


def test_flows_that_were_there_before_the_agent_are_not_new() -> None:
    world = World(situation_of())
    world.flows("203.0.113.66", 99, age_s=1)
    world.look(1)
    assert not world.detecting._watch.looks[0]


def test_a_source_is_blocked_for_ten_minutes_where_the_service_wants_it() -> None:
    world = World(situation_of(Detect.BLOCK))
    world.flows("203.0.113.66", 150)
    lines = world.look(3)
    (block,) = world.blocks.values()
    assert block.prefix == ATTACKER
    assert block.until - block.since == 600
    assert block.why.startswith("detected: web: 150 open flows; the median of 25 other")
    assert [line["event"] for line in lines][-1] == "blocked a source"
    assert world.detecting.blocked_total == 1
    world.look(3)
    assert world.detecting.blocked_total == 1


def test_who_is_unblocked_at_once_stays_so_unless_he_goes_on() -> None:
    world = World(situation_of(Detect.BLOCK))
    world.flows("203.0.113.66", 150)
    world.look(3)
    assert world.blocks
    world.blocks.clear()
    held = world.tables.flows.copy()
    his = world.tables.flows_cold["saddr"][:, 0] == int(ATTACKER.network_address)
    world.tables.flows[his] = 0  # as the block has ended them
    world.look(2)
    assert world.threats
    assert not world.blocks
    world.tables.flows[:] = held
    world.look(1)
    assert [*world.blocks] == [ATTACKER]


def test_no_more_than_a_share_of_the_sources_is_blocked_however_many_there_are() -> None:
    world = World(situation_of(Detect.BLOCK))
    for last in (66, 67, 68):
        world.flows(f"203.0.113.{last}", 150 + last)
    world.look(4)
    assert [str(each) for each in world.blocks] == ["203.0.113.68/32"]
    assert len(world.threats) == 3


def test_of_many_blocked_sources_only_some_are_named() -> None:
    world = World(situation_of(Detect.BLOCK))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("agent.detecting._NAMED", 1)
        patched.setattr("agent.state.threats.MOST_SHARE", 0.5)
        for last in (66, 67, 68):
            world.flows(f"203.0.113.{last}", 150)
        lines = world.look(3)
    assert [line["event"] for line in lines][-2:] == ["blocked a source", "blocked more sources"]
    assert lines[-1]["sources"] == 2
    assert world.detecting.blocked_total == 3


def test_who_is_on_a_trusted_list_is_no_threat() -> None:
    world = World(situation_of(Detect.BLOCK, trusted=("office",)))
    world.lists["203.0.113.66"] = ("drop", "office")
    world.flows("203.0.113.66", 150)
    assert not world.look(4)
    assert not world.blocks


def test_a_block_that_is_refused_is_said_once_and_tried_again() -> None:
    world = World(situation_of(Detect.BLOCK))
    world.flows("203.0.113.66", 150)
    world.refusal = "there is no room"
    lines = world.look(6)
    assert [line["event"] for line in lines].count("threats are not blocked") == 1
    world.refusal = ""
    world.look(1)
    assert [*world.blocks] == [ATTACKER]


def test_where_it_is_off_nobody_looks() -> None:
    world = World(situation_of())
    world.flows("203.0.113.66", 150)
    world.look(4)
    assert world.threats
    service = replace(world.situation.config.services[0], detect=Detect.OFF)
    config = replace(world.situation.config, services=(service,))
    world.situation = replace(world.situation, config=config)
    assert not world.look(1)
    assert not world.threats
    assert asyncio.run(world.detecting._look(world.situation)) == 0.0


def test_after_a_takeover_it_is_learned_anew_what_sources_usually_have() -> None:
    """A backup knows the flows of the largest customers by flow sync, and nothing of their past."""
    world = World(situation_of(Detect.BLOCK))
    world.flows("203.0.113.66", 150)
    world.serves = False
    assert not world.look(6)
    assert not world.threats
    world.serves = True
    assert not world.look(6)
    assert not world.blocks


def test_of_many_threats_only_some_are_named() -> None:
    world = World(situation_of())
    for last in range(12):
        world.flows(f"203.0.113.{last}", 150)
    lines = world.look(3)
    assert len(lines) == 11
    assert lines[-1] == {
        "event": "more sources behave unlike all others",
        "log_level": "warning",
        "sources": 2,
    }
