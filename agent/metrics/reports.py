"""Decides the metrics of what servers report and of what is learned of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.metrics.family import Family, Kind, Sample, Samples, backends, each_backend
from agent.state.snapshot import LearnedSpeed, Reported, Snapshot
from agent.telemetry.report import GpuReport

_BACKEND = ("service", "backend")
_GPU = (*_BACKEND, "gpu", "uuid")
_REPORTED = "Absent where it is not reported, and while the report is too old to count."
_TOLD = "Absent without a report of the last five minutes."
_LEARNED = "Absent where the speed is not learned."


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
        "Whether the newest report of the backend's engine counts. Absent where nobody asks it.",
        _BACKEND,
        each_backend(lambda b: _fresh(b.load.reported)),
    ),
    Family(
        "steelyard_telemetry_age_seconds",
        Kind.GAUGE,
        "Age of the newest report of the backend's engine. Absent before the first.",
        _BACKEND,
        each_backend(lambda b: _age(b.load.reported)),
    ),
    Family(
        "steelyard_engine_running_requests",
        Kind.GAUGE,
        f"Requests that run in the engine, as it reports. {_REPORTED}",
        _BACKEND,
        _reported(lambda r: r.running),
    ),
    Family(
        "steelyard_engine_waiting_requests",
        Kind.GAUGE,
        f"Requests that wait in the engine, as it reports. {_REPORTED}",
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
        "Prompt tokens that the engine was asked to work through, as it reports. Absent where it "
        "does not say.",
        _BACKEND,
        _reported(lambda r: r.prompt_tokens),
    ),
    Family(
        "steelyard_engine_cached_tokens_total",
        Kind.COUNTER,
        "Prompt tokens that the engine's prefix cache held, as it reports. Absent likewise.",
        _BACKEND,
        _reported(lambda r: r.cached_tokens),
    ),
    Family(
        "steelyard_hot",
        Kind.GAUGE,
        "Whether the backend reports more than it can take: it gets a new flow only where all that "
        "are compared do.",
        _BACKEND,
        each_backend(lambda b: float(b.load.hot)),
    ),
    Family(
        "steelyard_gpu_clock_ratio",
        Kind.GAUGE,
        f"SM clock of a GPU of the backend beside its maximum. {_TOLD}",
        _GPU,
        _gpus(lambda gpu: gpu.clock_share),
    ),
    Family(
        "steelyard_gpu_throttled",
        Kind.GAUGE,
        f"Whether something but its owner's wish slows a GPU of the backend. {_TOLD}",
        _GPU,
        _gpus(lambda gpu: float(bool(gpu.throttled))),
    ),
    Family(
        "steelyard_gpu_failing",
        Kind.GAUGE,
        f"Whether a GPU of the backend is lost, wants a reset or had a hardware error. {_TOLD}",
        _GPU,
        _gpus(lambda g: float(g.lost or g.recovery_action is not None or g.xid is not None)),
    ),
    Family(
        "steelyard_learned_weight_ratio",
        Kind.GAUGE,
        f"What the backend's weight is multiplied by, as its speed was learned. {_LEARNED}",
        _BACKEND,
        _learned(lambda learned: learned.weight_share),
    ),
    Family(
        "steelyard_learned_seconds_per_byte",
        Kind.GAUGE,
        f"What a waiting request byte costs in time to the first byte of an answer. {_LEARNED}",
        _BACKEND,
        _learned(lambda learned: learned.seconds_per_byte),
    ),
    Family(
        "steelyard_learned_confidence_ratio",
        Kind.GAUGE,
        f"How much is known of the backend's speed, 0 to 1. {_LEARNED}",
        _BACKEND,
        _learned(lambda learned: learned.confidence),
    ),
)
