"""Decides the metrics of load: what backends have in front of them, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.metrics.family import Family, Kind, Sample, each_backend
from agent.state.slo import Watch
from agent.state.snapshot import Home, Snapshot

_BACKEND = ("service", "backend")
_OBJECTIVE = ("service", "objective")
_COUNTED = "Absent where the service does not count waiting bytes."


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
        "What the scheduler compares, without the random part that least-load adds to each draw; "
        "the lower, the more new flows. Absent where it compares nothing.",
        _BACKEND,
        each_backend(lambda b: b.load.score),
    ),
    Family(
        "steelyard_waiting_bytes",
        Kind.GAUGE,
        f"Bytes of the requests that wait for the first byte of their answer. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.waiting_bytes),
    ),
    Family(
        "steelyard_waiting_requests",
        Kind.GAUGE,
        f"Requests that wait for the first byte of their answer, at most one a flow. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.awaiting),
    ),
    Family(
        "steelyard_unanswered_bytes",
        Kind.GAUGE,
        "Bytes of the requests that have waited for eight times the slowest hundredth of the "
        f"backend's answers, and a minute at least: they weigh no more. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.unanswered_bytes),
    ),
    Family(
        "steelyard_answers_total",
        Kind.COUNTER,
        "Requests whose answer's first byte was seen.",
        _BACKEND,
        each_backend(lambda b: b.counts.answers),
    ),
    Family(
        "steelyard_error_answers_total",
        Kind.COUNTER,
        "Requests that were answered with status 429 or 5xx, in plain HTTP through nat or fullnat. "
        "Absent elsewhere, and where the service does not count waiting bytes.",
        _BACKEND,
        each_backend(lambda b: b.load.errors),
    ),
    Family(
        "steelyard_hangups_total",
        Kind.COUNTER,
        "Requests that the server left without an answer, by FIN or RST, through nat or fullnat. "
        "Absent likewise.",
        _BACKEND,
        each_backend(lambda b: b.load.hangups),
    ),
    Family(
        "steelyard_ejections_total",
        Kind.COUNTER,
        "How often the backend was ejected as an outlier, because its clients failed there, since "
        "the agent started.",
        _BACKEND,
        each_backend(lambda b: b.load.ejections),
    ),
    Family(
        "steelyard_first_byte_seconds",
        Kind.HISTOGRAM,
        f"From the last byte of a request to the first byte of its answer. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.first_byte),
    ),
    Family(
        "steelyard_slo_within_seconds",
        Kind.GAUGE,
        "The time in which answers of the service are to begin (`slo`). Absent without.",
        _OBJECTIVE,
        _objectives(lambda watch: watch.objective.within_s),
    ),
    Family(
        "steelyard_slo_budget_ratio",
        Kind.GAUGE,
        "The share of answers that may be later: 0.05 of `first_byte_p95`.",
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
        "Those of them that began later than the objective, to within a bucket of half an octave.",
        _OBJECTIVE,
        _objectives(lambda watch: watch.late_total),
    ),
    Family(
        "steelyard_handshake_seconds",
        Kind.HISTOGRAM,
        f"From a client's SYN to the ACK with which it ends the handshake. {_COUNTED}",
        _BACKEND,
        each_backend(lambda b: b.load.handshake),
    ),
    Family(
        "steelyard_busy_connections",
        Kind.GAUGE,
        "Flows of the backend that await an answer, or had a packet in the last 8 to 12 seconds.",
        _BACKEND,
        each_backend(lambda b: b.load.busy),
    ),
    Family(
        "steelyard_service_skew_ratio",
        Kind.GAUGE,
        "Busy connections of the backend that has most by its weight, beside the mean: 1 is even. "
        "Absent where there are too few to say.",
        ("service",),
        _skews,
    ),
    Family(
        "steelyard_affinity_escape_bytes",
        Kind.GAUGE,
        "Waiting bytes that a client's home may have more than another backend before its new "
        "flows go elsewhere. Absent without affinity.",
        ("service",),
        _homes(lambda home: home.escape_bytes),
    ),
    Family(
        "steelyard_affinity_known_ratio",
        Kind.GAUGE,
        "Requests of late that came to a backend that had answered their client before, as a "
        "share of all. Absent without affinity, and where none came.",
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
        "Connections of the backend that were reset because they could not go on: it was gone, or "
        "they expired in nat or fullnat.",
        _BACKEND,
        each_backend(lambda b: b.load.resets),
    ),
)
