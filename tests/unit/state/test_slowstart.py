"""Slow start: how weights grow, beside whom, and when the next step is due."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import AdminState, Backend, BackendRef, Config, Health
from agent.state import slowstart
from agent.state.identities import member_of
from agent.state.slowstart import ALWAYS, effective_weight, follow, next_steps_s, slowed
from agent.weights.influence import Influence
from tests.unit.state.world import TABLES, A, B, surroundings, web

C = Backend("c", ip_address("10.0.0.23"))
SERVICE = web(A, B, C, slow_start_s=60.0)
CONFIG = Config("test", "eth0", tables=TABLES, services=(SERVICE,))
MEMBERS = {name: member_of(SERVICE, b) for name, b in zip("abc", (A, B, C), strict=True)}


def verdicts(config: Config = CONFIG, **health: Health):
    return surroundings(config, health=health).eligibility


def weights(now: float, config: Config = CONFIG, /, **up_since: float) -> dict[str, int]:
    times = {MEMBERS[name]: at for name, at in up_since.items()}
    found = slowed(config, verdicts(config), times, now)
    return {ref.backend: one.weight for ref, one in found.items()}


@pytest.mark.parametrize(
    ("configured", "after_s", "expected"),
    [
        (100, 0, 10),
        (100, 5.9, 10),
        (100, 6, 20),
        (100, 54, 100),
        (100, 60, 100),
        (100, 1e9, 100),
        (1000, 0, 100),
        (15, 0, 2),
        (15, 59, 15),
        (3, 0, 1),
        (3, 20, 2),
        (3, 40, 3),
        (1, 0, 1),
    ],
)
def test_a_weight_grows_in_steps_of_a_tenth_and_of_one_at_least(configured, after_s, expected):
    assert effective_weight(configured, 100.0, 60.0, 100.0 + after_s) == expected


def test_without_slow_start_and_for_who_was_always_up_the_weight_is_the_configured_one():
    assert effective_weight(100, 100.0, 0.0, 100.0) == 100
    assert effective_weight(100, ALWAYS, 60.0, 100.0) == 100


def test_a_newcomer_is_spared_beside_who_is_warm():
    assert weights(1000.0, a=ALWAYS, b=ALWAYS, c=1000.0) == {"a": 100, "b": 300, "c": 10}
    assert weights(1030.0, a=ALWAYS, b=ALWAYS, c=1000.0) == {"a": 100, "b": 300, "c": 60}


def test_the_reason_says_so():
    up_since = {MEMBERS["a"]: ALWAYS, MEMBERS["b"]: ALWAYS, MEMBERS["c"]: 1000.0}
    found = slowed(CONFIG, verdicts(), up_since, 1000.0)
    reasons = {ref.backend: one.weight_reason for ref, one in found.items()}
    assert reasons == {"a": "configured", "b": "configured", "c": "slow start"}


def test_all_that_start_together_share_as_configured():
    assert weights(1000.0, a=1000.0, b=1000.0, c=1000.0) == {"a": 100, "b": 300, "c": 100}


def test_who_is_furthest_has_all_of_its_weight():
    assert weights(1030.0, a=1000.0, b=1000.0, c=1030.0) == {"a": 100, "b": 300, "c": 17}


def test_who_is_down_warms_nobody():
    around = verdicts(a=Health.DOWN, b=Health.DOWN)
    found = slowed(CONFIG, around, {MEMBERS["c"]: 1000.0}, 1000.0)
    assert found[BackendRef("web", "c")].weight == 100


def test_a_service_without_slow_start_changes_its_weights_at_once():
    config = replace(CONFIG, services=(web(A, B, C),))
    assert weights(1000.0, config, a=ALWAYS, b=ALWAYS, c=1000.0)["c"] == 100


def test_a_backend_is_followed_from_when_it_comes_up():
    first = follow(CONFIG, verdicts(c=Health.DOWN), {}, 10.0)
    assert first == {MEMBERS["a"]: 10.0, MEMBERS["b"]: 10.0}
    second = follow(CONFIG, verdicts(), first, 20.0)
    assert second == first | {MEMBERS["c"]: 20.0}
    third = follow(CONFIG, verdicts(a=Health.DOWN), second, 30.0)
    assert third == {MEMBERS["b"]: 10.0, MEMBERS["c"]: 20.0}
    assert follow(CONFIG, verdicts(), third, 40.0)[MEMBERS["a"]] == 40.0


def test_one_that_was_drained_starts_slowly_too():
    drained = replace(SERVICE, backends=(A, B, replace(C, admin=AdminState.DRAIN)))
    config = replace(CONFIG, services=(drained,))
    assert MEMBERS["c"] not in follow(config, verdicts(config), {MEMBERS["c"]: 1.0}, 10.0)


def test_another_name_or_weight_starts_nothing_anew():
    renamed = web(replace(A, name="x", weight=7), name="renamed")
    config = replace(CONFIG, services=(renamed,))
    assert follow(config, verdicts(config), {MEMBERS["a"]: 1.0}, 10.0) == {MEMBERS["a"]: 1.0}


def test_the_next_step_is_due_when_the_first_weight_grows():
    up_since = {MEMBERS["a"]: ALWAYS, MEMBERS["b"]: 1000.0, MEMBERS["c"]: 1002.0}
    assert next_steps_s(CONFIG, verdicts(), up_since, 1003.0) == {"web": pytest.approx(3.0)}
    assert next_steps_s(CONFIG, verdicts(), up_since, 1007.0) == {"web": pytest.approx(1.0)}
    assert next_steps_s(CONFIG, verdicts(), up_since, 1061.0) == {"web": pytest.approx(1.0)}


def test_nothing_is_due_once_all_have_their_weights():
    up_since = dict.fromkeys(MEMBERS.values(), 1000.0)
    assert next_steps_s(CONFIG, verdicts(), up_since, 1060.0) == {}
    assert next_steps_s(replace(CONFIG, services=(web(A),)), verdicts(), up_since, 0.0) == {}


def test_who_has_no_weight_is_waited_for_by_nobody():
    around = verdicts(a=Health.DOWN, b=Health.DOWN, c=Health.DOWN)
    assert next_steps_s(CONFIG, around, {MEMBERS["a"]: 1000.0}, 1001.0) == {}


def test_the_steps_that_are_announced_are_those_that_are_made():
    now, seen = 1000.0, []
    up_since = {MEMBERS["a"]: ALWAYS, MEMBERS["b"]: ALWAYS, MEMBERS["c"]: 1000.0}
    while waits := next_steps_s(CONFIG, verdicts(), up_since, now):
        seen.append(weights(now, a=ALWAYS, b=ALWAYS, c=1000.0)["c"])
        now += max(waits["web"], 1e-6)
    assert seen == sorted(seen)
    assert set(seen) == {10, 20, 30, 40, 50, 60, 70, 80, 90, 100}
    assert slowstart.STEPS <= len(seen) <= 2 * slowstart.STEPS


def test_who_comes_up_with_a_weight_of_another_reason_starts_slowly_too():
    learned = Influence(factors=(("learned", 2.0),))
    influences = {BackendRef("web", "c"): learned}
    found = surroundings(CONFIG, influences=influences).eligibility
    up_since = {MEMBERS["a"]: ALWAYS, MEMBERS["b"]: ALWAYS, MEMBERS["c"]: 1000.0}
    slow = slowed(CONFIG, found, up_since, 1000.0)[BackendRef("web", "c")]
    assert (slow.weight, slow.weight_reason) == (20, "slow start, learned")
    assert next_steps_s(CONFIG, found, up_since, 1000.0) == {"web": pytest.approx(6.0)}
    warm = slowed(CONFIG, found, up_since, 1060.0)[BackendRef("web", "c")]
    assert (warm.weight, warm.weight_reason) == (200, "learned")


def test_in_a_panic_nobody_starts_slowly():
    """Those that are down are to take their part of a load that is too much for the rest."""
    config = replace(CONFIG, services=(replace(SERVICE, panic=0.9),))
    found = verdicts(config, b=Health.DOWN, c=Health.DOWN)
    after = slowed(config, found, {MEMBERS["a"]: ALWAYS}, 100.0)
    configured = {backend.name: backend.weight for backend in SERVICE.backends}
    assert {ref.backend: one.weight for ref, one in after.items()} == configured
