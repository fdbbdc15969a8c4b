"""Decides what is measured: the cases, each as a load for both the simulator and the lab."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.ai import fleet, trace
from bench.ai.simulator import Scenario, Slowdown
from bench.ai.trace import Lengths
from lbctl.lab.engine.model import Hardware

ASKS_EVERY_S = 120.0  # a person who keeps a connection: reads, thinks, asks again
KEEP_ALIVE_S = 60.0
SLOW_FACTOR = 3.0
BYPASS = 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load. ``target``: the limits of p95, p99 and p99.9, as shares of the reference's;
    None: ``WORSE``.
    """

    name: str
    about: str
    utilisation: float = 0.85
    cv: float = trace.TRACE_CV
    keeps_connections: bool = False
    bypass: float = 0.0
    throttled: bool = False
    loses_telemetry: bool = False
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None


WORSE = 1.05
CASES = (
    Case("trace", "arrivals as in the trace", p95=0.75, p999=0.8),
    Case("bursty", "bursty arrivals", 0.8, trace.BURSTY_CV, p99=0.5),
    Case("keep-alive", "connections kept for 60 s", keeps_connections=True, p99=0.5),
    Case("bypass", "half of the load goes round the balancer", bypass=BYPASS, p99=0.5),
    Case("throttled", "a fast server is 3 times slower for a third", throttled=True, p99=0.5),
    Case("lost", "telemetry of half of the servers lost", loses_telemetry=True),
)


def scenario(
    case: Case, servers: Sequence[Hardware], of: Lengths, count: int, seed: int
) -> Scenario:
    """Return a scenario of ``count`` requests of a case, for these servers."""
    rate_per_s = case.utilisation * fleet.total_capacity_per_s(servers, of)
    duration_s = count / rate_per_s
    half = len(servers) // 2
    return Scenario(
        fleet=tuple(servers),
        requests=trace.requests(of, count, rate_per_s, case.cv, seed),
        seed=seed,
        clients=round(rate_per_s * ASKS_EVERY_S) if case.keeps_connections else 0,
        keep_alive_s=KEEP_ALIVE_S,
        bypass=case.bypass,
        slowdown=Slowdown(0, SLOW_FACTOR, duration_s / 3, duration_s * 2 / 3)
        if case.throttled
        else None,
        lost=frozenset(range(half)) if case.loses_telemetry else frozenset(),
    )
