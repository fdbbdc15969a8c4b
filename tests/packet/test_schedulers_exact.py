"""Schedulers, decision by decision, against what their words say: worked out from the ring and the
numbers in the tables, not by the code that chooses.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from ipaddress import IPv6Address, ip_address
from math import ceil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.dataplane import contents, flowhash, pins
from agent.model import Config, Scheduler, Tables
from tests.packet import harness
from tests.packet.frames import SYN, VIP4, VIP6, Segments, random_clients, tcp
from tests.packet.harness import Rig, Verdict, backend, service
from tests.packet.wires import Packet

WIDE = Tables(65_536, 4, 512, 4099)
SEGMENTS = Segments()
random_loads = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def many_backends() -> Iterator[harness.Dataplane]:
    """Room for more backends than are compared one by one."""
    harness.require_root()
    config = Config(harness.instance_name("wide"), "lo", tables=WIDE)
    dataplane = harness.load(config, harness.all_features())
    yield dataplane
    dataplane.tables.close()
    pins.remove(dataplane.pins)


@pytest.fixture
def wide(many_backends: harness.Dataplane) -> Iterator[Rig]:
    rig = Rig(many_backends)
    rig.config = replace(rig.config, tables=WIDE)
    yield rig
    rig.reset()


@pytest.fixture
def on_cpu() -> Iterator[list[int]]:
    """The CPUs there are; the test may go from one to the other."""
    home = os.sched_getaffinity(0)
    yield sorted(home)
    os.sched_setaffinity(0, home)


def row(rig: Rig) -> np.void:
    """The service's row."""
    return next(row for slot, row in contents.service_rows(rig.tables) if not slot.is_mark)


def ring(rig: Rig) -> list[int]:
    """Backend ids of the service's ring, in order."""
    entry = row(rig)
    first, slots = int(entry["ring_line"]), int(entry["ring_slots"])
    return [int(i) for i in rig.tables.rings[first:].reshape(-1)[:slots]]


def draws(rig: Rig, pick: int, count: int) -> list[int]:
    """The backend ids that so many draws name."""
    slots, found = ring(rig), []
    for _ in range(count):
        found.append(slots[flowhash.ring_slot(pick, len(slots))])
        pick = flowhash.pick_again(pick)
    return found


def chosen(rig: Rig, packet: Packet) -> int:
    """The id of the backend that a new flow gets."""
    done = rig.send(packet.frame())
    assert done.verdict == Verdict.TX
    return rig.backend_id(rig.name_of_mac(done.data[:6]))


def named(count: int, weights: list[int]) -> list:
    return [
        backend(f"b{n:03}", f"10.{n >> 8}.{n & 255}.1", weights[n % len(weights)])
        for n in range(count)
    ]


# -- least-conn


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
    for member in members:
        held = wide.load_of(member.name)["open"]
        assert held == wide.open_slots(member.name)


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
        assert took in drawn
        assert held[took] == min(held[drawn])
    assert max(wide.tables.backend_load["open"]) <= 12, "ten each is the mean"


# -- least-load

loads = st.fixed_dictionaries(
    {
        "open": st.integers(-3, 5000),
        "open_fix": st.integers(-50, 50),
        "waiting": st.integers(-100, 2**32),
        "waiting_fix": st.integers(-1000, 1000),
        "report_open": st.integers(0, 5000),
        "queue": st.integers(0, 2**20),
        "kappa": st.sampled_from([0, 128, 256, 1024]),
        "per_byte": st.sampled_from([0, 1, 167, 16_777, 2**24]),
        "weight": st.integers(1, 1000),
    }
)


def load_score(load: dict[str, int]) -> Fraction:
    """By the words of abi.h: (queue + kappa * max(0, open - report_open) + waiting / beta + 1)
    / weight.
    """
    grown = max(0, load["open"] + load["open_fix"] - load["report_open"])
    waiting = max(0, load["waiting"] + load["waiting_fix"])
    return (
        Fraction(load["queue"], 256)
        + Fraction(load["kappa"], 256) * grown
        + Fraction(waiting * load["per_byte"], 2**24)
        + 1
    ) / load["weight"]


@pytest.mark.parametrize("count", range(2, 9))
@settings(random_loads, max_examples=25)
@given(rows=st.lists(loads, min_size=6, max_size=6), port=st.integers(1, 65_535))
def test_least_load_takes_the_lowest_score_of_its_draws(rig: Rig, count: int, rows, port: int):
    rig.reset()
    rig.serve(service(*named(6, [100]), scheduler=Scheduler.LEAST_LOAD, draws=count))
    ids = [rig.backend_id(f"b{n:03}") for n in range(6)]
    for ident, load in zip(ids, rows, strict=True):
        for field, value in load.items():
            rig.tables.backend_load[field][ident] = value
        rig.tables.backend_load["inverse_weight"][ident] = round(2**20 / load["weight"])
    packet = Packet(sport=port)
    pick = flowhash.pick_hash(int(row(rig)["pick_seed"]), ip_address(packet.src), port, 80)
    scores = {i: load_score(load) for i, load in zip(ids, rows, strict=True)}
    drawn = draws(rig, pick, count)
    took = chosen(rig, packet)
    assert took in drawn
    assert scores[took] <= min(scores[i] for i in drawn) * Fraction(1001, 1000) + Fraction(1, 256)


def test_what_the_agent_writes_makes_a_byte_weigh_what_it_is_told_to(rig: Rig):
    rig.serve(service(backend("a", weight=10), backend("b", weight=1000),
                      scheduler=Scheduler.LEAST_LOAD, bytes_per_connection=400))  # fmt: skip
    for name, weight in (("a", 10), ("b", 1000)):
        held = rig.load_of(name)
        assert held["per_byte"] == round(2**24 / 400)
        assert (held["inverse_weight"], held["weight"]) == (round(2**20 / weight), weight)
        assert (held["kappa"], held["queue"], held["report_open"]) == (256, 0, 0)


# -- source


@pytest.mark.parametrize(
    ("vip", "bits", "client"),
    [(VIP4, 8, "198.51.100.7"), (VIP4, 20, "198.51.100.7"), (VIP4, 24, "198.51.100.7"),
     (VIP4, 31, "198.51.100.7"), (VIP4, 32, "198.51.100.7"), (VIP6, 32, "2001:db8:c::7"),
     (VIP6, 48, "2001:db8:c::7"), (VIP6, 64, "2001:db8:c::7"), (VIP6, 96, "2001:db8:c::7"),
     (VIP6, 127, "2001:db8:c::7"), (VIP6, 128, "2001:db8:c::7")],
)  # fmt: skip
def test_the_first_bits_of_the_client_decide_and_no_others(rig: Rig, vip, bits, client):
    rig.serve(
        service(*named(40, [100]), vip=vip, scheduler=Scheduler.SOURCE, source_bits=bits,
                source_bound=0)
    )  # fmt: skip
    home = int(ip_address(client))
    width = 32 if vip == VIP4 else 128
    make = ip_address if vip == VIP4 else IPv6Address

    def of(value: int, port: int) -> int:
        return chosen(rig, Packet(str(make(value)), vip, port))

    own = of(home, 1)
    assert all(of(home, port) == own for port in range(2, 20))
    beyond = [*range(width - bits)[-12:], *range(width - bits)[:12]]
    assert all(of(home ^ (1 << bit), 1) == own for bit in beyond)
    within = [width - bits + n for n in range(min(bits, 12))]
    assert any(of(home ^ (1 << bit), 1) != own for bit in within)


@random_loads
@given(
    is_open=st.lists(st.integers(0, 400), min_size=5, max_size=5),
    fix=st.lists(st.integers(-20, 20), min_size=5, max_size=5),
    weights=st.lists(st.integers(1, 1000), min_size=5, max_size=5),
    bound=st.sampled_from([1.0, 1.25, 1.5, 2.0, 10.0]),
    host=st.integers(1, 2**32 - 1),
)
def test_who_is_over_the_bound_is_passed_over_once(rig: Rig, is_open, fix, weights, bound, host):
    rig.reset()
    members = [backend(f"b{n:03}", f"10.0.{n}.1", w) for n, w in enumerate(weights)]
    rig.serve(service(*members, scheduler=Scheduler.SOURCE, source_bound=bound))
    ids = [rig.backend_id(m.name) for m in members]
    for ident, n, f in zip(ids, is_open, fix, strict=True):
        rig.tables.backend_load["open"][ident] = n
        rig.tables.backend_load["open_fix"][ident] = f
    whole = rig.service_id()
    rig.tables.service_load["open"][whole] = sum(is_open)
    rig.tables.service_load["open_fix"][whole] = sum(fix)
    assert rig.tables.service_load["weight"][whole] == sum(weights)
    client = str(ip_address(host))
    pick = flowhash.source_hash(int(row(rig)["pick_seed"]), ip_address(host), 32)
    first, second = draws(rig, pick, 2)
    own = ids.index(first)
    total = max(0, sum(is_open) + sum(fix))
    share = Fraction(bound) * (total + 1) * weights[own] / sum(weights)
    is_over = max(0, is_open[own] + fix[own]) + 1 > ceil(share)
    assert chosen(rig, Packet(client)) == (second if is_over else first)


def test_below_the_bound_a_client_keeps_its_backend(rig: Rig):
    rig.serve(service(*named(4, [100]), scheduler=Scheduler.SOURCE, source_bound=1.25))
    first = {}
    for address, port in random_clients(6, 200):
        first[address] = rig.backend_of(tcp(client=str(address), client_port=port))
    for name in (f"b{n:03}" for n in range(4)):
        rig.tables.backend_load["open_fix"][rig.backend_id(name)] -= 40
    again = {a: rig.backend_of(tcp(client=str(a), client_port=9)) for a in first}
    moved = [a for a in first if first[a] != again[a]]
    seed = int(row(rig)["pick_seed"])
    for address in moved:
        pick = flowhash.source_hash(seed, address, 32)
        own, other = draws(rig, pick, 2)
        assert rig.backend_id(again[address]) == own, "it comes back as soon as there is room"
        assert rig.backend_id(first[address]) == other
    assert len(moved) < 50


# -- round-robin


@pytest.mark.parametrize("weights", [[100, 100, 100], [500, 100, 100], [7, 3, 1], [1000, 1]])
def test_a_cycle_has_every_backend_as_often_as_its_weight_says(rig: Rig, on_cpu, weights):
    os.sched_setaffinity(0, {on_cpu[0]})
    rig.serve(service(*named(len(weights), weights), scheduler=Scheduler.ROUND_ROBIN))
    order = ring(rig)
    cycle = Counter(order)
    found = [chosen(rig, Packet(sport=n)) for n in range(1, 2 * len(order) + 1)]
    start = on_cpu[0] * len(order) // (rig.dataplane.size.rows - 1)
    assert found == [order[(start + n) % len(order)] for n in range(2 * len(order))]
    assert Counter(found[: len(order)]) == cycle
    by_weight = [cycle[rig.backend_id(f"b{n:03}")] for n in range(len(weights))]
    shares = [Fraction(n, len(order)) for n in by_weight]
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(weight, sum(weights))) <= Fraction(1, len(order))


def test_each_cpu_has_a_turn_of_its_own(rig: Rig, on_cpu):
    if len(on_cpu) < 2:
        pytest.skip("one CPU")
    rig.serve(service(*named(10, [100]), scheduler=Scheduler.ROUND_ROBIN))
    order, found = ring(rig), {}
    for cpu in on_cpu[:2]:
        os.sched_setaffinity(0, {cpu})
        found[cpu] = [chosen(rig, Packet(sport=1000 * (cpu + 1) + n)) for n in range(len(order))]
    assert all(Counter(each) == Counter(order) for each in found.values())
    assert len({each[0] for each in found.values()}) == 2, "they begin far from each other"


def test_a_turn_that_falls_on_one_that_is_gone_goes_to_another(rig: Rig):
    rig.serve(service(*named(4, [100]), scheduler=Scheduler.ROUND_ROBIN))
    rig.make_unusable("b001")
    gone = rig.backend_id("b001")
    found = Counter(chosen(rig, Packet(sport=n)) for n in range(1, 401))
    assert gone not in found
    assert min(found.values()) >= 80
