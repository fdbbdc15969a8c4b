"""Writes a service's settings of load as fields, the inverse of ``telemetry_schema``."""

from __future__ import annotations

from agent.config.durations import format_duration
from agent.model import (
    PERCENTILES,
    Affinity,
    ModelLoaded,
    NodeTelemetry,
    Objective,
    Outlier,
    Rebalance,
    Telemetry,
)


def telemetry_fields(telemetry: Telemetry) -> dict[str, object]:
    """Return the keys of ``telemetry``."""
    return {
        "type": telemetry.kind.value,
        "port": telemetry.port,
        "path": telemetry.path,
        "tls": telemetry.tls,
        "interval": format_duration(telemetry.interval_s),
        "timeout": format_duration(telemetry.timeout_s),
        "running": telemetry.running,
        "waiting": telemetry.waiting,
        "kv_usage": telemetry.kv_usage,
    }


def node_fields(node: NodeTelemetry) -> dict[str, object]:
    """Return the keys of ``node``."""
    return {
        "type": node.kind.value,
        "port": node.port,
        "path": node.path,
        "interval": format_duration(node.interval_s),
        "timeout": format_duration(node.timeout_s),
    }


def model_fields(model: ModelLoaded | None) -> dict[str, object]:
    """Return the keys of ``model``."""
    if model is None:
        return dict.fromkeys(("name", "source", "port", "interval"))
    return {
        "name": model.name,
        "source": model.source.value,
        "port": model.port,
        "interval": format_duration(model.interval_s),
    }


def outlier_fields(outlier: Outlier) -> dict[str, object]:
    """Return the keys of ``outlier``."""
    return {
        "eject": format_duration(outlier.eject_s),
        "threshold": outlier.threshold,
        "window": format_duration(outlier.window_s),
        "requests": outlier.requests,
        "max_ejected": outlier.max_ejected,
    }


def slo_fields(slo: tuple[Objective, ...]) -> dict[str, object]:
    """Return the keys of ``slo``."""
    within_s = {each.name: each.within_s for each in slo}
    names = [Objective(percentile, 0.0).name for percentile in PERCENTILES]
    return {name: format_duration(within_s.get(name, 0.0)) for name in names}


def affinity_fields(affinity: Affinity) -> dict[str, object]:
    """Return the keys of ``affinity``."""
    return {
        "by": affinity.by.value,
        "prefix": affinity.prefix_bits,
        "escape": "auto" if affinity.escape_bytes is None else affinity.escape_bytes,
    }


def rebalance_fields(rebalance: Rebalance) -> dict[str, object]:
    """Return the keys of ``rebalance``."""
    return {
        "rate": rebalance.rate_per_s,
        "idle": format_duration(rebalance.idle_s),
        "skew": rebalance.skew,
    }
