"""Decides what this dashboard shows: the backends of services."""

from __future__ import annotations

from agent.model import BackendState
from deploy.grafana.boards.common import DROPPED, SERVICE_STATES
from deploy.grafana.panels import (
    BAD,
    FAIR,
    GOOD,
    OFF,
    Column,
    Dashboard,
    Row,
    States,
    graph,
    heatmap,
    table,
    timeline,
)
from deploy.grafana.queries import (
    BACKEND,
    NODE,
    OBJECTIVE,
    SERVICE,
    above_zero,
    growth,
    least,
    mean,
    most,
    quantiles,
    rate,
    rate_of_flows,
    ratio,
    total,
)

BACKEND_STATES = States(
    {
        BackendState.UP.value: GOOD,
        BackendState.DRAIN.value: "blue",
        BackendState.MAINTENANCE.value: OFF,
        BackendState.CHECKING.value: "yellow",
        BackendState.DOWN.value: BAD,
        BackendState.EJECTED.value: FAIR,
        BackendState.UNREACHABLE.value: "purple",
    }
)

SERVICES = Dashboard(
    "service",
    "services",
    "The backends of services: states, shares, times of answers, and what was dropped.",
    (
        Row(
            "States",
            (
                timeline(
                    "Services",
                    SERVICE_STATES,
                    SERVICE_STATES.of("steelyard_service_state", (*SERVICE, *NODE)),
                ),
                timeline(
                    "Backends",
                    BACKEND_STATES,
                    BACKEND_STATES.of("steelyard_backend_state", (*BACKEND, *NODE)),
                    width=16,
                ),
                table(
                    "Backends now",
                    {"service": "Service", "backend": "Backend"},
                    Column("Up on balancers", "none", total("steelyard_backend_up", BACKEND)),
                    Column("Weight", "none", most("steelyard_backend_configured_weight", BACKEND)),
                    Column(
                        "Effective weight",
                        "none",
                        most("steelyard_backend_effective_weight", BACKEND),
                    ),
                    Column(
                        "Expected share",
                        "percentunit",
                        mean("steelyard_backend_expected_share_ratio", BACKEND),
                    ),
                    Column("Open connections", "none", most("steelyard_open_connections", BACKEND)),
                    Column(
                        "Health check takes",
                        "s",
                        most("steelyard_backend_health_check_latency_seconds", BACKEND),
                    ),
                    Column(
                        "In its state since",
                        "dateTimeFromNow",
                        most("1000 * steelyard_backend_state_changed_timestamp_seconds", BACKEND),
                    ),
                    Column(
                        "Certificate expires",
                        "dateTimeFromNow",
                        least(
                            "1000 * steelyard_backend_certificate_expires_timestamp_seconds",
                            BACKEND,
                        ),
                    ),
                    width=24,
                ),
                table(
                    "Sources of backends",
                    {"service": "Service"},
                    Column(
                        "Targets", "none", most("steelyard_service_discovered_targets", SERVICE)
                    ),
                    Column(
                        "Balancers without a usable answer",
                        "none",
                        total("steelyard_service_discovery_failing", SERVICE),
                    ),
                    Column(
                        "Answer in use",
                        "dateTimeFromNow",
                        least(
                            "1000 * steelyard_service_discovery_answered_timestamp_seconds",
                            SERVICE,
                        ),
                    ),
                    width=24,
                ),
            ),
        ),
        Row(
            "Shares",
            (
                graph(
                    "Expected share of new flows",
                    "percentunit",
                    mean("steelyard_backend_expected_share_ratio", BACKEND),
                    about="By the weights in force.",
                    stacked=True,
                ),
                graph(
                    "Actual share of new flows",
                    "percentunit",
                    ratio(
                        rate_of_flows("steelyard_backend_new_flows_total", BACKEND),
                        rate_of_flows("steelyard_service_new_flows_total", SERVICE),
                        "on (service) group_left ()",
                    ),
                    about="Of all balancers together. Few or long flows scatter: that is no fault.",
                    stacked=True,
                ),
                graph(
                    "Weights",
                    "none",
                    most("steelyard_backend_effective_weight", BACKEND, "effective"),
                    most("steelyard_backend_configured_weight", BACKEND, "configured"),
                    about="They differ in slow start, by learned speed, and where GPUs throttle.",
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                graph(
                    "New flows", "cps", rate_of_flows("steelyard_backend_new_flows_total", BACKEND)
                ),
                graph(
                    "Open connections",
                    "short",
                    most("steelyard_open_connections", BACKEND),
                    about="Embryonic, acked or established.",
                ),
                graph(
                    "From clients", "bps", rate("steelyard_backend_bytes_total", BACKEND, factor=8)
                ),
                graph(
                    "Begun and established",
                    "cps",
                    rate_of_flows("steelyard_service_new_flows_total", SERVICE, "begun"),
                    rate_of_flows(
                        "steelyard_service_established_flows_total", SERVICE, "established"
                    ),
                    about="Flows that begin and are never established: a flood, or servers whose "
                    "answers do not reach clients.",
                ),
                graph(
                    "Clients that wait for a backend",
                    "none",
                    total("steelyard_service_held_clients", SERVICE),
                    about="As no backend is usable. Only services with `no_backend: hold`.",
                ),
                graph(
                    "Handshakes",
                    "s",
                    *quantiles("steelyard_handshake_seconds", SERVICE, 0.5, 0.99),
                    about="From a client's SYN to the ACK with which it ends the handshake.",
                ),
                graph(
                    "Skew",
                    "none",
                    most("steelyard_service_skew_ratio", SERVICE),
                    about="Busy connections of the backend that has most by its weight, beside the "
                    "mean: 1 is even.",
                ),
            ),
        ),
        Row(
            "Answers",
            (
                graph(
                    "Time to first byte",
                    "s",
                    *quantiles("steelyard_first_byte_seconds", SERVICE, 0.5, 0.95, 0.99),
                    about="From the last byte of a request to the first byte of its answer.",
                ),
                graph(
                    "Time to first byte by backend",
                    "s",
                    *quantiles("steelyard_first_byte_seconds", BACKEND, 0.95),
                ),
                heatmap("Times to first byte", "steelyard_first_byte_seconds"),
                graph(
                    "Late answers",
                    "percentunit",
                    ratio(
                        rate("steelyard_slo_late_answers_total", OBJECTIVE),
                        rate("steelyard_slo_answers_total", OBJECTIVE),
                    ),
                    most("steelyard_slo_budget_ratio", OBJECTIVE, "may be late"),
                    about="Of services with an objective (`slo`): the share of answers that begin "
                    "later than it says, and the share that may.",
                    top=1.0,
                ),
                graph("Waiting request bytes", "bytes", total("steelyard_waiting_bytes", BACKEND)),
                graph("Waiting requests", "short", total("steelyard_waiting_requests", BACKEND)),
                graph(
                    "Unanswered request bytes",
                    "bytes",
                    total("steelyard_unanswered_bytes", BACKEND),
                    about="They have waited far longer than the slowest answers take, and weigh no "
                    "more.",
                ),
                graph("Answers", "reqps", rate("steelyard_answers_total", BACKEND)),
                graph(
                    "Requests that failed",
                    "reqps",
                    rate("steelyard_error_answers_total", BACKEND, "429 or 5xx"),
                    rate("steelyard_hangups_total", BACKEND, "no answer"),
                    about="In nat and fullnat. Status codes are seen in plain HTTP only.",
                ),
                graph(
                    "Ejections",
                    "short",
                    growth("steelyard_ejections_total", BACKEND),
                    about="Backends that get no new flows for a while because clients fail there.",
                ),
            ),
        ),
        Row(
            "Scaling",
            (
                graph(
                    "Wanted and usable backends",
                    "short",
                    most("steelyard_service_scale_wanted_backends", SERVICE, "wanted"),
                    most("steelyard_service_scale_usable_backends", SERVICE, "usable"),
                    most("steelyard_service_scale_draining_backends", SERVICE, "draining"),
                    about="Wanted: by the load that the balancer which sees most sees (`scale`). "
                    "The rules in steelyard-scale.rules.yml add up what all balancers see.",
                ),
                graph(
                    "Connections",
                    "short",
                    most("steelyard_service_scale_connections", SERVICE),
                    about="Acked or established, at all backends.",
                ),
                graph(
                    "Requests at the engines",
                    "short",
                    most("steelyard_service_scale_engine_requests", SERVICE, "running or waiting"),
                    most("steelyard_service_scale_engine_queued_requests", SERVICE, "waiting"),
                    about="Silent engines count as the mean of the others.",
                ),
            ),
        ),
        Row(
            "Drops and resets",
            (
                graph(
                    "Drops by reason",
                    "pps",
                    above_zero(rate(DROPPED, (*SERVICE, "reason"))),
                    about="docs/runbook.md says what the reasons mean.",
                ),
                graph(
                    "Connections reset",
                    "cps",
                    rate("steelyard_resets_total", BACKEND, "lost"),
                    rate("steelyard_idle_resets_total", BACKEND, "idle"),
                    about="Lost: the backend was gone, or the connection had expired. Idle: reset "
                    "to rebalance.",
                ),
                graph(
                    "Flows without a place in the table",
                    "cps",
                    rate("steelyard_service_unrecorded_flows_total", SERVICE),
                    about="A change of backends can move them.",
                ),
            ),
        ),
    ),
)
