"""The bench of learned speeds watches the scheduler that ships, and changes nothing of it."""

from __future__ import annotations

from dataclasses import replace

from agent.weighing.learning import MOVE_EVERY_S
from bench import learning
from bench.ai import trace
from bench.ai.fleet import total_capacity_per_s
from bench.ai.simulator import Scenario, Slowdown, simulate
from lbctl.lab.engine.model import A100, H100

LENGTHS = trace.generated(2000)
FLEET = (H100, A100)


def watched(learns: bool, slowdown: Slowdown | None = None) -> learning.Watched:
    rate_per_s = 0.7 * total_capacity_per_s(FLEET, LENGTHS)
    requests = trace.requests(LENGTHS, round(90 * rate_per_s), rate_per_s, 1.0, seed=1)
    made = learning.Watched((100, 100), 1, learns)
    simulate(replace(Scenario(FLEET, requests), slowdown=slowdown), lambda _: made)
    return made


def test_every_share_and_every_move_is_written_down() -> None:
    made = watched(learns=True)
    times = [at for at, _ in made.shares]
    assert times[:3] == [MOVE_EVERY_S, 2 * MOVE_EVERY_S, 3 * MOVE_EVERY_S]
    first, second = made.shares[-1][1]
    assert first > 1.2 * second
    assert {at for at, _ in made.moves} <= set(times)
    assert {server for _, server in made.moves} == {0, 1}


def test_a_sudden_change_is_written_down() -> None:
    made = watched(learns=True, slowdown=Slowdown(0, 4.0, 40.0, 90.0))
    assert any(server == 0 and at > 40.0 for at, server in made.changes)


def test_who_does_not_learn_moves_nothing() -> None:
    made = watched(learns=False)
    assert not made.shares
    assert not made.moves
