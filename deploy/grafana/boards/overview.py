"""Decides what this dashboard shows: what is wrong now, then the traffic of all services."""

from __future__ import annotations

from deploy.grafana.boards.common import DROPPED, SERVICE_STATES, UNWANTED, WANTED, WRONG
from deploy.grafana.panels import FAIR, Column, Dashboard, Row, gauges, graph, stat, table, timeline
from deploy.grafana.queries import (
    NODE,
    SERVICE,
    Query,
    above_zero,
    least,
    most,
    quantiles,
    rate,
    rate_of_flows,
    total,
)

_ALERT = {
    "alertname": "Alert",
    "severity": "Severity",
    "instance": "Balancer",
    "service": "Service",
    "backend": "Backend",
}

_FIRING = 'ALERTS{alertname=~"Steelyard.*", alertstate="firing"}'

# Adds the names of the fleet and of the balancer in it to the version that it runs.
_FLEET_VERSION = Query(
    "max by (fleet, node, instance) (steelyard_fleet_version * on (instance)"
    " group_left (fleet, node) steelyard_fleet_info)"
)

_NOT_UP = 'steelyard_service_backends{state=~"down|ejected|unreachable"}'

OVERVIEW = Dashboard(
    "overview",
    "overview",
    "What is wrong now, then the traffic of all services.",
    (
        Row(
            "What is wrong",
            (
                stat(
                    "Agents that do not answer",
                    'count(up{job="steelyard"}) - sum(up{job="steelyard"})',
                    none="no target of the job steelyard",
                ),
                stat("Interfaces without the program", "sum(1 - steelyard_program_attached)"),
                stat(
                    "Services down",
                    'sum(max by (service) (steelyard_service_state{state="down"}))',
                    "No backend of the service can take new connections.",
                ),
                stat(
                    "Services degraded",
                    'sum(max by (service) (steelyard_service_state{state="degraded"}))',
                    bad=FAIR,
                ),
                stat(
                    "Backends not up",
                    f"sum(max by (service, state) ({_NOT_UP}))",
                    "Down, ejected or unreachable, once for each service that they are in. Those "
                    "that somebody has drained or disabled do not count.",
                    bad=FAIR,
                ),
                stat(
                    "VIP conflicts",
                    "sum(steelyard_vip_conflicts)",
                    "Other hosts that answer for a VIP. Clients reach them past the balancer.",
                ),
                stat("Configurations refused", "sum(steelyard_config_reload_problem)", bad=FAIR),
                stat(
                    "Agents that fail at the kernel",
                    "sum(steelyard_reconcile_problem)",
                    "The last pass could not bring the kernel to the wanted state.",
                ),
                stat(
                    "Failover problems",
                    "sum(steelyard_failover_problem) or 0 * sum(steelyard_failover_process_up)",
                    "Two masters, adverts that are not heard, or a mismatch between nodes.",
                    none="no failover",
                ),
                stat(
                    "Peers without flow sync",
                    "sum(1 - steelyard_flow_sync_connected)",
                    "Connections break if the VIPs move now.",
                    none="no peers",
                ),
                stat(
                    "GPUs failing",
                    "sum(max by (uuid) (steelyard_gpu_failing))",
                    "Lost, waiting for a reset, or with a hardware error.",
                    none="no reports",
                ),
                stat(
                    "Masters",
                    Query(
                        'steelyard_failover_role{role="master"} == 1', "{{router}}: {{instance}}"
                    ),
                    "Which balancer has the VIPs of which virtual router.",
                    none="nobody",
                    by_name=True,
                ),
            ),
            height=4,
        ),
        Row(
            "Alerts and services",
            (
                table(
                    "Alerts that fire",
                    _ALERT,
                    Column("Firing", "none", total(_FIRING, tuple(_ALERT))),
                    about="docs/runbook.md has a section for each.",
                ),
                timeline(
                    "Services",
                    SERVICE_STATES,
                    SERVICE_STATES.of("steelyard_service_state", (*SERVICE, *NODE)),
                    width=12,
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                graph(
                    "New flows", "cps", rate_of_flows("steelyard_service_new_flows_total", SERVICE)
                ),
                graph(
                    "Open flows",
                    "short",
                    most("steelyard_service_flows", SERVICE),
                    about="Acked or established.",
                ),
                graph("Packets", "pps", rate("steelyard_service_packets_total", NODE)),
                graph(
                    "From clients", "bps", rate("steelyard_service_bytes_total", SERVICE, factor=8)
                ),
                graph(
                    "To clients",
                    "bps",
                    rate("steelyard_service_reply_bytes_total", SERVICE, factor=8),
                    about="In nat and fullnat. In the other modes servers answer clients directly.",
                ),
                graph("Drops", "pps", above_zero(rate(DROPPED, (*SERVICE, "reason")))),
            ),
        ),
        Row(
            "Answers and room",
            (
                graph(
                    "Time to first byte",
                    "s",
                    *quantiles("steelyard_first_byte_seconds", SERVICE, 0.5, 0.99),
                    about="From the last byte of a request to the first byte of its answer.",
                ),
                graph(
                    "Waiting request bytes",
                    "bytes",
                    total("steelyard_waiting_bytes", SERVICE),
                    about="Of requests that wait for the first byte of their answer.",
                ),
                gauges(
                    "Flow table in use",
                    Query(
                        "steelyard_flow_table_used_slots / steelyard_flow_table_slots",
                        "{{instance}}",
                    ),
                ),
            ),
        ),
        Row(
            "Fleet",
            (
                graph(
                    "Versions that run",
                    "none",
                    most("steelyard_fleet_version", NODE),
                    about="Of the services that all balancers of a fleet share. While a version is "
                    "being tried, some run a newer one than the others.",
                ),
                table(
                    "Balancers of fleets",
                    {"fleet": "Fleet", "node": "Name", "instance": "Balancer"},
                    Column("Runs version", "none", _FLEET_VERSION),
                    Column("Should run", "none", most("steelyard_fleet_wanted_version", NODE)),
                    Column(
                        "The store answers", "none", least("steelyard_fleet_store_up", NODE), WANTED
                    ),
                    Column("Frozen", "none", most("steelyard_fleet_frozen", NODE), UNWANTED),
                    Column("Refuses it", "none", most("steelyard_fleet_refused", NODE), WRONG),
                    about="`lbctl status` on a balancer says why it does not follow its fleet.",
                    width=16,
                ),
            ),
        ),
        Row(
            "Agents",
            (
                graph(
                    "Warnings and errors since an agent began",
                    "short",
                    total('steelyard_events_total{level=~"warning|error"}', ("event", *NODE)),
                    about="What the agents have said, by kind. `lbctl events` has the lines.",
                    width=12,
                ),
                table(
                    "Balancers",
                    {"instance": "Balancer"},
                    Column(
                        "Runs since",
                        "dateTimeFromNow",
                        most("1000 * steelyard_agent_start_time_seconds", NODE),
                    ),
                    Column(
                        "Changes that its file does not have",
                        "none",
                        most("steelyard_config_changes_since_file", NODE),
                    ),
                    Column("Defects", "none", most("steelyard_agent_defects_total", NODE)),
                    about="Defects are passes that an error of the agent's own has ended.",
                ),
            ),
        ),
    ),
)
