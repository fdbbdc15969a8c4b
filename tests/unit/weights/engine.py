"""A backend that answers in a time that is known, but for noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agent.weights.learn import Learner, Samples, learn


@dataclass
class Engine:
    """Seconds to the first byte: by waiting byte, by open connection, and a rest."""

    per_byte: float = 20e-6
    per_connection: float = 0.5e-3
    base: float = 0.05
    noise: float = 0.3  # sigma of a lognormal
    slow: float = 1.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def seconds(self, waiting: float, connections: float) -> float:
        rest = self.per_connection * connections + self.base
        return self.slow * (self.per_byte * waiting + rest)

    def answers(self, count: int, connections: float = 20, queue: float = 0.3) -> Samples:
        rng = self.rng
        own = rng.lognormal(8.3, 0.7, count)
        ahead = np.where(rng.random(count) < queue, rng.lognormal(8.3, 0.7, count), 0.0)
        opened = rng.poisson(connections, count).astype(float)
        expected = self.per_byte * (ahead + own) + self.per_connection * opened + self.base
        return Samples(
            ahead, own, opened, self.slow * expected * self.rng.lognormal(0, self.noise, count)
        )


def taught(
    engine: Engine, seconds: int, state: Learner | None = None, at_s: int = 0, rate: int = 3, **load
) -> Learner:
    """What is known after so many seconds."""
    state = state or Learner()
    for second in range(at_s, at_s + seconds):
        state = learn(state, engine.answers(rate, **load), float(second))
    return state


NOTHING = Samples(*(np.empty(0) for _ in range(4)))
