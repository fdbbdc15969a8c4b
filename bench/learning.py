"""``python -m bench.learning``: the weights that come of learned speeds, in the simulator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.ai import trace
from bench.ai.balancers import LeastLoad
from bench.ai.contenders import DEFAULT
from bench.ai.fleet import total_capacity_per_s
from bench.ai.simulator import Scenario, Slowdown, percentiles, simulate
from lbctl.lab.engine.model import A100, H100, Hardware

FLEET = (H100,) * 4 + (A100,) * 4
RIGHT = (180,) * 4 + (100,) * 4
EQUAL = (100,) * 8
BYTES_SCATTER = 0.5  # sigma of the lognormal distribution of bytes per token
START_S, DURATION_S = 90.0, 600.0
SLOW_FROM_S, SLOW_UNTIL_S = 200.0, 350.0
SEEDS = (1, 2, 3)


class Watched(LeastLoad):
    """The scheduler as shipped, for clients whose tokens vary in size; records what it learns."""

    def __init__(self, weights: Sequence[int], seed: int, learns: bool) -> None:
        super().__init__(
            weights,
            draws=DEFAULT.draws,
            bytes_per_connection=DEFAULT.bytes_per_connection,
            learns=learns,
        )
        self.moves: list[tuple[float, int]] = []  # when, and of which server's weight
        self.changes: list[tuple[float, int]] = []  # when and where one was noticed
        self.shares: list[tuple[float, tuple[float, ...]]] = []
        self._scatter = random.Random(seed + 1)

    def asked(self, server: int, request_bytes: int, source: int, now_s: float) -> object:
        by = self._scatter.lognormvariate(-(BYTES_SCATTER**2) / 2, BYTES_SCATTER)
        return super().asked(server, max(64, round(request_bytes * by)), source, now_s)

    def _learn(self, now_s: float) -> None:
        before = [pupil.changed_s for pupil in self._pupils]
        super()._learn(now_s)
        for server, (pupil, changed_s) in enumerate(zip(self._pupils, before, strict=True)):
            if pupil.changed_s != changed_s:
                self.changes.append((now_s, server))

    def _move(self, now_s: float) -> None:
        before = tuple(self._shares)
        super()._move(now_s)
        self.shares.append((now_s, tuple(self._shares)))
        for server, (share, was) in enumerate(zip(self._shares, before, strict=True)):
            if share != was:
                self.moves.append((now_s, server))


@dataclass(frozen=True, slots=True)
class Case:
    """A load, and what the operator configured."""

    name: str
    utilisation: float = 0.75
    cv: float = trace.TRACE_CV
    fleet: tuple[Hardware, ...] = FLEET
    weights: tuple[int, ...] = EQUAL
    lengths: str = "conv"
    bypass: float = 0.0
    slowdown: Slowdown | None = None


_SLOW = Slowdown(0, 3.0, SLOW_FROM_S, SLOW_UNTIL_S)
CASES = (
    Case("equal weights, utilisation 0.7", 0.7),
    Case("equal weights, 0.85", 0.85),
    Case("equal weights, 0.8, bursts (cv 3.6)", 0.8, trace.BURSTY_CV),
    Case("equal weights, 0.1", 0.1),
    Case("right weights (180 : 100)", weights=RIGHT),
    Case("wrong weights (100 : 400), 0.6", 0.6, weights=(100,) * 4 + (400,) * 4),
    Case("servers all alike (the other four too: H100)", fleet=(H100,) * 8),
    Case("half of the load passes by", bypass=0.5),
    Case("prompts of the code trace, 0.6", 0.6, lengths="code"),
    Case("overload, 1.1", 1.1),
)
THROTTLED = (
    Case("0.7", 0.7, slowdown=_SLOW),
    Case("0.7, bursts (cv 3.6)", 0.7, trace.BURSTY_CV, slowdown=_SLOW),
    Case("0.3", 0.3, slowdown=_SLOW),
    Case("0.7, ten times slower", 0.7, slowdown=replace(_SLOW, factor=10.0)),
)


def _scenario(case: Case, seed: int) -> Scenario:
    lengths = trace.lengths(case.lengths)
    rate_per_s = case.utilisation * total_capacity_per_s(case.fleet, lengths)
    count = round(rate_per_s * DURATION_S)
    requests = trace.requests(lengths, count, rate_per_s, case.cv, seed)
    return Scenario(case.fleet, requests, seed, bypass=case.bypass, slowdown=case.slowdown)


def _run(
    case: Case, weights: Sequence[int], learns: bool, begin_s: float = START_S
) -> tuple[list[Watched], tuple[float, ...]]:
    """Return the balancers of all seeds, and percentiles (s) of requests from ``begin_s`` on."""
    balancers: list[Watched] = []
    waits: list[np.ndarray] = []

    def make(seed: int) -> Callable[[int], Watched]:
        def balancer(_: int) -> Watched:
            balancers.append(Watched(weights, seed, learns))
            return balancers[-1]

        return balancer

    for seed in SEEDS:
        scenario = _scenario(case, seed)
        outcome = simulate(scenario, make(seed))
        late = np.array([request.at_s >= begin_s for request in scenario.requests])
        waits.append(outcome.first_token_s[late & ~outcome.bypassed])
    return balancers, percentiles(np.concatenate(waits))


def _settled(balancer: Watched) -> np.ndarray:
    return np.array([shares for at, shares in balancer.shares if START_S <= at < DURATION_S])


def _ratio(case: Case, balancers: Sequence[Watched]) -> tuple[float, float, float]:
    """Return mean, minimum and maximum of the first half's weights divided by the second half's."""
    weights = np.concatenate([_settled(balancer) for balancer in balancers]) * case.weights
    half = len(case.weights) // 2
    ratios = weights[:, :half].mean(axis=1) / weights[:, half:].mean(axis=1)
    return float(ratios.mean()), float(ratios.min()), float(ratios.max())


def _milliseconds(waits_s: Sequence[float]) -> str:
    return ", ".join(f"{1e3 * wait:.0f}" for wait in waits_s)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield f"|{'-|' * len(cells)}"


def _weights_table() -> Iterator[str]:
    yield from _head(
        "case",
        "first : second four (range)",
        "changes a minute, of all eight",
        "learned",
        "as configured",
        "180 : 100",
    )
    for case in CASES:
        learned, waits = _run(case, case.weights, True)
        mean, least, most = _ratio(case, learned)
        moves = sum(at >= START_S for one in learned for at, _ in one.moves)
        a_minute = moves / len(SEEDS) / (DURATION_S - START_S) * 60
        yield _row(
            case.name,
            f"{mean:.2f} ({least:.2f} to {most:.2f})",
            f"{a_minute:.1f}",
            _milliseconds(waits),
            _milliseconds(_run(case, case.weights, False)[1]),
            _milliseconds(_run(case, RIGHT, False)[1]),
        )


def _first(times: Sequence[tuple[float, float]], after_s: float, below: float, above: float) -> str:
    """Return how many seconds after ``after_s`` a value is first below or above the limits."""
    for at, value in times:
        if at > after_s and (value < below or value > above):
            return f"{at - after_s:.0f}"
    return "never"


def _throttled_table() -> Iterator[str]:
    yield from _head(
        "utilisation",
        "noticed",
        "a quarter less",
        "least",
        "three quarters again",
        "learned",
        "180 : 100",
    )
    for case in THROTTLED:
        learned, waits = _run(case, case.weights, True, SLOW_FROM_S)
        noticed, less, least, back = [], [], [], []
        for one in learned:
            changes = [(at, 1.0) for at, server in one.changes if server == 0]
            shares = [(at, shares[0]) for at, shares in one.shares]
            before = float(np.mean([share for at, share in shares if START_S < at < SLOW_FROM_S]))
            slow = [share for at, share in shares if SLOW_FROM_S < at < SLOW_UNTIL_S]
            noticed.append(_first(changes, SLOW_FROM_S, 2.0, 2.0))
            less.append(_first(shares, SLOW_FROM_S, 0.75 * before, np.inf))
            least.append(f"{min(slow) / before:.2f}")
            back.append(_first(shares, SLOW_UNTIL_S, 0.0, 0.75 * before))
        yield _row(
            case.name,
            *(", ".join(cells) for cells in (noticed, less, least, back)),
            _milliseconds(waits),
            _milliseconds(_run(case, RIGHT, False, SLOW_FROM_S)[1]),
        )


def main() -> None:
    """Print both tables of docs/learning.md; takes some minutes."""
    print(f"Lengths: {trace.lengths().source}.\n")
    for line in _weights_table():
        print(line, flush=True)
    print()
    for line in _throttled_table():
        print(line, flush=True)


if __name__ == "__main__":
    main()
