"""Samples are read once each, and weights follow them in steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from structlog.testing import capture_logs

from agent.dataplane import abi
from agent.model import (
    Affinity,
    AffinityBy,
    BackendRef,
    NodeKind,
    NodeTelemetry,
    Scheduler,
    Telemetry,
    TelemetryKind,
)
from agent.state.identities import server_of
from agent.weighing import learning
from agent.weighing.learning import ADOPTED_S, AS_CONFIGURED, MOVE_EVERY_S, Learning
from agent.weights.learn import Learner, Samples
from tests.unit.state.world import A, B, web
from tests.unit.weighing.world import A_REF, B_REF, World

BOTH = (A_REF, B_REF)


class Here(World):
    """With learning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.learning = Learning(self.plane.tables)
        self.place()

    def place(self) -> None:
        self.learning.place(self.config, self.ids)

    def answers(self, name: str, *rows: tuple[int, int, int, int]) -> None:
        """Samples as the packet path leaves them: ahead, bytes, open, us."""
        tables, ident = self.plane.tables, self.ident(name)
        for row in rows:
            place = int(tables.backend_latency["samples"][ident]) % abi.SAMPLES
            tables.backend_samples[ident, place] = row
            tables.backend_latency["samples"][ident] += 1


def here(**fields: object) -> Here:
    plain = {"scheduler": Scheduler.LEAST_LOAD}
    return Here(web(A, replace(B, weight=100), **(plain | fields)))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Samples]:
    """What learners get, as it comes; not that nothing came."""
    found: list[Samples] = []

    def learn(learner: Learner, samples: Samples, _now: float) -> Learner:
        if len(samples.bytes):
            found.append(samples)
        return learner

    monkeypatch.setattr(learning, "learn", learn)
    return found


def us(samples: Samples) -> list[int]:
    return [round(seconds * 1e6) for seconds in samples.seconds]


# -- reading


def test_each_sample_is_read_once_in_its_order(taken: list[Samples]):
    world = here()
    world.answers("a", (1, 2, 3, 4000), (5, 6, 7, 8000))
    world.learning.sample(BOTH, 1.0)
    (first,) = taken
    assert (list(first.ahead), list(first.bytes), list(first.open)) == ([1, 5], [2, 6], [3, 7])
    assert us(first) == [4000, 8000]
    world.answers("a", (0, 0, 0, 9))
    world.learning.sample(BOTH, 2.0)
    assert us(taken[1]) == [9]


def test_what_a_backend_answers_that_is_done_too_fast_is_read_and_not_learned(
    taken: list[Samples],
):
    world = here()
    world.answers("a", (1, 2, 3, 4000))
    world.answers("b", (1, 2, 3, 5000))
    world.learning.sample(BOTH, 1.0, frozenset({A_REF}))
    assert [us(samples) for samples in taken] == [[5000]]
    world.learning.sample(BOTH, 2.0)
    assert taken[1:] == []


def test_the_ring_goes_round(taken: list[Samples]):
    world = here()
    world.answers("a", *((0, 1, 1, n) for n in range(1, 31)))
    world.learning.sample(BOTH, 1.0)
    world.answers("a", *((0, 1, 1, n) for n in range(31, 41)))
    world.learning.sample(BOTH, 2.0)
    assert us(taken[0]) == list(range(1, 31))
    assert us(taken[1]) == list(range(31, 41))
    world.answers("a", *((0, 1, 1, n) for n in range(100, 200)))
    world.learning.sample(BOTH, 3.0)
    assert us(taken[2]) == list(range(200 - abi.SAMPLES, 200)), "the newest are still there"


def test_a_sample_that_is_being_written_is_left_out(taken: list[Samples]):
    world = here()
    world.answers("a", (1, 1, 1, 10), (2, 2, 2, 0), (3, 3, 3, 30))
    world.learning.sample(BOTH, 1.0)
    assert us(taken[0]) == [10, 30]
    assert list(taken[0].ahead) == [1, 3]


def test_what_was_there_before_is_of_somebody_else(taken: list[Samples]):
    world = here()
    world.answers("a", (1, 1, 1, 10))
    world.learning = Learning(world.plane.tables)
    world.place()
    world.learning.sample(BOTH, 1.0)
    assert taken == []


def test_a_table_that_was_cleared_starts_anew(taken: list[Samples]):
    world = here()
    world.answers("a", *((0, 1, 1, n) for n in range(1, 9)))
    world.learning.sample(BOTH, 1.0)
    world.plane.tables.backend_latency["samples"] = 0
    world.learning.sample(BOTH, 2.0)
    world.answers("a", (0, 1, 1, 77))
    world.learning.sample(BOTH, 3.0)
    assert [us(samples) for samples in taken[1:]] == [[77]]


# -- homes


def test_where_clients_have_homes_speed_is_learned_from_those_that_are_new(taken: list[Samples]):
    world = here(affinity=Affinity(AffinityBy.SOURCE))
    sources = world.plane.tables.sample_sources["hash"][world.ident("a")]
    sources[:4] = [7, 8, 7, 9]
    world.answers("a", *((0, 100, 1, 1000 * n) for n in range(1, 5)))
    world.learning.sample(BOTH, 1.0)
    assert us(taken[0]) == [1000, 2000, 4000]
    sources[4:6] = [9, 10]
    world.answers("a", (0, 100, 1, 5000), (0, 100, 1, 6000))
    world.learning.sample(BOTH, 2.0)
    assert us(taken[1]) == [6000]
    home = world.learning.homes.home(world.service)
    assert home is not None
    world.learning.sample(BOTH, 2.0 + MOVE_EVERY_S)
    home = world.learning.homes.home(world.service)
    assert home is not None
    assert home.known_share == pytest.approx(2 / 6, abs=0.01)


# -- who learns


@pytest.mark.parametrize(
    "fields",
    [{"learn_speed": False}, {"scheduler": Scheduler.MAGLEV}, {"count_waiting": False}],
)
def test_who_does_not_learn_is_as_configured(fields: dict):
    world = here(**fields)
    assert not world.learning.learns(A_REF)
    assert world.learning.learned(A_REF) == AS_CONFIGURED
    world.learning.sample(BOTH, 1.0)
    assert world.learning.learned(A_REF) == AS_CONFIGURED


def test_who_learns_no_more_is_as_configured_again():
    world = here()
    serve(world, 30, slow=3.0)
    assert world.learning.learned(B_REF).weight_share < 1
    world.service = replace(world.service, learn_speed=False)
    world.config = replace(world.config, services=(world.service,))
    world.place()
    assert world.learning.learned(B_REF) == AS_CONFIGURED
    world.learning.sample(BOTH, 40.0)
    assert world.learning.learned(B_REF) == AS_CONFIGURED


def test_another_id_forgets_and_the_same_one_does_not(taken: list[Samples]):
    world = here()
    world.answers("a", (1, 1, 1, 10))
    world.place()
    world.learning.sample(BOTH, 1.0)
    assert us(taken[0]) == [10], "a pass changes nothing"
    service_id = world.ids.service_id(world.service)
    own = world.ids.backends[service_id] | {server_of(A): 9}
    world.ids = replace(world.ids, backends={service_id: own})
    world.answers("a", (1, 1, 1, 20))
    world.place()
    world.answers("a", (1, 1, 1, 30))
    world.learning.sample(BOTH, 2.0)
    assert us(taken[1]) == [30]


# -- moving


def serve(world: Here, seconds: int, *, slow: float, at: float = 0.0) -> int:
    """A second of answers at a time: ``b`` takes so much longer than ``a``. How often a share
    moved.
    """
    draw, moved = np.random.default_rng(1), 0
    for second in range(1, seconds + 1):
        for name, factor in (("a", 1.0), ("b", slow)):
            rows = []
            for _ in range(4):
                ahead, size, open_ = draw.integers(0, 8000), draw.integers(500, 3000), 4
                took_s = factor * (0.05 + 40e-6 * (ahead + size)) * draw.uniform(0.9, 1.1)
                rows.append((int(ahead), int(size), open_, round(took_s * 1e6)))
            world.answers(name, *rows)
        before = [world.learning.learned(ref).weight_share for ref in BOTH]
        world.learning.sample(BOTH, at + second)
        moved += before != [world.learning.learned(ref).weight_share for ref in BOTH]
    return moved


def test_the_slow_one_weighs_less_and_every_step_is_logged():
    world = here()
    with capture_logs() as logs:
        moved = serve(world, 60, slow=2.0)
    fast, slow = (world.learning.learned(ref).weight_share for ref in BOTH)
    assert 1.4 < fast / slow < 2.2
    assert world.learning.estimate(A_REF).confidence > 0.5
    steps = [log for log in logs if log["event"] == "learned speed"]
    assert {step["backend"] for step in steps} == {str(A_REF), str(B_REF)}
    for step in steps:
        assert step["old"] / 1.26 - 0.01 <= step["new"] <= step["old"] * 1.26 + 0.01
    assert 1 <= moved <= 60 / MOVE_EVERY_S


def test_equals_stay_as_configured():
    world = here()
    serve(world, 60, slow=1.0)
    assert [world.learning.learned(ref).weight_share for ref in BOTH] == [1.0, 1.0]


def test_weights_stay_between_the_moves():
    world = here()
    serve(world, 20, slow=3.0)
    before = world.learning.learned(B_REF)
    world.learning.sample(BOTH, 20.0 + MOVE_EVERY_S / 100)
    assert world.learning.learned(B_REF) == before


def test_who_is_out_moves_nowhere():
    world = here()
    serve(world, 30, slow=3.0)
    before = world.learning.learned(B_REF)
    for second in range(31, 61):
        world.learning.sample((A_REF,), float(second))
    assert world.learning.learned(B_REF) == before


def test_a_backend_without_weight_does_not_disturb():
    world = Here(web(A, replace(B, weight=0), scheduler=Scheduler.LEAST_LOAD))
    serve(world, 30, slow=3.0)
    assert [world.learning.learned(ref).weight_share for ref in BOTH] == [1.0, 1.0]


# -- after a restart


def restarted(weights: dict[BackendRef, int], **fields: object) -> Here:
    world = here(**fields)
    world.learning = Learning(world.plane.tables)
    world.learning.adopt(world.config, weights, 0.0)
    return world


def test_a_restart_goes_on_with_the_weights_that_the_tables_hold():
    world = restarted({A_REF: 150, B_REF: 40})
    for _ in range(2):
        shares = [world.learning.learned(ref).weight_share for ref in BOTH]
        assert shares == [1.5, 0.4]
        world.place()
    for second in range(1, round(ADOPTED_S)):
        world.learning.sample(BOTH, float(second))
    assert world.learning.learned(B_REF).weight_share == 0.4


def test_what_no_sample_confirms_is_given_up_in_steps():
    world = restarted({B_REF: 40})
    world.place()
    found = []
    for n in range(10):
        world.learning.sample(BOTH, ADOPTED_S + n * MOVE_EVERY_S)
        found.append(world.learning.learned(B_REF).weight_share)
    assert found == sorted(found)
    assert 0.4 < found[0] <= 0.5 + 1e-9
    assert found[-1] == 1.0


def test_weights_of_other_reasons_are_bounded_or_none():
    world = restarted({A_REF: 4000, B_REF: 0})
    assert [world.learning.learned(ref).weight_share for ref in BOTH] == [4.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.4),
        ({"telemetry": Telemetry(TelemetryKind.VLLM)}, 0.4),
        ({"telemetry": Telemetry(TelemetryKind.AGENT_CHECK)}, 1.0),
        ({"node": NodeTelemetry(NodeKind.DCGM)}, 1.0),
        ({"slow_start_s": 30.0}, 1.0),
        ({"learn_speed": False}, 1.0),
    ],
)
def test_weights_that_somebody_else_may_have_lowered_are_not_taken_for_learned(fields, expected):
    """The agent-check's share, a throttled GPU's, or what a slow start left, would count twice."""
    world = restarted({B_REF: 40}, **fields)
    assert world.learning.learned(B_REF).weight_share == expected
    world.place()
    assert world.learning.learned(B_REF).weight_share == expected


# -- what another balancer has learned


def taught(**fields: object) -> tuple[Here, Here]:
    """A balancer that has learned, and one without samples that has just heard of it, at 60 s."""
    one, other = here(), here(**fields)
    serve(one, 60, slow=2.0)
    for speeds in one.learning.speeds():
        other.learning.hear(speeds, 60.0)
    other.learning.sample(BOTH, 60.0)
    return one, other


def shares(world: Here) -> list[float]:
    return [world.learning.learned(ref).weight_share for ref in BOTH]


def test_without_samples_it_weighs_as_the_balancer_that_has_some():
    one, other = taught()
    assert shares(one)[0] > 1.1 > 0.9 > shares(one)[1]
    assert shares(other) == shares(one), "exactly, so that both have the same rings"
    assert other.learning.learned(A_REF).confidence == 0
    assert list(other.learning.speeds()) == [], "what was heard is not told"


def test_what_is_heard_no_more_holds_for_a_while_and_is_given_up_in_steps():
    one, other = taught()
    other.learning.sample(BOTH, 59.0 + ADOPTED_S)
    assert shares(other) == shares(one)
    found = []
    for n in range(10):
        other.learning.sample(BOTH, 60.0 + ADOPTED_S + (n + 1) * MOVE_EVERY_S)
        found.append(shares(other)[1])
    assert shares(one)[1] < found[0] < 1.0
    assert found[-1] == 1.0
    assert not {*other.learning.moved}


def test_own_samples_count_more_than_what_others_say():
    one, other = here(), here()
    serve(one, 60, slow=4.0)
    serve(other, 60, slow=1.0)
    for speeds in one.learning.speeds():
        other.learning.hear(speeds, 60.0)
    serve(other, 10, slow=1.0, at=60.0)
    assert shares(other) == [1.0, 1.0]


def test_who_takes_over_goes_on_from_what_was_heard():
    _, other = taught()
    heard = shares(other)
    serve(other, 4, slow=2.0, at=60.0)
    assert all(share == pytest.approx(before, rel=0.26)
               for share, before in zip(shares(other), heard, strict=True))  # fmt: skip


@pytest.mark.parametrize("fields", [{"learn_speed": False}, {"scheduler": Scheduler.MAGLEV}])
def test_who_does_not_learn_hears_nothing(fields: dict):
    _, other = taught(**fields)
    assert shares(other) == [1.0, 1.0]


def test_backends_that_are_not_here_are_nobodys():
    world = here()
    world.learning.hear({BackendRef("web", "z"): AS_CONFIGURED}, 1.0)
    world.learning.sample(BOTH, 10.0)
    assert shares(world) == [1.0, 1.0]
