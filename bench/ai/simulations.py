"""Owns the simulated runs: which there are, and the processes that run them in parallel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from bench.ai import cases, fleet
from bench.ai.cases import Case
from bench.ai.contenders import Contender, everybody
from bench.ai.results import Row, simulated
from bench.ai.simulator import Scenario, simulate
from bench.ai.trace import Lengths


@dataclass(frozen=True, slots=True)
class Site:
    """Servers behind balancers, each of which sees only its own share of the load."""

    servers: int
    balancers: int = 1

    @property
    def name(self) -> str:
        return f"{self.servers} servers, {self.balancers} balancer" + "s" * (self.balancers > 1)


LARGE = (Site(16, 2), Site(64, 1), Site(64, 4), Site(64, 16))


@dataclass(frozen=True, slots=True)
class Cell:
    """A contender's runs of a case, which differ only by their seeds."""

    contender: str
    case: str
    scenarios: tuple[Scenario, ...]
    time_scale: float


def cells(
    contenders: Iterable[Contender],
    chosen: Sequence[Case],
    site: Site,
    of: Lengths,
    count: int,
    seeds: Iterable[int],
    poll_s: float = 0.2,
    time_scale: float = 1.0,
) -> list[Cell]:
    """Return all cells of a site, case after case.

    ``poll_s`` is in the agent's time, in which engines run ``time_scale`` times faster.
    """
    servers = fleet.servers(site.servers)

    def scenarios(case: Case) -> tuple[Scenario, ...]:
        each = (cases.scenario(case, servers, of, count, seed) for seed in seeds_)
        return tuple(
            replace(one, balancers=site.balancers, poll_s=poll_s * time_scale) for one in each
        )

    seeds_ = tuple(seeds)
    by_case = {case.name: scenarios(case) for case in chosen}
    return [
        Cell(contender.name, name, made, time_scale)
        for name, made in by_case.items()
        for contender in contenders
    ]


def run(todo: Sequence[Cell], of: Lengths, progress: Callable[[str], None]) -> list[Row]:
    """Run all cells, as many at a time as there are processors."""
    rows = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(partial(_row, of=of), todo):
            progress(f"simulated: {row.case}, {row.contender}")
            rows.append(row)
    return rows


def _row(cell: Cell, of: Lengths) -> Row:
    contender = next(one for one in everybody() if one.name == cell.contender)
    weights = fleet.right_weights(cell.scenarios[0].fleet, of)
    make = partial(contender.make, weights, cell.time_scale)
    return simulated(cell.contender, cell.case, [simulate(one, make) for one in cell.scenarios])
