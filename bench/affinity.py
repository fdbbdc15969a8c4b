"""``python -m bench.affinity``: what homes are worth for prefix caches, in the simulator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from bench.ai import trace
from bench.ai.balancers import BoundedSource, HAProxyLeastConn, LeastLoad, SourceHash
from bench.ai.contenders import DEFAULT
from bench.ai.simulator import Balancer, Scenario, simulate
from bench.ai.trace import Conversations
from lbctl.lab.engine.model import A100, H100, Hardware

SEEDS = (1, 2)
PREFIX_TOKENS = 131_072  # that each server's cache holds
ALIKE, MIXED = (H100,) * 8, (H100, A100) * 4
EQUAL = (100,) * 8


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked, and of whom."""

    name: str
    asked: Conversations
    fleet: tuple[Hardware, ...] = ALIKE


_CHAT = Conversations(1500, 3.3, turns=5, think_s=60, system_tokens=500)
_AGENTS = Conversations(800, 1.0, turns=12, think_s=3, system_tokens=2000)
CASES = (
    Case("chat: 5 turns, 60 s between them", _CHAT),
    Case("agents: 12 turns, 3 s between them", _AGENTS),
    Case("agents, half as many again", replace(_AGENTS, per_s=1.5)),
    Case("agents, four servers 2.5 times slower", _AGENTS, MIXED),
    Case("chat, ten users an address", replace(_CHAT, users_each=10)),
    Case("chat behind three gateways", replace(_CHAT, users_each=500)),
    Case("one question each", replace(_CHAT, count=6000, per_s=14, turns=1)),
)


def _least_load(has_homes: bool) -> LeastLoad:
    return LeastLoad(
        EQUAL,
        draws=DEFAULT.draws,
        bytes_per_connection=DEFAULT.bytes_per_connection,
        learns=True,
        has_homes=has_homes,
    )


CONTENDERS: tuple[tuple[str, Callable[[], Balancer]], ...] = (
    ("HAProxy leastconn", lambda: HAProxyLeastConn(EQUAL)),
    ("HAProxy source", lambda: SourceHash(EQUAL)),
    ("source, bound 1.25", lambda: BoundedSource(EQUAL)),
    ("least-load", lambda: _least_load(False)),
    ("least-load, affinity", lambda: _least_load(True)),
)


def _measured(place: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """The waits (s) of one run, and the share of prompt tokens that came from caches."""
    case, contender, seed = CASES[place[0]], CONTENDERS[place[1]][1], place[2]
    fleet = tuple(replace(one, prefix_tokens=PREFIX_TOKENS) for one in case.fleet)
    requests = trace.conversations(trace.lengths(), case.asked, seed)
    outcome = simulate(Scenario(fleet, requests, seed), lambda _: contender())
    return outcome.counted, outcome.cached_share


def _table() -> Iterator[str]:
    names = [name for name, _ in CONTENDERS]
    yield f"| case | {' | '.join(names)} |"
    yield "|-" * (len(names) + 1) + "|"
    places = [
        (case, contender, seed)
        for case in range(len(CASES))
        for contender in range(len(CONTENDERS))
        for seed in SEEDS
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = iter(pool.map(_measured, places))
        for case in CASES:
            cells = []
            for _ in CONTENDERS:
                runs = [next(found) for _ in SEEDS]
                waits_ms = np.concatenate([waits for waits, _ in runs]) * 1e3
                cached = float(np.mean([share for _, share in runs]))
                p95 = float(np.percentile(waits_ms, 95))
                cells.append(f"{waits_ms.mean():.0f}, {p95:.0f} ({cached:.0%})")
            yield f"| {case.name} | {' | '.join(cells)} |"


def main() -> None:
    """The table of docs/affinity.md; some minutes."""
    print(f"Lengths: {trace.lengths().source}. Mean, p95 in ms (share of tokens from caches).\n")
    for line in _table():
        print(line, flush=True)


if __name__ == "__main__":
    main()
