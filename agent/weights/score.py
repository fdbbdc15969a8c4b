"""Decides what an engine's report makes of the load score: the queue, and whether it is hot. Pure.

The tiers are those of Prequal (Wydrowski et al., NSDI 2024): a backend that is hot gets a new
flow only if all that were drawn are. Its rule by quantiles (hot: a queue above the 0.84 quantile)
is left out: of eight servers one is always above it, and every tail was longer with it
(docs/benchmarks-ai.md).
"""

from __future__ import annotations

from agent.model import Protocol, Scheduler, Service, TelemetryKind
from agent.telemetry.report import EngineReport

FRESH_PERIODS = 3  # an older report does not count
HOT_WAITING = 5.0  # requests
HOT_KV = 0.8  # share of the KV cache in use
MOST_RATIO = 4.0  # of requests to connections, and the other way round
LEAST_DRAWS, MOST_DRAWS = 2, 8
_DRAWS_STAY = 0.75
TELLING = 8  # requests and connections, together
_SMOOTHED_S = 30.0
ONE = 256  # a request
MOST = 0xFFFFFFFF
MOST_EXPECTED = 200.0  # connections that the bytes of a usual request weigh, at most
_NO_QUEUE = (TelemetryKind.NONE, TelemetryKind.AGENT_CHECK)


def is_scored(service: Service) -> bool:
    """Whether its load scores have more in them than what the packet path counts."""
    if service.scheduler is not Scheduler.LEAST_LOAD:
        return False
    return (
        service.rtt_per_connection_s > 0
        or service.telemetry.kind not in _NO_QUEUE
        or (service.count_waiting and service.key.protocol is Protocol.TCP)
    )


def tells_queues(service: Service) -> bool:
    """Whether its engines are asked how many requests they have."""
    return service.telemetry.kind not in _NO_QUEUE


def fixed(connections: float) -> int:
    """A queue as the packet path has it."""
    return min(round(connections * ONE), MOST)


def rtt_connections(rtt_s: float | None, rtt_per_connection_s: float) -> float:
    """How many connections the way to a backend weighs."""
    if rtt_s is None or rtt_per_connection_s <= 0:
        return 0.0
    return rtt_s / rtt_per_connection_s


def is_hot(report: EngineReport) -> bool:
    """Whether it has more than it can take."""
    if report.waiting is not None and report.waiting >= HOT_WAITING:
        return True
    return report.kv_usage is not None and report.kv_usage >= HOT_KV


def requests_each(ratio: float | None) -> float:
    """How many requests a connection of a silent backend is taken for, where the others' engines
    report ``ratio`` times as many requests as connections are open (None: nobody reports).

    Connections are not requests: kept ones are idle, and some requests come another way. Counted
    as they are, they would starve the backends that are silent, or drown them.
    """
    return 1.0 if ratio is None else min(max(ratio, 1 / MOST_RATIO), MOST_RATIO)


def kappa(request_bytes: float, bytes_per_connection: int) -> int:
    """What a connection opened since the report weighs, in 256ths: one, and the bytes that its
    request will have.

    Between a connection's first packet and its request lies a round trip, in which a burst would
    see nothing of what it brings. Once the bytes are there they count by themselves, so for the
    rest of the report's time they count twice: that does no harm.
    """
    if not bytes_per_connection:
        return ONE
    return round(ONE * (1 + min(request_bytes / bytes_per_connection, MOST_EXPECTED)))


def hidden_connections(
    report: EngineReport, request_bytes: float, own_bytes: int, bytes_per_connection: int
) -> float:
    """What the request bytes weigh that wait in the engine and did not come through here: of
    other balancers, or of clients that ask the server itself. ``request_bytes``: of a usual
    request; ``own_bytes``: those that came through here and waited when it was asked.
    """
    if report.waiting is None or not bytes_per_connection:
        return 0.0
    return max(0.0, report.waiting * request_bytes - own_bytes) / bytes_per_connection


def smoothed(before: float | None, queue: float, connections: float) -> float | None:
    """The ratio of requests to connections, a second on; few of either say nothing."""
    if queue + connections < TELLING:
        return before
    now = (queue + 1) / (connections + 1)
    if before is None:
        return now
    return before + (now - before) / _SMOOTHED_S


def draws(configured: int, ratio: float | None, before: int) -> int:
    """How many backends to compare, where ``ratio`` times as many requests are in the engines as
    connections of this balancer.

    Balancers that do not see each other's picks run to the same backend, the more of them the
    surer: each must look at fewer. Eight for one alone, two where sixteen share the servers.
    """
    if ratio is None:
        return configured
    wanted = MOST_DRAWS / max(ratio, 1e-6)
    if abs(wanted - before) < _DRAWS_STAY and LEAST_DRAWS <= before <= configured:
        return before
    return min(configured, max(LEAST_DRAWS, round(wanted)))
