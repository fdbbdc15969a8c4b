"""Decides the metrics by which a scaler outside starts and stops servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.metrics.family import Family, Kind, Sample, Samples
from agent.model import Signal
from agent.state.scaling import Scaling
from agent.state.snapshot import Snapshot

_SERVICE = ("service",)
_ALL = "Over all backends, whatever their state."
_TARGETS = "Absent without targets (`scale`)."


def _each(value: Callable[[Scaling], float | None]) -> Samples:
    """Return a sample for every service that has the value."""

    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for service in snapshot.services:
            found = value(service.scaling)
            if found is not None:
                yield (service.service.name,), found

    return samples


def _load(signal: Signal) -> Samples:
    return _each(lambda scaling: scaling.seen.load.get(signal))


def _targets(snapshot: Snapshot) -> Iterator[Sample]:
    for service in snapshot.services:
        for signal, target in service.scaling.asked.targets.items():
            yield (service.service.name, signal.value), target


def _first_byte(snapshot: Snapshot) -> Iterator[Sample]:
    for service in snapshot.services:
        p95_s = service.scaling.seen.first_byte_p95_s
        if p95_s is not None:
            yield (service.service.name, "0.95"), p95_s


def _min(scaling: Scaling) -> float | None:
    return scaling.asked.min if scaling.asked.targets else None


def _max(scaling: Scaling) -> float | None:
    return scaling.asked.max if scaling.asked.targets else None


SCALE_FAMILIES: tuple[Family, ...] = (
    Family(
        "steelyard_service_scale_wanted_backends",
        Kind.GAUGE,
        "How many backends the load that this balancer sees takes. Absent without targets "
        "(`scale`), and while no load that has one is known.",
        _SERVICE,
        _each(lambda scaling: scaling.wanted),
    ),
    Family(
        "steelyard_service_scale_usable_backends",
        Kind.GAUGE,
        "Backends that are up and may get new flows now.",
        _SERVICE,
        _each(lambda scaling: scaling.seen.usable),
    ),
    Family(
        "steelyard_service_scale_draining_backends",
        Kind.GAUGE,
        "Backends that drain: they keep their flows, and get no new ones.",
        _SERVICE,
        _each(lambda scaling: scaling.seen.draining),
    ),
    Family(
        "steelyard_service_scale_connections",
        Kind.GAUGE,
        f"Flows that are acked or established now. {_ALL}",
        _SERVICE,
        _load(Signal.CONNECTIONS),
    ),
    Family(
        "steelyard_service_scale_waiting_bytes",
        Kind.GAUGE,
        f"Bytes of requests that wait for the first byte of their answer. {_ALL} Absent if the "
        "service does not count waiting bytes.",
        _SERVICE,
        _load(Signal.WAITING_BYTES),
    ),
    Family(
        "steelyard_service_scale_engine_requests",
        Kind.GAUGE,
        "Requests that run or wait in the engines, as they report; a backend that does not report "
        "counts as the mean of the others. Absent if more than half do not report. Every balancer "
        "reads the same reports.",
        _SERVICE,
        _load(Signal.REQUESTS),
    ),
    Family(
        "steelyard_service_scale_engine_queued_requests",
        Kind.GAUGE,
        "Of these, the requests that wait. Absent in the same cases.",
        _SERVICE,
        _load(Signal.QUEUED),
    ),
    Family(
        "steelyard_service_scale_first_byte_seconds",
        Kind.GAUGE,
        "The time within which 95 % of the last minute's answers began (quantile 0.95). Absent if "
        "there were none, and if the service does not count waiting bytes.",
        ("service", "quantile"),
        _first_byte,
    ),
    Family(
        "steelyard_service_scale_misses_objective",
        Kind.GAUGE,
        "1 while the service misses an objective (`slo`). Absent without objectives.",
        _SERVICE,
        _each(lambda scaling: scaling.seen.misses_objective),
    ),
    Family(
        "steelyard_service_scale_target",
        Kind.GAUGE,
        f"How much of a load one backend should have. {_TARGETS}",
        ("service", "signal"),
        _targets,
    ),
    Family(
        "steelyard_service_scale_min_backends",
        Kind.GAUGE,
        f"The wanted number of backends is never lower. {_TARGETS}",
        _SERVICE,
        _each(_min),
    ),
    Family(
        "steelyard_service_scale_max_backends",
        Kind.GAUGE,
        f"The wanted number of backends is never higher. {_TARGETS}",
        _SERVICE,
        _each(_max),
    ),
)
