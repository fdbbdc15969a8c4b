"""Decides the metrics of load: the work in front of the backends, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.metrics.family import Family, Kind, Sample, each_backend
from agent.state.slo import Watch
from agent.state.snapshot import Home, Snapshot

_BACKEND = ("service", "backend")
_OBJECTIVE = ("service", "objective")
_COUNTED = "Absent if the service does not count waiting bytes."


def _skews(snapshot: Snapshot) -> Iterator[Sample]:
    for service in snapshot.services:
        if service.skew is not None:
            yield (service.service.name,), service.skew.value


def _objectives(value: Callable[[Watch], float]) -> Callable[[Snapshot], Iterator[Sample]]:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for service in snapshot.services:
            for watch in service.slo:
                yield (service.service.name, watch.objective.name), value(watch)

    return samples


def _homes(value: Callable[[Home], float | None]) -> Callable[[Snapshot], Iterator[Sample]]:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for service in snapshot.services:
            found = None if service.home is None else value(service.home)
            if found is not None:
                yield (service.service.name,), found

    return samples


LOAD_FAMILIES: tuple[Family, ...] = (
    Family(
        "steelyard_open_connections",
        Kind.GAUGE,
        "Flows of the backend that are not closing: embryonic, acked or established.",
        _BACKEND,
        each_backend(lambda b: b.load.open),
    ),
    Family(
        "steelyard_load_score",
        Kind.GAUGE,
        "The score that the scheduler compares, without the random part that least-load adds to "
        "each draw. The lower it is, the more new flows the backend gets. Absent if the scheduler "
        "compares nothing.",
        _BACKEND,
        each_backend(lambda b: b.load.score),
    ),
    Family(
        "steelyard_waiting_bytes",
        Kind.GAUGE,
        f"Bytes of requests that wait for the first byte of their answer. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.waiting_bytes),
    ),
    Family(
        "steelyard_waiting_requests",
        Kind.GAUGE,
        f"Requests that wait for the first byte of their answer, at most one per flow. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.awaiting),
    ),
    Family(
        "steelyard_unanswered_bytes",
        Kind.GAUGE,
        "Bytes of requests that have waited for more than eight times the 99th percentile of the "
        f"backend's answers, and for at least a minute. They no longer count as load. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.unanswered_bytes),
    ),
    Family(
        "steelyard_answers_total",
        Kind.COUNTER,
        "Requests whose answer has begun: its first byte was seen.",
        _BACKEND,
        each_backend(lambda b: b.counts.answers),
    ),
    Family(
        "steelyard_error_answers_total",
        Kind.COUNTER,
        "Requests that were answered with status 429 or 5xx, in plain HTTP through nat or "
        "fullnat. Absent for other forwarding modes, and if the service does not count waiting "
        "bytes.",
        _BACKEND,
        each_backend(lambda b: b.load.errors),
    ),
    Family(
        "steelyard_hangups_total",
        Kind.COUNTER,
        "Requests that the server ended with FIN or RST instead of an answer, through nat or "
        "fullnat. Absent in the same cases.",
        _BACKEND,
        each_backend(lambda b: b.load.hangups),
    ),
    Family(
        "steelyard_ejections_total",
        Kind.COUNTER,
        "How often the backend was ejected as an outlier since the agent started, because "
        "requests or connections of its clients failed.",
        _BACKEND,
        each_backend(lambda b: b.load.ejections),
    ),
    Family(
        "steelyard_first_byte_seconds",
        Kind.HISTOGRAM,
        f"Time from the last byte of a request to the first byte of its answer. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.first_byte),
    ),
    Family(
        "steelyard_slo_within_seconds",
        Kind.GAUGE,
        "The time within which answers of the service should begin (`slo`). Absent without "
        "objectives.",
        _OBJECTIVE,
        _objectives(lambda watch: watch.objective.within_s),
    ),
    Family(
        "steelyard_slo_budget_ratio",
        Kind.GAUGE,
        "The share of answers that may begin later: 0.05 for `first_byte_p95`.",
        _OBJECTIVE,
        _objectives(lambda watch: watch.objective.budget),
    ),
    Family(
        "steelyard_slo_answers_total",
        Kind.COUNTER,
        "Answers whose first byte was seen since the agent started, counted every ten seconds.",
        _OBJECTIVE,
        _objectives(lambda watch: watch.answers_total),
    ),
    Family(
        "steelyard_slo_late_answers_total",
        Kind.COUNTER,
        "Answers that began later than the objective allows, to within a bucket of half an octave.",
        _OBJECTIVE,
        _objectives(lambda watch: watch.late_total),
    ),
    Family(
        "steelyard_handshake_seconds",
        Kind.HISTOGRAM,
        f"Time from a client's SYN to the ACK that completes the handshake. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.handshake),
    ),
    Family(
        "steelyard_busy_connections",
        Kind.GAUGE,
        "Flows of the backend that wait for an answer, or had a packet in the last 8 to 12 "
        "seconds.",
        _BACKEND,
        each_backend(lambda b: b.load.busy),
    ),
    Family(
        "steelyard_service_skew_ratio",
        Kind.GAUGE,
        "Busy connections of the backend that has the most for its weight, divided by the mean. 1 "
        "is even. Absent if there are too few connections to say.",
        ("service",),
        _skews,
    ),
    Family(
        "steelyard_affinity_escape_bytes",
        Kind.GAUGE,
        "How many more waiting bytes than another backend a client's home may have before the "
        "client's new flows go elsewhere. Absent without affinity.",
        ("service",),
        _homes(lambda home: home.escape_bytes),
    ),
    Family(
        "steelyard_affinity_known_ratio",
        Kind.GAUGE,
        "Share of recent requests that went to a backend that had answered their client before. "
        "Absent without affinity, and if there were no requests.",
        ("service",),
        _homes(lambda home: home.known_share),
    ),
    Family(
        "steelyard_idle_resets_total",
        Kind.COUNTER,
        "Idle connections of the backend that were reset to rebalance.",
        _BACKEND,
        each_backend(lambda b: b.load.idle_resets),
    ),
    Family(
        "steelyard_resets_total",
        Kind.COUNTER,
        "Connections of the backend that were reset because they could not continue: the backend "
        "was gone, or they expired in nat or fullnat.",
        _BACKEND,
        each_backend(lambda b: b.load.resets),
    ),
)
