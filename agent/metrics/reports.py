"""Decides the metrics of what servers report and of what is learned about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.metrics.family import Family, Kind, Sample, Samples, backends, each_backend
from agent.state.snapshot import LearnedSpeed, Reported, Snapshot
from agent.telemetry.report import GpuReport

_BACKEND = ("service", "backend")
_GPU = (*_BACKEND, "gpu", "uuid")
_REPORTED = "Absent if it is not reported, and while the report is too old to count."
_SEEN = "Absent without a report in the last five minutes."
_LEARNED = "Absent if the speed is not learned."


def _reported(value: Callable[[Reported], float | None]) -> Samples:
    def of(reported: Reported | None) -> float | None:
        return value(reported) if reported is not None and reported.fresh else None

    return each_backend(lambda backend: of(backend.load.reported))


def _learned(value: Callable[[LearnedSpeed], float | None]) -> Samples:
    def of(learned: LearnedSpeed | None) -> float | None:
        return None if learned is None else value(learned)

    return each_backend(lambda backend: of(backend.load.learned))


def _gpus(value: Callable[[GpuReport], float | None]) -> Samples:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for names, backend in backends(snapshot):
            reported = backend.load.reported
            for gpu in reported.gpus if reported else ():
                found = value(gpu)
                if found is not None:
                    yield (*names, gpu.name, gpu.uuid), found

    return samples


def _fresh(reported: Reported | None) -> float | None:
    return float(reported.fresh) if reported and reported.asked else None


def _age(reported: Reported | None) -> float | None:
    return reported.age_s if reported else None


REPORT_FAMILIES: tuple[Family, ...] = (
    Family(
        "steelyard_telemetry_fresh",
        Kind.GAUGE,
        "Whether the newest report of the backend's engine counts. Absent if the engine is not "
        "asked.",
        _BACKEND,
        each_backend(lambda b: _fresh(b.load.reported)),
    ),
    Family(
        "steelyard_telemetry_age_seconds",
        Kind.GAUGE,
        "Age of the newest report of the backend's engine. Absent before the first report.",
        _BACKEND,
        each_backend(lambda b: _age(b.load.reported)),
    ),
    Family(
        "steelyard_engine_running_requests",
        Kind.GAUGE,
        f"Requests running in the engine, as it reports. {_REPORTED}",
        _BACKEND,
        _reported(lambda r: r.running),
    ),
    Family(
        "steelyard_engine_waiting_requests",
        Kind.GAUGE,
        f"Requests waiting in the engine, as it reports. {_REPORTED}",
        _BACKEND,
        _reported(lambda r: r.waiting),
    ),
    Family(
        "steelyard_engine_kv_usage_ratio",
        Kind.GAUGE,
        f"Share of the KV cache in use, as the engine reports. {_REPORTED}",
        _BACKEND,
        _reported(lambda r: r.kv_usage),
    ),
    Family(
        "steelyard_engine_prompt_tokens_total",
        Kind.COUNTER,
        "Prompt tokens that the engine was asked to process, as it reports. Absent if it does not "
        "report them.",
        _BACKEND,
        _reported(lambda r: r.prompt_tokens),
    ),
    Family(
        "steelyard_engine_cached_tokens_total",
        Kind.COUNTER,
        "Prompt tokens that were in the engine's prefix cache, as it reports. Absent if it does "
        "not report them.",
        _BACKEND,
        _reported(lambda r: r.cached_tokens),
    ),
    Family(
        "steelyard_hot",
        Kind.GAUGE,
        "Whether the backend reports more work than it can take. It gets a new flow only if all "
        "backends compared do so.",
        _BACKEND,
        each_backend(lambda b: float(b.load.hot)),
    ),
    Family(
        "steelyard_gpu_clock_ratio",
        Kind.GAUGE,
        f"SM clock of a GPU of the backend, divided by its maximum. {_SEEN}",
        _GPU,
        _gpus(lambda gpu: gpu.clock_share),
    ),
    Family(
        "steelyard_gpu_throttled",
        Kind.GAUGE,
        f"Whether a GPU of the backend is slowed, other than by a limit its owner set. {_SEEN}",
        _GPU,
        _gpus(lambda gpu: float(bool(gpu.throttled))),
    ),
    Family(
        "steelyard_gpu_failing",
        Kind.GAUGE,
        f"Whether a GPU of the backend is lost, needs a reset or had a hardware error. {_SEEN}",
        _GPU,
        _gpus(lambda g: float(g.lost or g.recovery_action is not None or g.xid is not None)),
    ),
    Family(
        "steelyard_learned_weight_ratio",
        Kind.GAUGE,
        f"Factor of the backend's weight that follows from its learned speed. {_LEARNED}",
        _BACKEND,
        _learned(lambda learned: learned.weight_share),
    ),
    Family(
        "steelyard_learned_seconds_per_byte",
        Kind.GAUGE,
        f"How much a waiting request byte adds to the time to first byte. {_LEARNED}",
        _BACKEND,
        _learned(lambda learned: learned.seconds_per_byte),
    ),
    Family(
        "steelyard_learned_confidence_ratio",
        Kind.GAUGE,
        f"How certain the learned speed is, 0 to 1. {_LEARNED}",
        _BACKEND,
        _learned(lambda learned: learned.confidence),
    ),
)
