"""Who gets the clients of a zone: Envoy's levels, with weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import AdminState, Backend, BackendState, Health, NoBackend, Service, Zone
from agent.state import zones
from agent.state.eligibility import Eligibility, eligibility, together
from tests.unit.state.world import hop, status, web

# https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority
# Percent of the endpoints that are healthy, and of the traffic; Envoy cuts to whole percents.
ENVOY = [
    ((100, 100), (100, 0)),
    ((72, 100), (100, 0)),
    ((71, 100), (99, 1)),
    ((50, 100), (70, 30)),
    ((25, 100), (35, 65)),
    ((0, 100), (0, 100)),
    ((72, 72), (100, 0)),
    ((71, 71), (99, 1)),
    ((50, 50), (70, 30)),
    ((25, 25), (50, 50)),
    ((100, 100, 100), (100, 0, 0)),
    ((72, 72, 100), (100, 0, 0)),
    ((71, 71, 100), (99, 1, 0)),
    ((50, 50, 100), (70, 30, 0)),
    ((25, 100, 100), (35, 65, 0)),
    ((25, 25, 100), (35, 35, 30)),
    ((25, 25, 20), (36, 36, 28)),
]
NET = ip_network("10.0.0.0/8")
HEALTHS = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8)


@pytest.mark.parametrize(("healthy", "traffic"), ENVOY)
def test_the_examples_that_envoy_publishes(healthy: Sequence[int], traffic: Sequence[int]):
    found = zones.shares([one / 100 for one in healthy])
    assert [100 * share for share in found] == pytest.approx(traffic, abs=1)


@given(HEALTHS)
def test_shares_come_to_one_unless_nobody_is_healthy(healthy: list[float]):
    found = zones.shares(healthy)
    assert all(0 <= share <= 1 for share in found)
    assert sum(found) == pytest.approx(1 if any(healthy) else 0)


@given(HEALTHS, st.data())
def test_a_level_that_gets_healthier_never_gets_less_nor_do_those_after_it_get_more(healthy, data):
    at = data.draw(st.integers(0, len(healthy) - 1))
    better = [*healthy]
    better[at] = data.draw(st.floats(healthy[at], 1, allow_subnormal=False))
    before, after = zones.shares(healthy), zones.shares(better)
    assert after[at] >= before[at] - 1e-9
    assert sum(after[at + 1 :]) <= sum(before[at + 1 :]) + 1e-9


@given(HEALTHS)
def test_nothing_spills_past_a_level_that_could_take_it(healthy: list[float]):
    left = 1.0
    for health, share in zip(healthy, zones.shares(healthy), strict=True):
        assert share >= min(left, 1.4 * health) - 1e-9
        left -= share


# -- levels


def at(name: str, number: int, **fields: object) -> Backend:
    return Backend(name, ip_address(f"10.0.0.{number}"), **fields)


def judged(service: Service, down: str = "", weights: dict[str, int] | None = None
           ) -> tuple[Eligibility, ...]:  # fmt: skip
    """All up but those named; ``weights``: effective ones that are not the configured."""
    alone = [
        eligibility(
            service, b, status(Health.DOWN if b.name in down.split() else Health.UP),
            hop(str(b.address)),
        )
        for b in service.backends
    ]  # fmt: skip
    return tuple(
        replace(one, weight=(weights or {}).get(b.name, one.weight))
        for b, one in zip(service.backends, together(service, alone), strict=True)
    )


def shares_of(service: Service, verdicts: Sequence[Eligibility], zone: str | None = None
              ) -> dict[str, float]:  # fmt: skip
    """Of each backend, by the weights that it has in the ring."""
    weights = {
        backend.name: weight
        for level in zones.drawn(zones.levels(service, verdicts, zone))
        for backend, weight in level
    }
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


MIXED = web(
    at("e0", 1, zone="east"),
    at("e1", 2, zone="east", weight=300),
    at("w0", 3, zone="west"),
    at("n0", 4),
    at("far", 5, zone="east", priority=1),
    at("last", 6, priority=2),
)


def test_levels_are_by_priority_and_within_it_the_own_zone_first():
    def names(zone: str | None) -> list[list[str]]:
        found = zones.levels(MIXED, judged(MIXED), zone)
        return [[backend.name for backend, _ in level.members] for level in found]

    assert names("east") == [["e0", "e1"], ["w0", "n0"], ["far"], ["last"]]
    assert names("west") == [["w0"], ["e0", "e1", "n0"], ["far"], ["last"]]
    assert names(None) == [["e0", "e1", "w0", "n0"], ["far"], ["last"]]
    assert names("elsewhere") == names(None)


def test_nothing_is_left_by_rounding():
    assert zones.shares([0.1 / 1.4, 0.2 / 1.4, 0.7 / 1.4, 1.0])[3] == 0.0


def test_a_healthy_level_keeps_its_weights_as_they_are():
    found = zones.drawn(zones.levels(MIXED, judged(MIXED), "east"))
    assert [[(b.name, weight) for b, weight in level] for level in found] == [
        [("e0", 100), ("e1", 300)]
    ]


def test_weights_count_not_backends():
    verdicts = judged(MIXED, down="e1")  # 100 of 400: 35 %
    assert shares_of(MIXED, verdicts, "east") == pytest.approx(
        {"e0": 0.35, "w0": 0.325, "n0": 0.325}, abs=1e-3
    )
    assert shares_of(MIXED, verdicts, "west") == {"w0": 1.0}


def test_less_capacity_spills_over_as_less_health_does():
    slow = judged(MIXED, weights={"e0": 50, "e1": 150})
    assert shares_of(MIXED, slow, "east") == pytest.approx(
        {"e0": 0.7 / 4, "e1": 0.7 * 3 / 4, "w0": 0.15, "n0": 0.15}, abs=1e-3
    )


@pytest.mark.parametrize("admin", [AdminState.DRAIN, AdminState.MAINTENANCE])
def test_what_the_operator_took_out_does_not_count_as_ill(admin: AdminState):
    members = (at("a", 1, zone="east"), at("b", 2, zone="east", admin=admin), at("c", 3))
    service = web(*members, at("z", 4, zone="east", weight=0))
    assert shares_of(service, judged(service), "east") == {"a": 1.0}
    assert shares_of(service, judged(service, down="a"), "east") == {"c": 1.0}


def test_backups_are_in_no_level_until_only_they_are_left():
    service = web(
        at("a", 1, zone="east"), at("b", 2), at("x", 3, backup=True), at("y", 4, backup=True,
        zone="east"),
    )  # fmt: skip
    assert shares_of(service, judged(service), "east") == {"a": 1.0}
    assert shares_of(service, judged(service, down="a"), "east") == {"b": 1.0}
    assert shares_of(service, judged(service, down="a b"), "east") == {"y": 1.0}
    assert shares_of(service, judged(service, down="a b y"), "east") == {"x": 1.0}
    assert shares_of(service, judged(service, down="a b x y"), "east") == {}


def test_who_fails_open_counts_as_healthy():
    service = replace(MIXED, no_backend=NoBackend.ANY)
    verdicts = judged(service, down="e0 e1 w0 n0 far last")
    assert shares_of(service, verdicts, "west") == {"w0": 1.0}


def test_what_its_gpus_keep_away_counts_as_ill_though_it_drains():
    verdicts = judged(MIXED)
    lost = replace(verdicts[1], usable=False, weight=0, state=BackendState.DRAIN)
    found = zones.levels(MIXED, (verdicts[0], lost, *verdicts[2:]), "east")
    assert found[0].health == pytest.approx(1 / 4)


def test_backends_that_are_checked_for_the_first_time_count_as_ill():
    verdicts = judged(MIXED)
    checking = replace(verdicts[1], usable=False, weight=0, state=BackendState.CHECKING)
    found = zones.levels(MIXED, (verdicts[0], checking, *verdicts[2:]), "east")
    assert found[0].health == pytest.approx(1 / 4)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([None, "east", "west"]),
                  st.integers(1, 1000), st.booleans()),
        min_size=1, max_size=12,
    ),
    st.sampled_from([None, "east", "west"]),
)  # fmt: skip
def test_rings_have_the_shares_of_the_levels(drawn, zone: str | None):
    members = [
        at(f"b{n}", n + 1, weight=weight, priority=priority, zone=place)
        for n, (priority, place, weight, _) in enumerate(drawn)
    ]
    service = web(*members)
    down = " ".join(f"b{n}" for n, (*_, is_up) in enumerate(drawn) if not is_up)
    verdicts = judged(service, down)
    found = zones.levels(service, verdicts, zone)
    got = shares_of(service, verdicts, zone)
    assert bool(got) == any(is_up for *_, is_up in drawn)
    for level in found:
        own = sum(got.get(backend.name, 0) for backend, _ in level.members)
        assert own == pytest.approx(level.share, abs=2e-3)
    assert got == pytest.approx(zones.expected(found), abs=2e-3)


# -- words, and who needs any of it


@pytest.mark.parametrize(
    ("down", "zone", "words"),
    [
        ("", "east", ""),
        ("e1", "east", "zone east: 65 % go to priority 0 of other zones: 1 of 2 healthy"),
        ("e0 e1 w0", "east",
         "zone east: 70 % go to priority 0 of other zones, 30 % go to priority 1: 0 of 2 healthy"),
        ("e1 w0", None, "clients of no zone: 53 % go to priority 1: 2 of 4 healthy"),
        ("e0 e1 w0 n0 far last", "east", ""),
    ],
)  # fmt: skip
def test_spill_over_in_words(down: str, zone: str | None, words: str):
    assert zones.spill_over(MIXED, judged(MIXED, down), zone) == words


def test_a_line_for_the_clients_of_each_zone_and_of_none():
    known = (Zone("west", (NET,)), Zone("east", (NET,)), Zone("far", (NET,)))
    assert zones.spills(known, MIXED, judged(MIXED)) == ()
    assert zones.spills(known, MIXED, judged(MIXED, "e1 w0")) == (
        "clients of no zone: 53 % go to priority 1: 2 of 4 healthy",
        "zone east: 65 % go to priority 0 of other zones: 1 of 2 healthy",
        "zone west: 56 % go to priority 0 of other zones, 44 % go to priority 1: 0 of 1 healthy",
    )


def test_spill_over_of_less_capacity_in_words():
    service = web(at("a", 1, zone="east"), at("b", 2, zone="east"), at("c", 3))
    assert zones.spill_over(service, judged(service, weights={"a": 50, "b": 30}), "east") == (
        "zone east: 44 % go to other zones: 2 of 2 healthy, with 40 % of their weight"
    )
    out = web(at("a", 1, zone="east", admin=AdminState.DRAIN), at("c", 3))
    assert zones.spill_over(out, judged(out), "east") == (
        "zone east: 100 % go to other zones: all are taken out"
    )


def test_only_zones_and_priorities_make_levels():
    assert not zones.has_levels(web(at("a", 1), at("b", 2)))
    assert not zones.has_levels(web(at("a", 1, priority=3), at("b", 2, priority=3)))
    assert zones.has_levels(web(at("a", 1), at("b", 2, priority=1)))
    assert zones.has_levels(web(at("a", 1, zone="east")))


def test_only_zones_with_clients_and_a_backend_have_rings():
    known = (Zone("west", (NET,)), Zone("east", (NET,)), Zone("nobody", ()), Zone("far", (NET,)))
    service = web(at("a", 1, zone="east"), at("b", 2, zone="west"), at("c", 3, zone="nobody"))
    assert zones.zones_of(known, service) == ("east", "west")
