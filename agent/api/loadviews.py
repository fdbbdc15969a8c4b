"""Decides how the API shows what is reported and learned about a backend."""

from __future__ import annotations

from agent.model import Service
from agent.state.outliers import judges, most
from agent.state.skew import Skew
from agent.state.slo import Watch
from agent.state.snapshot import Home, LearnedSpeed, Reported
from agent.telemetry.report import GpuReport

type Json = dict[str, object]


def reported(service: Service, view: Reported | None) -> Json | None:
    """Return what the engine and the GPUs report, or None if they are not asked."""
    if view is None:
        return None
    return {
        "source": service.telemetry.kind.value,
        "fresh": view.fresh,
        "age_s": _rounded(view.age_s, 3),
        "asked_every_s": _rounded(view.every_s, 3),
        "requests_running": view.running,
        "requests_waiting": view.waiting,
        "kv_cache_used_ratio": _rounded(view.kv_usage, 4),
        "prompt_tokens_total": view.prompt_tokens,
        "cached_tokens_total": view.cached_tokens,
        "cached_ratio": _rounded(view.cached_share, 4),
        "models_in_gpu_memory_ratio": _rounded(view.gpu_share, 4),
        "values_dropped": view.dropped,
        "problem": view.problem,
        "gpus_source": service.node.kind.value,
        "gpus_age_s": _rounded(view.gpus_age_s, 3),
        "gpus_problem": view.gpus_problem,
        "gpus": [_gpu(gpu) for gpu in view.gpus],
    }


def _gpu(gpu: GpuReport) -> Json:
    return {
        "gpu": gpu.name,
        "uuid": gpu.uuid,
        "lost": gpu.lost,
        "clock_ratio": _rounded(gpu.clock_share, 3),
        "throttled_by": list(gpu.throttled),
        "power_capped": gpu.power_capped,
        "xid": gpu.xid,
        "recovery_action": gpu.recovery_action,
        "utilization_ratio": _rounded(gpu.utilization, 3),
        "memory_used_ratio": _rounded(gpu.memory_used_share, 3),
        "temperature_c": gpu.temperature_c,
    }


def skew(view: Skew | None) -> Json | None:
    """Return how unevenly the busy connections are spread, or None if there are too few to say."""
    if view is None:
        return None
    return {
        "ratio": round(view.value, 3),
        "backend": view.backend,
        "busy_connections": view.busy,
        "busy_connections_at_the_mean": round(view.fair, 2),
    }


def learned(view: LearnedSpeed | None) -> Json | None:
    """Return the learned speed, or None if it is not learned."""
    if view is None:
        return None
    return {
        "weight_ratio": round(view.weight_share, 3),
        "bytes_per_connection": view.bytes_per_connection,
        "confidence": round(view.confidence, 3),
        "samples": round(view.samples, 1),
        "us_per_byte": round(view.seconds_per_byte * 1e6, 4),
        "ms_per_connection": round(view.seconds_per_connection * 1e3, 4),
        "base_ms": round(view.base_seconds * 1e3, 3),
    }


def outlier(configured: Service) -> Json | None:
    """Return when backends of a service are ejected, or None if they never are."""
    if not judges(configured):
        return None
    asked = configured.outlier
    return {
        "eject_s": asked.eject_s,
        "threshold": asked.threshold,
        "window_s": asked.window_s,
        "requests": asked.requests,
        "most_ejected": most(asked, len(configured.backends)),
    }


def objective(watch: Watch) -> Json:
    """Return what was promised, and what clients got in the last minute."""
    return {
        "objective": watch.objective.name,
        "percentile": watch.objective.percentile,
        "within_s": watch.objective.within_s,
        "is_missed": watch.is_missed,
        "answers_last_minute": watch.answers,
        "late_share_last_minute": _rounded(watch.late_share, 4),
    }


def affinity(configured: Service, home: Home | None) -> Json | None:
    """Return a service's affinity, or None if new flows go where the load is least."""
    if home is None:
        return None
    asked = configured.affinity
    return {
        "by": asked.by.value,
        "prefix": asked.prefix_bits,
        "escape": "auto" if asked.escape_bytes is None else asked.escape_bytes,
        "escape_bytes": home.escape_bytes,
        "known_ratio": _rounded(home.known_share, 3),
        "new_ms": None if home.new_s is None else round(home.new_s * 1e3, 3),
        "known_ms": None if home.known_s is None else round(home.known_s * 1e3, 3),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
