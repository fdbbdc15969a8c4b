"""The simulator: the same every time, nothing lost, and the scheduler's order on a real load."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bench.ai import cases, fleet, trace
from bench.ai.balancers import LeastLoad, WeightedMaglev
from bench.ai.cases import CASES, Case
from bench.ai.contenders import COMPLETE, REFERENCE, Contender, everybody
from bench.ai.simulator import Scenario, percentiles, simulate

LENGTHS = trace.generated(4000)
SERVERS = fleet.servers(8)
WEIGHTS = fleet.right_weights(SERVERS, LENGTHS)
BY_NAME = {case.name: case for case in CASES}


def scenario(name: str, count: int = 1500) -> Scenario:
    return cases.scenario(BY_NAME[name], SERVERS, LENGTHS, count, seed=3)


def on_bytes(_number: int) -> LeastLoad:
    return LeastLoad(WEIGHTS, draws=4, bytes_per_connection=250)


def maglev(_number: int) -> WeightedMaglev:
    return WeightedMaglev(WEIGHTS)


def test_waiting_bytes_beat_the_hash() -> None:
    load = scenario("trace", 4000)
    by_hash, by_bytes = (percentiles(simulate(load, make).counted) for make in (maglev, on_bytes))
    assert by_bytes[1] < 0.6 * by_hash[1]
    assert by_bytes[2] < 0.8 * by_hash[2]


def test_a_run_is_the_same_every_time() -> None:
    one, other = (simulate(scenario("bypass"), on_bytes) for _ in range(2))
    assert np.array_equal(one.first_token_s, other.first_token_s)
    assert np.array_equal(one.server, other.server)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_request_is_answered_and_every_connection_given_back(case: Case) -> None:
    held: list[LeastLoad] = []

    def make(number: int) -> LeastLoad:
        held.append(on_bytes(number))
        return held[-1]

    outcome = simulate(scenario(case.name, 400), make)
    assert not np.isnan(outcome.first_token_s).any()
    assert (outcome.first_token_s > 0).all()
    assert outcome.bypassed.mean() == pytest.approx(case.bypass, abs=0.1)
    waiting = [int(row["waiting"]) for row in held[0]._row]
    assert waiting == [0] * len(WEIGHTS)
    if not case.keeps_connections:
        assert [int(row["open"]) for row in held[0]._row] == [0] * len(WEIGHTS)


def test_kept_connections_are_used_again() -> None:
    opened: list[int] = []

    class Counting(WeightedMaglev):
        def opened(self, server: int) -> None:
            super().opened(server)
            opened.append(server)

    load = replace(scenario("trace", 400), clients=10)
    simulate(load, lambda _: Counting(WEIGHTS))
    assert len(opened) < 300
    opened.clear()
    simulate(scenario("trace", 400), lambda _: Counting(WEIGHTS))
    assert len(opened) == 400


def test_a_throttled_server_is_slower_only_then() -> None:
    load = scenario("throttled", 1200)
    slow = load.slowdown
    assert slow is not None
    outcome = simulate(load, maglev)
    there = outcome.server == slow.server
    at_s = np.array([request.at_s for request in load.requests])
    before = np.median(outcome.first_token_s[there & (at_s < slow.from_s)])
    during = np.median(outcome.first_token_s[there & (at_s > slow.from_s) & (at_s < slow.until_s)])
    assert during > 3 * before


def test_each_balancer_sees_its_own_share_alone() -> None:
    seen: dict[int, int] = {}

    class Counting(WeightedMaglev):
        def __init__(self, number: int) -> None:
            super().__init__(WEIGHTS)
            self.number = number

        def opened(self, server: int) -> None:
            super().opened(server)
            seen[self.number] = seen.get(self.number, 0) + 1

    simulate(replace(scenario("trace", 400), balancers=4), Counting)
    assert sum(seen.values()) == 400
    assert all(60 < share < 140 for share in seen.values())


@pytest.mark.parametrize("contender", everybody(), ids=lambda contender: contender.name)
def test_every_contender_can_be_simulated(contender: Contender) -> None:
    outcome = simulate(scenario("lost", 150), partial(contender.make, WEIGHTS, 1.0))
    assert not np.isnan(outcome.first_token_s).any()


def test_the_names_that_are_judged_exist() -> None:
    names = [contender.name for contender in everybody()]
    assert {REFERENCE, COMPLETE} <= set(names)
    assert len(names) == len(set(names))


def test_homes_keep_conversations_where_their_caches_are() -> None:
    """Servers with prefix caches, conversations whose prompts grow."""
    what = trace.Conversations(250, 1.0, turns=8, think_s=3, system_tokens=1000)
    caching = tuple(replace(server, prefix_tokens=100_000) for server in fleet.servers(4))
    load = Scenario(caching, trace.conversations(LENGTHS, what, seed=4), seed=4)

    def by(has_homes: bool) -> tuple[float, float]:
        outcome = simulate(
            load,
            lambda _: LeastLoad((100,) * 4, draws=8, bytes_per_connection=250, has_homes=has_homes),
        )
        return float(outcome.counted.mean()), outcome.cached_share

    (without_s, little), (with_s, much) = by(False), by(True)
    assert much > little + 0.2
    assert with_s < 0.7 * without_s
