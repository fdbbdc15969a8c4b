"""round-robin: the ring in its order, each CPU in a turn of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import pytest

from agent.model import Scheduler
from tests.packet.harness import Rig, backend, service
from tests.packet.scheduling import chosen, named, opened, ring
from tests.packet.wires import Packet


@pytest.fixture
def on_cpu() -> Iterator[list[int]]:
    """The CPUs there are; the test may go from one to the other."""
    home = os.sched_getaffinity(0)
    yield sorted(home)
    os.sched_setaffinity(0, home)


@pytest.mark.usefixtures("one_cpu")
def test_round_robin_goes_through_the_round_in_its_order(rig: Rig):
    members = backend("a", "10.0.0.1", 500), backend("b", "10.0.0.2"), backend("c", "10.0.0.3")
    rig.serve(service(*members, scheduler=Scheduler.ROUND_ROBIN))
    found = "".join(opened(rig, 70))
    assert "aabacaa" * 8 in found


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
