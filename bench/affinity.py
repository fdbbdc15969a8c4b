"""``python -m bench.affinity``: what homes are worth for prefix caches, in the simulator, or with
real connections and compared with routers that read prompts (``--real``, as root).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import click
import numpy as np

from agent.dataplane.program import require_root
from agent.model import Forward, Scheduler
from bench.ai import results, routers, run, setups, trace
from bench.ai.balancers import BoundedSource, HAProxyLeastConn, LeastLoad, SourceHash
from bench.ai.contenders import DEFAULT
from bench.ai.setups import HAProxy, Router, Start, Steelyard, Tier
from bench.ai.simulator import Balancer, Scenario, simulate
from bench.ai.trace import Conversations
from bench.peers import wiring
from lbctl.lab import topology
from lbctl.lab.engine.model import A100, H100, Hardware

SEEDS = (1, 2)
PREFIX_TOKENS = 131_072  # capacity of each server's cache
ALIKE, MIXED = (H100,) * 8, (H100, A100) * 4
EQUAL = (100,) * 8


@dataclass(frozen=True, slots=True)
class Case:
    """A load of conversations, and the servers that answer it."""

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
    """Return the waits (s) of one run, and the share of prompt tokens that came from caches."""
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


# -- with real connections

TIME_SCALE = 10.0  # with TLS use less, or most of what is measured is the machine's own time
_WARM_UP, _WARM_UP_S = Conversations(200, 4.0, turns=3, think_s=5, system_tokens=500), 50.0
_LEAST_LOAD: dict[str, object] = {"learn_speed": True}
_AFFINITY = _LEAST_LOAD | {"affinity": {"by": "source"}}
_SESSIONS = {"affinity": {"by": "prompt", "sources": [setups.TIER_SOURCES]}}
_HTTPS: dict[str, object] = {"health": {"type": "https", "path": "/health", "verify_tls": False}}
_TELEMETRY: dict[str, object] = {
    "telemetry": {
        "type": "vllm",
        "port": topology.ENGINE_PORT,
        "interval": f"{1000 * setups.REPORT_S:.0f}ms",
    }
}

_WARM_UP_FIRST = 50_000  # so warm-up users share no conversation or address with measured ones
REAL_S = 450.0  # of the engines' time; the first tenth of the requests is not counted
REAL_CASES = (
    Case("chat", _CHAT),
    Case("agents", _AGENTS),
    Case("agents, four servers 2.5 times slower", _AGENTS, MIXED),
    Case("chat behind three gateways", replace(_CHAT, users_each=500)),
    Case("one question each", replace(_CHAT, count=6300, per_s=14, turns=1)),
)


def _steelyard(options: dict[str, object]) -> Steelyard:
    return Steelyard(Scheduler.LEAST_LOAD, weighted=False, options=options)


@dataclass(frozen=True, slots=True)
class Row:
    """A contender, and how clients reach it."""

    name: str
    start: Start
    forward: Forward = Forward.FULLNAT
    tls: bool = False
    tier: bool = False


_HASHED = HAProxy("source\n    hash-type consistent", weighted=False)
REAL = (
    Row("HAProxy leastconn", HAProxy("leastconn", weighted=False)),
    Row("HAProxy leastconn, maxconn", HAProxy("leastconn", False, H100.max_batch)),
    Row("HAProxy source", _HASHED),
    Row(routers.VLLM, Router(routers.command(routers.VLLM))),
    Row(routers.SGLANG, Router(routers.command(routers.SGLANG))),
    Row("least-load", _steelyard(_LEAST_LOAD)),
    Row("affinity", _steelyard(_AFFINITY)),
    Row("affinity, telemetry", _steelyard(_AFFINITY | _TELEMETRY)),
    Row("affinity, TLS 1.3", _steelyard(_AFFINITY | _HTTPS), tls=True),
    Row("affinity, dsr", _steelyard(_AFFINITY), Forward.DSR),
    Row("affinity, TLS 1.3, the tier", Tier(_steelyard(_AFFINITY), _SESSIONS), tier=True),
    Row("least-load, TLS 1.3, the tier", Tier(_steelyard(_LEAST_LOAD)), tier=True),
    Row("affinity, dsr, TLS 1.3", _steelyard(_AFFINITY | _HTTPS), Forward.DSR, tls=True),
)
_REAL_HEAD = (
    *("case", "contender", "mean", "p50", "p95", "p99", "from caches"),
    *("CPU of its processes", "CPU of the machine", "errors"),
)


def _scenario(
    fleet: tuple[Hardware, ...], what: Conversations, until_s: float, seed: int, first: int
) -> Scenario:
    every = trace.conversations(trace.lengths(), what, seed, first)
    return Scenario(fleet, tuple(one for one in every if one.at_s < until_s), seed)


def _real(
    contenders: Sequence[str], cases: Sequence[str], seconds: float, time_scale: float
) -> Iterator[str]:
    """Measure each contender in each case, alone, with servers that cache only the system prompts.

    Yields the lines of a Markdown table.
    """
    yield f"| {' | '.join(_REAL_HEAD)} |"
    yield "|-" * len(_REAL_HEAD) + "|"
    for case in REAL_CASES:
        if case.name not in cases:
            continue
        fleet = tuple(replace(one, prefix_tokens=PREFIX_TOKENS, chunked=True) for one in case.fleet)
        asked = _scenario(fleet, case.asked, seconds, SEEDS[0], 0)
        before = _scenario(fleet, _WARM_UP, _WARM_UP_S, 99, _WARM_UP_FIRST)
        for contender in REAL:
            if contender.name not in contenders:
                continue
            made = setups.setup(fleet, EQUAL, time_scale, contender.forward)
            made = replace(made, has_sources=True, tls=contender.tls, tier=contender.tier)
            made = replace(made, lab=replace(made.lab, clients=1 + contender.tier))
            found = run.run(contender.start, {case.name: asked}, made, before)[case.name]
            row, health = results.measured(contender.name, case.name, asked, found, time_scale)
            waits_ms = np.array(row.waits_s) * 1e3
            count = len(asked.requests)
            busy_s = (1 - found.idle_share) * found.duration_s * (os.cpu_count() or 1)
            cells = [
                f"{waits_ms.mean():.0f}",
                *(f"{np.percentile(waits_ms, q):.0f}" for q in (50, 95, 99)),
                f"{found.cached_share:.0%}",
                f"{1e6 * found.balancer_cpu_s / count:.0f} µs",
                f"{1e6 * busy_s / count:.0f} µs",
                ", ".join(f"{n} {what}" for what, n in row.errors.items()) or "0",
            ]
            behind = "" if health.kept_up else " (the machine did not keep up)"
            yield f"| {case.name} | {contender.name}{behind} | {' | '.join(cells)} |"


def _chosen(words: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """Return the chosen names: those that equal a word or, if none does, those that contain it."""
    found: list[str] = []
    for word in words:
        meant = [name for name in names if word == name] or [name for name in names if word in name]
        if not meant:
            raise click.UsageError(f"{word!r} is in none of: {'; '.join(names)}")
        found += meant
    return found or names


@click.command()
@click.option("--real", is_flag=True, help="Real connections in the lab, beside routers; as root.")
@click.option("--only", metavar="NAME", multiple=True, help="Only real contenders named so.")
@click.option("--case", metavar="NAME", multiple=True, help="Only this real case, likewise.")
@click.option("--seconds", default=REAL_S, help="Duration of each real run, in the engines' time.")
@click.option("--time-scale", default=TIME_SCALE, help="How many times faster engines run.")
def main(
    real: bool, only: Sequence[str], case: Sequence[str], seconds: float, time_scale: float
) -> None:
    """Print a table of docs/affinity.md; takes some minutes, the real one half an hour."""
    contenders = _chosen(only, [row.name for row in REAL])
    cases = _chosen(case, [each.name for each in REAL_CASES])
    print(f"Lengths: {trace.lengths().source}.", end=" ")
    if real:
        require_root()
        wiring.refuse_second(setups.LAB_NAME)
        print("Time to the first token in ms; CPU for a request.\n")
        lines = _real(contenders, cases, seconds, time_scale)
    else:
        print("Mean, p95 in ms (share of tokens from caches).\n")
        lines = _table()
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
