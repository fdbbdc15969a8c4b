"""Makes docs/metrics.md from the table of metrics."""

from __future__ import annotations

from pathlib import Path

from agent.metrics.failover import FAILOVER_FAMILIES
from agent.metrics.families import BASIC, FAMILIES
from agent.metrics.family import Family
from agent.metrics.load import LOAD_FAMILIES
from agent.metrics.reports import REPORT_FAMILIES
from agent.metrics.scaling import SCALE_FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

_SECTIONS = (
    (
        "Agent",
        (
            "steelyard_build_",
            "steelyard_agent_",
            "steelyard_config_",
            "steelyard_reconcile_",
            "steelyard_events_",
        ),
    ),
    (
        "Program and flow table",
        (
            "steelyard_program_",
            "steelyard_vip_",
            "steelyard_flow_table_",
            "steelyard_passed_",
            "steelyard_nat_",
            "steelyard_trace_",
        ),
    ),
    (
        "Blocks, lists, limits, threats and alerts",
        ("steelyard_guard_", "steelyard_limit_", "steelyard_threats", "steelyard_alerts_"),
    ),
    ("Services", ("steelyard_service_",)),
    ("Backends", ("steelyard_backend_",)),
    ("Load and times", tuple(family.name for family in LOAD_FAMILIES)),
    ("Reports and learned speed", tuple(family.name for family in REPORT_FAMILIES)),
    ("Scaling", tuple(family.name for family in SCALE_FAMILIES)),
    ("Failover and flow sync", tuple(family.name for family in FAILOVER_FAMILIES)),
    ("Fleet", ("steelyard_fleet_",)),
)

_GROUPED = frozenset(
    family.name
    for family in (*LOAD_FAMILIES, *REPORT_FAMILIES, *SCALE_FAMILIES, *FAILOVER_FAMILIES)
)

_INTRODUCTION = """\
<!-- Made from agent/metrics/ by `make docs`; do not edit. -->
# Metrics

The agent serves Prometheus text at `/metrics`, on the address that `metrics` names in the
configuration (`127.0.0.1:9117` unless set) and on its Unix socket. Beside it, `/healthz` answers
200 when the program is attached and 503 when it is not, and `/v1/scale` and `/v1/scale/SERVICE`
have what a scaler needs to know, as JSON ([scaling](scaling.md)).

Counters live in the kernel's tables: they continue while the agent is stopped, and a restart of the
agent does not reset them. The series of a service or backend end when it is removed.

With `metrics_backends: basic`, a single backend has only the following metrics, and only one sample
of `steelyard_backend_state`, for the state that it is in: {basic}. With `none` it has no metrics of
its own. Answers are compressed with gzip for scrapers that accept it.

Alerts and dashboards that use these metrics: [observe](observe.md#dashboards-and-alerts).
"""


def page() -> str:
    """Return the whole page."""
    basic = ", ".join(f"`{family.name}`" for family in FAMILIES if family.name in BASIC)
    parts = [_INTRODUCTION.format(basic=basic)]
    for title, prefixes in _SECTIONS:
        rows = "\n".join(_row(f) for f in FAMILIES if _belongs(f.name, prefixes))
        parts.append(f"## {title}\n\n| Metric | Type | Labels | Meaning |\n|-|-|-|-|\n{rows}\n")
    return "\n".join(parts)


def _belongs(name: str, prefixes: tuple[str, ...]) -> bool:
    return name in prefixes if name in _GROUPED else name.startswith(prefixes)


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels) or "none"
    return f"| `{family.name}` | {family.kind.value} | {labels} | {family.help} |"


def files() -> dict[Path, str]:
    """Return the text of each file."""
    return {PAGE: page()}
