"""Decides how an engine's report enters the load score: the queue, and whether it is hot. Pure.

The tiers are those of Prequal (Wydrowski et al., NSDI 2024): a backend that is hot gets a new flow
only if all backends that were drawn are hot. Prequal's rule by quantiles (hot: a queue above the
0.84 quantile) is left out, because of eight servers one is always above it, and every tail was
longer with it (docs/benchmarks-ai.md).
"""

from __future__ import annotations

from agent.model import Protocol, Scheduler, Service, TelemetryKind
from agent.telemetry.report import EngineReport

FRESH_PERIODS = 3  # an older report does not count
HOT_WAITING = 5.0  # requests
HOT_KV = 0.8  # share of the KV cache in use
MOST_RATIO = 4.0  # bound for the ratio of requests to connections, and for its inverse
LEAST_DRAWS, MOST_DRAWS = 2, 8
_DRAWS_STAY = 0.75  # the number of draws stays if the wanted one differs by less
TELLING = 8  # requests plus connections; with fewer, the ratio is not updated
_SMOOTHED_S = 30.0
ONE = 256  # one request, in the packet path's fixed point
MOST = 0xFFFFFFFF
MOST_EXPECTED = 200.0  # the most connections that the bytes of a usual request weigh
_NO_QUEUE = (TelemetryKind.NONE, TelemetryKind.AGENT_CHECK)


def is_scored(service: Service) -> bool:
    """Return whether the load scores of a service need more than what the packet path counts."""
    if service.scheduler is not Scheduler.LEAST_LOAD:
        return False
    return (
        service.rtt_per_connection_s > 0
        or service.telemetry.kind not in _NO_QUEUE
        or (service.count_waiting and service.key.protocol is Protocol.TCP)
    )


def reports_queues(service: Service) -> bool:
    """Return whether a service's engines are asked how many requests they have."""
    return service.telemetry.kind not in _NO_QUEUE


def fixed(connections: float) -> int:
    """Return a queue in the packet path's fixed point."""
    return min(round(connections * ONE), MOST)


def rtt_connections(rtt_s: float | None, rtt_per_connection_s: float) -> float:
    """Return how many connections the round trip to a backend weighs."""
    if rtt_s is None or rtt_per_connection_s <= 0:
        return 0.0
    return rtt_s / rtt_per_connection_s


def is_hot(report: EngineReport) -> bool:
    """Return whether an engine has more requests than it can take."""
    if report.waiting is not None and report.waiting >= HOT_WAITING:
        return True
    return report.kv_usage is not None and report.kv_usage >= HOT_KV


def requests_each(ratio: float | None) -> float:
    """Return for how many requests a connection of a silent backend is taken, if the other engines
    report ``ratio`` times as many requests as connections are open (None: no engine reports).

    Connections are not requests: idle ones are kept open, and some requests come another way.
    Counting them one to one would starve the silent backends, or flood them.
    """
    return 1.0 if ratio is None else min(max(ratio, 1 / MOST_RATIO), MOST_RATIO)


def kappa(request_bytes: float, bytes_per_connection: int) -> int:
    """Return what a connection opened since the report weighs, in 256ths: one connection, plus the
    bytes that its request is expected to have.

    Between a connection's first packet and its request lies a round trip, in which a burst of
    connections would not see the load that it brings. Once the bytes arrive they count by
    themselves, so they count twice until the next report; that does no harm.
    """
    if not bytes_per_connection:
        return ONE
    return round(ONE * (1 + min(request_bytes / bytes_per_connection, MOST_EXPECTED)))


def hidden_connections(
    report: EngineReport, request_bytes: float, own_bytes: int, bytes_per_connection: int
) -> float:
    """Return how many connections the request bytes weigh that wait in the engine and did not come
    through this balancer, but from other balancers or directly from clients.

    ``request_bytes``: the size of a usual request. ``own_bytes``: bytes that came through this
    balancer and were waiting when the report was requested.
    """
    if report.waiting is None or not bytes_per_connection:
        return 0.0
    return max(0.0, report.waiting * request_bytes - own_bytes) / bytes_per_connection


def smoothed(before: float | None, queue: float, connections: float) -> float | None:
    """Return the smoothed ratio of requests to connections one second later. With few of both it
    stays the same.
    """
    if queue + connections < TELLING:
        return before
    now = (queue + 1) / (connections + 1)
    if before is None:
        return now
    return before + (now - before) / _SMOOTHED_S


def draws(configured: int, ratio: float | None, before: int) -> int:
    """Return how many backends to compare, if the engines have ``ratio`` times as many requests as
    this balancer has connections.

    Balancers do not see each other's picks, so they tend to pick the same backend, and the more so
    the more balancers there are. So each must compare fewer: eight if it is alone, two if sixteen
    share the servers.
    """
    if ratio is None:
        return configured
    wanted = MOST_DRAWS / max(ratio, 1e-6)
    if abs(wanted - before) < _DRAWS_STAY and LEAST_DRAWS <= before <= configured:
        return before
    return min(configured, max(LEAST_DRAWS, round(wanted)))
