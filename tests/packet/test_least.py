"""least-conn and least-load, decision by decision, against what their words say: worked out from
the ring and the numbers in the tables, not by the code that chooses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from math import exp, sqrt

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.dataplane import flowhash, pins, score, survey
from agent.model import Config, Scheduler, Tables
from tests.examples import examples
from tests.packet import harness
from tests.packet.frames import ACK, FIN, RST, SYN, random_clients
from tests.packet.harness import Rig, backend, service
from tests.packet.scheduling import (
    SEGMENTS,
    chance,
    chosen,
    draws,
    load_rows,
    load_score,
    loads,
    named,
    opened,
    picks_from,
    put_loads,
    ring,
    row,
    share,
)
from tests.packet.wires import Packet

WIDE = Tables(65_536, 4, 512, 4099)


@pytest.fixture(scope="module")
def many_backends() -> Iterator[harness.Dataplane]:
    """Room for more backends than are compared one by one."""
    harness.require_root()
    config = Config(harness.instance_name("wide"), "lo", tables=WIDE)
    needing = (service(scheduler=Scheduler.LEAST_CONN),)  # a small program compiles fast
    dataplane = harness.load(config, needing, keys=harness.KEYS)
    yield dataplane
    dataplane.tables.close()
    pins.remove(dataplane.pins)


@pytest.fixture
def wide(many_backends: harness.Dataplane) -> Iterator[Rig]:
    rig = Rig(many_backends)
    rig.config = replace(rig.config, tables=WIDE)
    yield rig
    rig.reset()


# -- least-conn


def test_least_conn_keeps_open_flows_even_by_weight(rig: Rig):
    rig.serve(service(backend("a"), backend("b", weight=300), scheduler=Scheduler.LEAST_CONN))
    # A third one in a bucket would push out the first.
    clients = rig.clients_in_buckets(range(400), 1)
    for address, port in clients:
        rig.send(SEGMENTS.frame(address.packed, port, SYN))
        rig.send(SEGMENTS.frame(address.packed, port, ACK))
    assert loads(rig, "a", "b") == [100, 300]
    for address, port in clients:
        rig.send(SEGMENTS.frame(address.packed, port, FIN | ACK))
    assert loads(rig, "a", "b") == [0, 0]
    assert [rig.counts(n).closed for n in "ab"] == [100, 300]


def test_least_conn_gives_to_whoever_has_fewest(rig: Rig):
    rig.serve(service(*(backend(n) for n in "abc"), scheduler=Scheduler.LEAST_CONN))
    first = opened(rig, 30)
    for (address, port), name in zip(random_clients(1, 30), first, strict=True):
        if name == "b":
            rig.send(SEGMENTS.frame(address.packed, port, FIN | ACK))
    assert set(opened(rig, 10, seed=2)) == {"b"}
    assert loads(rig, *"abc") == [10, 10, 10]


@pytest.mark.parametrize(
    ("count", "weights", "flows"),
    [(1, [100], 5), (3, [100], 300), (3, [1, 100, 1000], 600), (33, [10, 20], 400),
     (255, [100], 600), (256, [100, 50], 700)],
)  # fmt: skip
def test_least_conn_takes_the_fewest_by_weight_every_time(wide: Rig, count, weights, flows):
    members = named(count, weights)
    wide.serve(service(*members, scheduler=Scheduler.LEAST_CONN))
    assert sorted(ring(wide)) == sorted(wide.backend_id(m.name) for m in members)
    weight = {wide.backend_id(m.name): m.weight for m in members}
    for address, port in random_clients(3, flows):
        held = wide.tables.backend_load["open"].copy()
        done = wide.send(SEGMENTS.frame(address.packed, port, SYN))
        took = wide.backend_id(wide.name_of_mac(done.data[:6]))
        scores = {i: (int(held[i]) + 1) * round(2**20 / weight[i]) for i in weight}
        assert scores[took] == min(scores.values())
        wide.send(SEGMENTS.frame(address.packed, port, ACK))
    for member in members:
        held = wide.load_of(member.name)["open"]
        assert held == wide.open_slots(member.name)


def test_least_conn_compares_hundreds_of_backends(rig: Rig):
    names = [f"b{n:03}" for n in range(250)]
    members = [backend(name, f"10.2.{n}.1") for n, name in enumerate(names)]
    rig.serve(service(*members, scheduler=Scheduler.LEAST_CONN))
    opened(rig, 2500)
    found = loads(rig, *names)
    assert max(found) - min(found) <= 1, "all of 250 are compared"


def test_equals_take_turns_by_the_flow(wide: Rig):
    """Connections that end at once must not all go to one backend."""
    wide.serve(service(*named(64, [100]), scheduler=Scheduler.LEAST_CONN))
    found: Counter[str] = Counter()
    for address, port in random_clients(4, 1280):
        done = wide.send(SEGMENTS.frame(address.packed, port, SYN))
        found[wide.name_of_mac(done.data[:6])] += 1
        wide.send(SEGMENTS.frame(address.packed, port, 4))
    assert len(found) == 64
    assert max(found.values()) < 3 * 1280 / 64


def test_in_a_flood_first_packets_of_strangers_count_for_next_to_nothing(wide: Rig):
    """Whichever backend more of them happen to go to."""
    wide.serve(service(*named(2, [100]), scheduler=Scheduler.LEAST_CONN))
    first, second = (wide.tables.backend_load[wide.backend_id(f"b{n:03}")] for n in range(2))
    for load, others, embryonic in ((first, 80, 170_600), (second, 90, 170_000)):
        load["open"], load["embryonic"] = others + embryonic, embryonic
    assert (score.counted(first), score.counted(second)) == (80 + 25, 90 + 26)
    assert set(opened(wide, 9)) == {"b000"}
    first["embryonic"] -= 600  # they were clients: each of them counts
    assert set(opened(wide, 500, seed=2)) == {"b001"}


@pytest.mark.parametrize("scheduler", [Scheduler.LEAST_CONN, Scheduler.LEAST_LOAD])
def test_a_burst_is_spread_before_any_of_it_has_gone_on(wide: Rig, scheduler: Scheduler):
    """However many come within a round trip, and though one backend has more of others."""
    members = named(3, [100])
    wide.serve(service(*members, scheduler=scheduler))
    wide.tables.backend_load["open"][wide.backend_id("b000")] = 3
    found: Counter[str] = Counter()
    for address, port in random_clients(9, 600):
        done = wide.send(SEGMENTS.frame(address.packed, port, SYN))
        found[wide.name_of_mac(done.data[:6])] += 1
    assert min(found.values()) > 150, found


def test_who_goes_on_or_is_gone_is_embryonic_no_more(rig: Rig):
    rig.serve(service(backend("a"), scheduler=Scheduler.LEAST_CONN))
    clients = rig.clients_in_buckets(range(40), 1)
    for address, port in clients:
        rig.send(SEGMENTS.frame(address.packed, port, SYN))
    assert sums(rig, "a") == (40, 40)
    for address, port in clients[:10]:
        rig.send(SEGMENTS.frame(address.packed, port, ACK))
    assert sums(rig, "a") == (40, 30)
    for address, port in clients[5:15]:
        rig.send(SEGMENTS.frame(address.packed, port, RST))
    assert sums(rig, "a") == (30, 25)
    survey.sweep(rig.tables, rig.survey(later_ticks=9))
    assert sums(rig, "a") == (5, 0), "what the agent sweeps, too"


def sums(rig: Rig, name: str) -> tuple[int, int]:
    """A backend's open flows, and the embryonic ones of them."""
    load = rig.load_of(name)
    return (
        int(load["open"] + load["open_fix"]),
        int(load["embryonic"] + load["embryonic_fix"]),
    )


def test_more_backends_than_can_be_looked_at_are_drawn_from(wide: Rig):
    members = named(300, [100])
    wide.serve(service(*members, scheduler=Scheduler.LEAST_CONN))
    assert len(ring(wide)) == 300
    seed = int(row(wide)["pick_seed"])
    for address, port in random_clients(5, 3000):
        drawn = draws(wide, flowhash.pick_hash(seed, address, port, 80), 16)
        held = wide.tables.backend_load["open"].copy()
        done = wide.send(SEGMENTS.frame(address.packed, port, SYN))
        took = wide.backend_id(wide.name_of_mac(done.data[:6]))
        wide.send(SEGMENTS.frame(address.packed, port, ACK))
        assert took in drawn
        assert held[took] == min(held[drawn])
    assert max(wide.tables.backend_load["open"]) <= 12, "ten each is the mean"


# -- least-load

LONG = 2**30  # jiffies


@pytest.mark.parametrize("count", range(2, 9))
@settings(
    deadline=None,
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.lists(load_rows, min_size=6, max_size=6), port=st.integers(1, 65_535))
def test_least_load_takes_the_lowest_score_of_its_draws(rig: Rig, count: int, rows, port: int):
    rig.reset()
    rig.serve(service(*named(6, [100]), scheduler=Scheduler.LEAST_LOAD, draws=count))
    ids = [rig.backend_id(f"b{n:03}") for n in range(6)]
    put_loads(rig, dict(zip(ids, rows, strict=True)))
    packet = Packet(sport=port)
    pick = flowhash.pick_hash(int(row(rig)["pick_seed"]), ip_address(packet.src), port, 80)
    drawn = draws(rig, pick, count)
    of_first = share(dict(zip(ids, rows, strict=True))[drawn[0]])
    scores = {i: load_score(load, of_first) for i, load in zip(ids, rows, strict=True)}
    picks = picks_from(pick, count)
    mirrored = score.as_of(rig.tables.backend_load, rig.dataplane.now_jiffies())
    took = chosen(rig, packet)
    assert took in drawn
    scale = dict(zip(ids, rows, strict=True))[drawn[0]]["weight"]
    with_chance = [
        (scores[i][0], float(scores[i][1]) + chance(each) / scale)
        for i, each in zip(drawn, picks, strict=True)
    ]
    best_tier, best = min(with_chance)
    own = min(found for i, found in zip(drawn, with_chance, strict=True) if i == took)
    assert own[0] == best_tier
    assert own[1] <= best * 1.06 + 0.15 / scale + 1 / 256
    exact = score.of_draws([mirrored[i] for i in drawn], picks)
    assert drawn[exact.index(min(exact))] == took, "what the agent shows is what decided"


def test_chance_is_exponential_with_mean_one():
    every = np.array([score.chance(pick) for pick in range(65_536)]) / 256
    assert every.mean() == pytest.approx(1, rel=0.005)
    for time in (0.1, 0.5, 1, 2, 4):
        assert (every > time).mean() == pytest.approx(exp(-time), rel=0.07, abs=0.02)


@pytest.mark.parametrize(
    ("weights", "count"),
    [({"a": 100, "b": 50}, 8), ({"a": 100, "b": 50}, 2), ({"a": 10, "b": 200, "c": 90}, 4)],
)
def test_without_load_shares_follow_the_weights(rig: Rig, weights: dict[str, int], count: int):
    """One request after the other, each gone before the next comes."""
    rig.serve(
        service(*(backend(name, weight=weight) for name, weight in weights.items()),
                scheduler=Scheduler.LEAST_LOAD, draws=count)
    )  # fmt: skip
    found: Counter[str] = Counter()
    for address, port in random_clients(7, 3000):
        done = rig.send(SEGMENTS.frame(address.packed, port, SYN))
        found[rig.name_of_mac(done.data[:6])] += 1
        rig.send(SEGMENTS.frame(address.packed, port, RST))
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        deviation = sqrt(3000 * share * (1 - share))
        assert abs(found[name] - 3000 * share) < 4 * deviation, found


def test_what_the_agent_writes_makes_a_byte_weigh_what_it_is_told_to(rig: Rig):
    rig.serve(service(backend("a", weight=10), backend("b", weight=1000),
                      scheduler=Scheduler.LEAST_LOAD, bytes_per_connection=400))  # fmt: skip
    for name, weight in (("a", 10), ("b", 1000)):
        held = rig.load_of(name)
        assert held["per_byte"] == round(2**24 / 400)
        assert (held["inverse_weight"], held["weight"]) == (round(2**20 / weight), weight)
        assert (held["kappa"], held["queue"], held["report_open"]) == (256, 0, 0)


@pytest.mark.parametrize("draws", [2, 8])
def test_least_load_prefers_the_idle_by_so_many_draws(rig: Rig, draws: int):
    rig.serve(
        service(*(backend(f"b{n}") for n in range(10)), scheduler=Scheduler.LEAST_LOAD, draws=draws)
    )
    for n in range(5):
        rig.tables.backend_load["open_fix"][rig.backend_id(f"b{n}")] = 1_000_000
    busy = sum(int(name[1:]) < 5 for name in opened(rig, 4000)) / 4000
    assert busy == pytest.approx(0.5**draws, rel=0.3), "all draws have to fall on a busy one"


def test_waiting_bytes_weigh_as_connections(rig: Rig):
    rig.serve(
        service(backend("a"), backend("b"), scheduler=Scheduler.LEAST_LOAD, draws=8,
                bytes_per_connection=1000)
    )  # fmt: skip
    rig.tables.backend_load["waiting_fix"][rig.backend_id("a")] = 50_000
    rig.tables.backend_load["open_fix"][rig.backend_id("b")] = 40
    first = Counter(opened(rig, 9))
    assert first["b"] > first["a"], "40 connections are less than 50,000 bytes"
    rig.tables.backend_load["open_fix"][rig.backend_id("b")] = 80
    second = Counter(opened(rig, 9, seed=2))
    assert second["a"] > second["b"]


# -- reports


def report(rig: Rig, name: str, left: int, **words: int) -> None:
    """An engine's report that counts for so many jiffies yet."""
    ident = rig.backend_id(name)
    for word, value in words.items():
        rig.tables.backend_load[word][ident] = value
    until = rig.dataplane.now_jiffies() + left
    rig.tables.backend_load["report_until"][ident] = until & 0xFFFFFFFF


def test_a_hot_backend_loses_against_one_that_is_not(rig: Rig):
    rig.serve(service(backend("a"), backend("b"), scheduler=Scheduler.LEAST_LOAD, draws=8))
    rig.tables.backend_load["open_fix"][rig.backend_id("b")] = 100_000
    report(rig, "a", LONG, is_hot=1)
    drawn = Counter(opened(rig, 400))
    assert drawn["a"] <= 10, "only where all eight draws fall on it"


def test_among_hot_backends_the_score_decides(rig: Rig):
    rig.serve(service(backend("a"), backend("b"), scheduler=Scheduler.LEAST_LOAD, draws=8))
    report(rig, "a", LONG, is_hot=1, queue=5000 * 256)
    report(rig, "b", LONG, is_hot=1, queue=2000 * 256)
    assert Counter(opened(rig, 400))["a"] <= 10


@pytest.mark.parametrize(("left", "busy"), [(LONG, "a"), (0, "b"), (-1, "b"), (-LONG, "b")])
def test_a_report_counts_until_it_is_old(rig: Rig, left: int, busy: str):
    rig.serve(service(backend("a"), backend("b"), scheduler=Scheduler.LEAST_LOAD, draws=8))
    rig.tables.backend_load["open_fix"][rig.backend_id("b")] = 1000
    report(rig, "a", left, queue=2000 * 256, is_hot=1)
    assert Counter(opened(rig, 400))[busy] <= 10


def test_connections_since_the_report_count_on_top(rig: Rig):
    rig.serve(service(backend("a"), backend("b"), scheduler=Scheduler.LEAST_LOAD, draws=8))
    rig.tables.backend_load["open_fix"][rig.backend_id("a")] = 5000
    report(rig, "a", LONG, queue=256, report_open=5000)
    rig.tables.backend_load["open_fix"][rig.backend_id("b")] = 1000
    assert Counter(opened(rig, 400))["b"] <= 10
    rig.tables.backend_load["open_fix"][rig.backend_id("a")] = 9000
    assert Counter(opened(rig, 400, seed=2))["a"] <= 10


@pytest.mark.parametrize(("left", "busy"), [(LONG, "a"), (-1, "b")])
def test_what_a_connection_since_the_report_weighs_is_old_with_it(rig: Rig, left: int, busy: str):
    rig.serve(service(backend("a"), backend("b"), scheduler=Scheduler.LEAST_LOAD, draws=8))
    rig.tables.backend_load["open_fix"][rig.backend_id("a")] = 1000
    rig.tables.backend_load["open_fix"][rig.backend_id("b")] = 3000
    report(rig, "a", left, kappa=10 * 256)
    assert Counter(opened(rig, 400))[busy] <= 10
