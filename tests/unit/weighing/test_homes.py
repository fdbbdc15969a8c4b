"""The packet path is told by how much a home may have more to do: as configured, or as learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.model import Affinity, AffinityBy, Scheduler
from agent.weighing.homes import Homes
from agent.weights.affinity import Answers
from agent.weights.learn import Samples
from tests.unit.state.world import A, B, web
from tests.unit.weighing.world import World

AUTO = Affinity(AffinityBy.SOURCE)


class Here(World):
    """With homes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.homes = Homes(self.plane.tables, lambda _: 8000.0)
        self.homes.place(self.config, self.ids)

    def give(self, affinity: Affinity) -> None:
        """The service with that, from now on."""
        self.service = replace(self.service, affinity=affinity)
        self.config = replace(self.config, services=(self.service,))
        self.homes.place(self.config, self.ids)

    @property
    def escape(self) -> int:
        row = self.plane.tables.service_load[self.ids.service_id(self.service)]
        return int(row["escape"])

    def answered(self, count: int = 600) -> None:
        """A home saves two requests of 8,000 bytes, so it is worth four."""
        rng = np.random.default_rng(5)
        ahead, known = rng.exponential(16_000, count), rng.random(count) < 0.5
        own, is_open = np.full(count, 8000.0), np.full(count, 2.0)
        seconds = 0.01 + 2e-6 * (ahead + 250) + own * np.where(known, 1e-6, 5e-6)
        sources = np.arange(count, dtype=np.uint32)
        self.homes.take("web", 1, Samples(ahead, own, is_open, np.ones(count)).where(known),
                        sources[known])  # fmt: skip
        self.homes._watched["web"].answers = Answers()
        self.homes.take("web", 1, Samples(ahead, own, is_open, seconds), sources)

    def follow(self) -> None:
        self.homes.follow(lambda _: 250.0)


def here(affinity: Affinity = AUTO) -> Here:
    return Here(web(A, B, scheduler=Scheduler.LEAST_LOAD, affinity=affinity))


def test_a_home_is_worth_a_usual_request_until_more_is_known() -> None:
    world = here()
    assert world.escape == 8000
    world.follow()
    assert world.escape == 8000
    world.answered()
    world.follow()
    assert 28_000 < world.escape < 36_000
    home = world.homes.home(world.service)
    assert home is not None
    assert home.escape_bytes == world.escape
    assert home.new_s is not None
    assert home.known_s is not None
    assert home.new_s > 3 * home.known_s


def test_what_is_configured_holds_whatever_is_learned() -> None:
    world = here(Affinity(AffinityBy.SOURCE, escape_bytes=123))
    world.answered()
    world.follow()
    assert world.escape == 123
    world.give(AUTO)
    assert 28_000 < world.escape < 36_000
    world.give(Affinity(AffinityBy.SOURCE, escape_bytes=0))
    assert world.escape == 0


def test_after_a_restart_what_the_former_agent_found_holds_until_more_is_known() -> None:
    world = here()
    world.plane.tables.service_load["escape"] = 20_000
    world.homes = Homes(world.plane.tables, lambda _: 8000.0)
    world.homes.place(world.config, world.ids)
    world.follow()
    assert world.escape == 20_000
    world.answered()
    world.follow()
    assert 28_000 < world.escape < 36_000


def test_who_has_none_is_not_watched() -> None:
    world = here()
    one, whose = np.ones(2), np.array([5, 5], dtype=np.uint32)
    samples = Samples(one, one, one, one)
    assert len(world.homes.take("web", 1, samples, whose).bytes) == 1, "the other is known"
    world.give(Affinity())
    assert len(world.homes.take("web", 1, samples, whose).bytes) == 2
    assert world.homes.home(world.service) is None
