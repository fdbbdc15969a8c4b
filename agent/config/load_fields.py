"""Writes a service's settings of load and discovery as fields, the inverse of ``telemetry_schema``
and ``discover_schema``.
"""

from __future__ import annotations

from agent.config.durations import format_duration
from agent.model import (
    PERCENTILES,
    Affinity,
    Discover,
    ModelLoaded,
    NodeTelemetry,
    Objective,
    Outlier,
    Override,
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


def discover_fields(discover: Discover) -> dict[str, object]:
    """Return the keys of ``discover``."""
    names = ("file", "ca_file", "token_file", "kubeconfig")
    paths = {key: getattr(discover, key) for key in names}
    written: dict[str, object] = {key: str(path) if path else None for key, path in paths.items()}
    host, port = discover.server or ("", 0)
    server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return written | {
        "http": discover.http,
        "dns": discover.dns,
        "kubernetes": discover.kubernetes,
        "port_name": discover.port_name,
        "interval": format_duration(discover.interval_s),
        "timeout": format_duration(discover.timeout_s),
        "port": discover.port,
        "server": server if discover.server else None,
        "match": dict(discover.match) or None,
        "min": discover.min,
        "max": discover.max,
        "most_removed": discover.most_removed,
        "drain": format_duration(discover.drain_s),
    }


def override_document(override: Override) -> dict[str, object]:
    """Return one entry of ``overrides``."""
    given = {
        "address": str(override.address),
        "port": override.port,
        "weight": override.weight,
        "state": override.admin.value if override.admin else None,
    }
    return {key: value for key, value in given.items() if value is not None}
