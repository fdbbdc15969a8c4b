"""Decides which balancers are compared, each for the simulator and for the lab."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from agent.model import Protocol, Scheduler, Service, ServiceKey
from bench.ai import balancers, fleet, setups
from bench.ai.balancers import LeastLoad
from bench.ai.setups import HAProxy, Nginx, Start, Steelyard
from bench.ai.simulator import Balancer
from lbctl.lab import topology

REFERENCE = "HAProxy leastconn"
COMPLETE = "least-load, telemetry and learned"
# A service's defaults.
DEFAULT = Service("defaults", ServiceKey(ip_address("192.0.2.1"), 80, Protocol.TCP))


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the result.

    ``simulated`` makes a balancer for servers with these weights, by time scale of the engines and
    the balancer's number; ``weighted``: it is configured with the right weights.
    """

    name: str
    simulated: Callable[[Sequence[int], int, float], Balancer]
    start: Start
    weighted: bool = True
    listens: bool = False  # uses telemetry: only then does lost telemetry matter

    def make(self, weights: Sequence[int], time_scale: float, number: int) -> Balancer:
        """Return the simulated balancer with this number."""
        configured = weights if self.weighted else (fleet.FULL_WEIGHT,) * len(weights)
        return self.simulated(configured, number, time_scale)


def _least_load(
    weights: Sequence[int],
    _number: int,
    time_scale: float,
    *,
    counts_bytes: bool,
    telemetry: bool = False,
    learns: bool = False,
) -> Balancer:
    return LeastLoad(
        weights,
        draws=DEFAULT.draws,
        bytes_per_connection=DEFAULT.bytes_per_connection if counts_bytes else 0,
        telemetry=telemetry,
        learns=learns,
        time_scale=time_scale,
    )


def _steelyard(
    name: str, *, counts_bytes: bool = True, telemetry: bool = False, learns: bool = False
) -> Contender:
    options: dict[str, object] = {"learn_speed": learns}
    if not counts_bytes:
        options["count_waiting"] = False
    if telemetry:
        options["telemetry"] = {
            "type": "vllm",
            "port": topology.ENGINE_PORT,
            "interval": f"{1000 * setups.REPORT_S:.0f}ms",
        }
    return Contender(
        name,
        partial(_least_load, counts_bytes=counts_bytes, telemetry=telemetry, learns=learns),
        Steelyard(Scheduler.LEAST_LOAD, weighted=not learns, options=options),
        weighted=not learns,
        listens=telemetry,
    )


def _random(weights: Sequence[int], number: int, _time_scale: float) -> Balancer:
    return balancers.HAProxyRandom(weights, number)


def everybody() -> tuple[Contender, ...]:
    """Return all contenders in the order of the tables, the reference first."""
    return (
        Contender(REFERENCE, lambda w, *_: balancers.HAProxyLeastConn(w), HAProxy("leastconn")),
        Contender(
            "HAProxy leastconn, equal weights",
            lambda w, *_: balancers.HAProxyLeastConn(w),
            HAProxy("leastconn", weighted=False),
            weighted=False,
        ),
        Contender(
            "HAProxy random(2)",
            _random,
            HAProxy("random(2)"),
        ),
        Contender(
            "HAProxy random(2), equal weights",
            _random,
            HAProxy("random(2)", weighted=False),
            weighted=False,
        ),
        Contender("nginx least_conn", lambda w, *_: balancers.NginxLeastConn(w), Nginx()),
        Contender("maglev", lambda w, *_: balancers.WeightedMaglev(w), Steelyard(Scheduler.MAGLEV)),
        Contender(
            "round-robin", lambda w, *_: balancers.RoundRobin(w), Steelyard(Scheduler.ROUND_ROBIN)
        ),
        Contender(
            "least-conn",
            lambda w, *_: balancers.LeastConnections(w),
            Steelyard(Scheduler.LEAST_CONN, options={"count_waiting": False}),
        ),
        _steelyard("least-load, connections alone", counts_bytes=False),
        _steelyard("least-load, waiting bytes"),
        _steelyard("least-load, telemetry", telemetry=True),
        _steelyard("least-load, learned", learns=True),
        _steelyard(COMPLETE, telemetry=True, learns=True),
    )
