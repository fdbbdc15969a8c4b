"""Whom each scheduler would choose now, against ``bpf/select.h`` read by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from agent.dataplane import flowhash, score
from agent.dataplane.selection import HASH_DRAWS, LOAD, NEAR_DRAWS, SHOWN, TURN, Ring, select
from agent.model import BackendRef, Forward, Scheduler
from agent.rings import maglev, smooth
from agent.state import loads
from agent.state.tables import ServiceEntry, TableContents
from tests.unit.dataplane.fakes import FakeTables, five
from tests.unit.dataplane.test_contents import entry

SERVICE = 3
SEED = 99


def ring_of(
    scheduler: Scheduler,
    weights: dict[int, int],
    *,
    down: frozenset[int] = frozenset(),
    cpus: int = 2,
    ring: bytes | None = None,
    **fields: int,
) -> Ring:
    """A ring over backends with these weights, those of ``down`` not usable."""
    tables = FakeTables(cpus=cpus)
    members = tuple(maglev.Member(bytes([i]), w, i) for i, w in weights.items())
    if ring is None:
        match scheduler:
            case Scheduler.ROUND_ROBIN:
                ring = smooth.build(members, 101).tobytes()
            case Scheduler.LEAST_CONN:
                ring = smooth.each_once(members).tobytes()
            case _:
                ring = maglev.build(members, 101).tobytes()
    backends = {}
    for ident, weight in weights.items():
        backends[ident] = entry(f"10.0.0.{ident % 250}", usable=ident not in down, weight=weight)
        row = tables.backend_load[ident : ident + 1]
        effective = 0 if ident in down else weight
        row["weight"], row["inverse_weight"] = effective, loads.inverse_weight(effective)
        row["kappa"], row["per_byte"] = loads.KAPPA, loads.per_byte(1000)
    tables.service_load["weight"][SERVICE] = sum(weights.values())
    value = ServiceEntry(SERVICE, 77, Forward.DSR, scheduler, SEED, ring)
    return Ring(
        replace(value, **fields),
        TableContents(backends=backends),
        tables,
        lambda ident: BackendRef("web", f"b{ident}"),
        tables.backend_load,
    )


FLOW = five("198.51.100.7")


def drawn(ring: Ring, pick: int, number: int) -> list[int]:
    """Ids that so many draws name."""
    named = []
    for _ in range(number):
        named.append(ring.backend(flowhash.ring_slot(pick, ring.slots)))
        pick = flowhash.pick_again(pick)
    return named


def first_pick() -> int:
    return flowhash.pick_hash(SEED, FLOW.client, FLOW.client_port, FLOW.port)


def test_an_empty_ring_chooses_nobody():
    for scheduler in Scheduler:
        found = select(ring_of(scheduler, {5: 100}, ring=b""), FLOW)
        assert (found.chosen, found.draws, found.any_of) == (0, (), frozenset())


def test_maglev_takes_the_first_usable():
    ring = ring_of(Scheduler.MAGLEV, {5: 100, 6: 100})
    named = drawn(ring, first_pick(), HASH_DRAWS)
    assert select(ring, FLOW).chosen == named[0]
    other = next(ident for ident in named if ident != named[0])
    found = select(ring_of(Scheduler.MAGLEV, {5: 100, 6: 100}, down=frozenset({named[0]})), FLOW)
    assert (found.chosen, found.depends_on) == (other, None)
    assert len(found.draws) == named.index(other) + 1


def test_source_goes_by_the_clients_prefix_alone():
    ring = ring_of(Scheduler.SOURCE, dict.fromkeys(range(5, 13), 100), source_bits=24)
    chosen = {
        select(ring, five(f"198.51.100.{i}", client_port=1000 + i, port=80 + i)).chosen
        for i in range(20)
    }
    assert len(chosen) == 1
    elsewhere = {select(ring, five(f"198.51.{i}.1")).chosen for i in range(40)}
    assert len(elsewhere) > 3
    assert select(ring, FLOW).depends_on is None, "without a bound"


def test_a_bounded_source_passes_over_one_that_is_full_once():
    ring = ring_of(Scheduler.SOURCE, {5: 100, 6: 100}, source_bits=32, bound=320)
    pick = flowhash.source_hash(SEED, FLOW.client, 32)
    first, second = drawn(ring, pick, 2)
    assert select(ring, FLOW).chosen == first
    ring.tables.backend_load["open"][first] = 25
    ring.tables.service_load["open"][SERVICE] = 39
    # 1.25 * 40 / 2: at most 25
    found = select(ring, FLOW)
    assert (found.chosen, found.depends_on) == (second, LOAD)
    assert (found.draws[0].open, found.draws[0].most_open) == (25, 25)
    assert "25 open connections of at most 25, passed over once" in found.steps[1]
    ring.tables.backend_load["open"][first] = 24
    assert select(ring, FLOW).chosen == first


def test_round_robin_names_the_next_of_every_cpu():
    ring = ring_of(Scheduler.ROUND_ROBIN, {5: 100, 6: 100, 7: 200}, cpus=2)
    turns = ring.tables.service_count["turn"]
    turns[0, SERVICE], turns[1, SERVICE] = 10, 3
    places = (10, ring.slots // 2 + 3)
    expected = {ring.backend(place % ring.slots) for place in places}
    found = select(ring, FLOW)
    assert found.any_of == expected
    assert found.depends_on == TURN
    assert [draw.cpu for draw in found.draws] == [0, 1]
    assert "(CPU 0)" in found.steps[0]


def test_where_the_next_in_turn_is_not_usable_the_hash_decides():
    ring = ring_of(Scheduler.ROUND_ROBIN, {5: 100, 6: 100, 7: 100}, down=frozenset({5}), cpus=1)
    turns = ring.tables.service_count["turn"]
    turns[0, SERVICE] = next(slot for slot in range(3) if ring.backend(slot) == 5)
    found = select(ring, FLOW)
    named = drawn(ring, first_pick(), HASH_DRAWS)
    assert found.chosen == next(ident for ident in named if ident != 5)
    assert "where the next is not usable, one is drawn from the ring" in found.steps
    turns[0, SERVICE] += 1
    assert select(ring, FLOW).chosen == ring.backend(int(turns[0, SERVICE]) % 3)


def test_round_robin_of_many_cpus_shows_a_few():
    ring = ring_of(Scheduler.ROUND_ROBIN, {5: 100, 6: 100}, cpus=40)
    found = select(ring, FLOW)
    assert len(found.draws) == SHOWN
    assert "and 32 more" in found.steps[0]


def test_least_conn_takes_the_fewest_connections_by_weight():
    ring = ring_of(Scheduler.LEAST_CONN, {5: 100, 6: 100, 7: 200})
    ring.tables.backend_load["open"][[5, 6, 7]] = [3, 4, 6]
    found = select(ring, FLOW)  # 4/100, 5/100, 7/200
    assert (found.chosen, found.depends_on) == (7, LOAD)
    assert len(found.draws) == 3
    assert "lowest wins: b7 3.50, b5 4.00, b6 5.00" in found.steps[0]
    down = ring_of(Scheduler.LEAST_CONN, {5: 100, 6: 100, 7: 200}, down=frozenset({7}))
    down.tables.backend_load["open"][[5, 6, 7]] = [3, 4, 6]
    found = select(down, FLOW)
    assert found.chosen == 5
    assert found.steps[0].endswith("b5 4.00, b6 5.00, b7 not usable")


def test_of_equals_least_conn_takes_each_as_often():
    ring = ring_of(Scheduler.LEAST_CONN, dict.fromkeys(range(5, 9), 100))
    chosen = Counter(select(ring, five(f"198.51.{i >> 8}.{i & 255}")).chosen for i in range(400))
    assert set(chosen) == {5, 6, 7, 8}
    assert min(chosen.values()) > 70


def unusable_with_weight(scheduler: Scheduler, ident: int, **fields: int) -> Ring:
    """A backend that was marked as not usable, and whose weight was not taken yet."""
    ring = ring_of(scheduler, dict.fromkeys(range(5, 15), 100), **fields)
    held = replace(ring.contents.backends[ident], usable=False)
    contents = TableContents(backends=ring.contents.backends | {ident: held})
    ring.tables.backend_load["open"][5:15] = 9
    ring.tables.backend_load["open"][ident] = 0
    return replace(ring, contents=contents)


def test_where_the_lowest_is_not_usable_the_ring_is_drawn_from():
    ring = unusable_with_weight(Scheduler.LEAST_CONN, 7)
    named = drawn(ring, first_pick(), HASH_DRAWS)
    found = select(ring, FLOW)
    assert found.chosen == next(ident for ident in named if ident != 7)
    assert "b7 has the lowest, but is not usable" in found.steps[1]
    first = drawn(ring_of(Scheduler.LEAST_LOAD, dict.fromkeys(range(5, 15), 100)), first_pick(), 1)
    ring = unusable_with_weight(Scheduler.LEAST_LOAD, first[0], draws=4)
    named = drawn(ring, first_pick(), HASH_DRAWS)
    assert select(ring, FLOW).chosen == next(ident for ident in named if ident != first[0])


def test_least_conn_of_very_many_draws_sixteen():
    ids = np.arange(1, 301, dtype=np.uint16) % 20 + 5  # 300 slots
    ring = ring_of(Scheduler.LEAST_CONN, dict.fromkeys(range(5, 25), 100), ring=ids.tobytes())
    named = drawn(ring, first_pick(), 16)
    ring.tables.backend_load["open"][5:25] = np.arange(20)[::-1]
    best = min(named, key=lambda ident: int(ring.tables.backend_load["open"][ident]))
    found = select(ring, FLOW)
    assert (found.chosen, len(found.draws)) == (best, 16)


@pytest.mark.parametrize("draws", [2, 4, 8])
def test_least_load_compares_so_many_draws(draws: int):
    ring = ring_of(Scheduler.LEAST_LOAD, dict.fromkeys(range(5, 25), 100), draws=draws)
    load = ring.tables.backend_load
    load["open"][5:25] = 3
    load["waiting"][5:25] = np.arange(20, 0, -1) * 2000
    named = drawn(ring, first_pick(), draws)
    found = select(ring, FLOW)
    least = min(found.draws, key=lambda draw: draw.score or 0)
    assert f"b{found.chosen}" == least.backend
    assert [draw.backend for draw in found.draws] == [f"b{ident}" for ident in named]
    chance = score.chance(first_pick()) / 256
    shown = score.shown(Scheduler.LEAST_LOAD, load[named[0]])
    assert found.draws[0].score == pytest.approx(shown + chance, rel=1e-3)


def test_of_equals_least_load_takes_whom_chance_favours():
    ring = ring_of(Scheduler.LEAST_LOAD, dict.fromkeys(range(5, 25), 100), draws=4)
    picks = [first_pick()]
    while len(picks) < 4:
        picks.append(flowhash.pick_again(picks[-1]))
    named = drawn(ring, first_pick(), 4)
    chances = [score.chance(pick) for pick in picks]
    assert select(ring, FLOW).chosen == named[chances.index(min(chances))]


def test_where_no_draw_of_least_load_is_usable_it_goes_on():
    whole = dict.fromkeys(range(5, 25), 100)
    named = drawn(ring_of(Scheduler.LEAST_LOAD, whole, draws=2), first_pick(), 2 + HASH_DRAWS)
    ring = ring_of(Scheduler.LEAST_LOAD, whole, draws=2, down=frozenset(named[:2]))
    found = select(ring, FLOW)
    assert found.chosen == next(ident for ident in named[2:] if ident not in named[:2])
    assert found.steps[0].endswith("not usable")


def test_nobody_usable_is_nobody():
    whole = frozenset({5, 6})
    for scheduler in Scheduler:
        ring = ring_of(scheduler, {5: 100, 6: 100}, down=whole, draws=4, source_bits=32, bound=320)
        found = select(ring, FLOW)
        assert (found.chosen, found.any_of) == (0, frozenset())


def near(ring: Ring, ids: list[int], zone: str = "east") -> Ring:
    """The clients' zone has a ring of these."""
    return replace(ring, near=np.array(ids, dtype=np.uint16).tobytes(), zone=zone)


def test_the_ring_of_the_zone_is_drawn_from_and_then_the_services_own():
    whole = ring_of(Scheduler.MAGLEV, dict.fromkeys(range(1, 7), 100), down=frozenset({1, 2}))
    found = select(near(whole, [3, 4, 4]), FLOW)
    assert (found.chosen in (3, 4), len(found.draws)) == (True, 1)
    dry = select(near(whole, [1, 2, 1]), FLOW)
    assert dry.chosen in (3, 4, 5, 6)
    assert len(dry.draws) > NEAR_DRAWS
    assert {draw.backend for draw in dry.draws[:NEAR_DRAWS]} <= {"b1", "b2"}
    assert [step for step in dry.steps if "service's own ring" in step] == [
        "no draw from the ring of east found a usable backend: on to the service's own ring"
    ]


def test_turns_in_the_ring_of_a_zone_are_not_known():
    whole = ring_of(Scheduler.ROUND_ROBIN, dict.fromkeys(range(1, 7), 100))
    found = select(near(whole, [3, 4]), FLOW)
    assert (found.chosen, found.any_of, found.depends_on) == (0, frozenset({3, 4}), TURN)
    assert select(near(whole, [3]), FLOW).chosen == 3


def test_what_is_compared_is_of_one_part_of_a_ring_with_levels():
    """Of two levels, each half of the ring, one is idle; it draws nobody from the other."""
    ring = np.array([1] * 64 + [2] * 64, dtype=np.uint16).tobytes()
    halves = ring_of(Scheduler.LEAST_LOAD, {1: 100, 2: 100}, ring=ring, draws=8)
    halves.tables.backend_load["open"][1] = 50
    with_levels = replace(halves, entry=replace(halves.entry, zones=True))
    flows = [five("198.51.100.7", client_port=port) for port in range(1, 200)]
    assert {select(with_levels, flow).chosen for flow in flows} == {1, 2}
    assert Counter(select(halves, flow).chosen for flow in flows)[2] > 190
