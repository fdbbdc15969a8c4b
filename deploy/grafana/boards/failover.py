"""Decides what this dashboard shows: who has the VIPs, and if connections would outlive a move."""

from __future__ import annotations

from agent.failover.model import Role
from deploy.grafana.boards.common import WANTED
from deploy.grafana.panels import (
    BAD,
    GOOD,
    OFF,
    Column,
    Dashboard,
    Row,
    States,
    graph,
    table,
    timeline,
)
from deploy.grafana.queries import NODE, PEER, ROUTER, growth, least, most, rate

ROLES = States(
    {
        Role.INIT.value: OFF,
        Role.BACKUP.value: "blue",
        Role.MASTER.value: GOOD,
        Role.FAULT.value: BAD,
    },
    label="role",
)

FAILOVER = Dashboard(
    "failover",
    "failover and flow sync",
    "Who has the VIPs, and whether connections would outlive a move.",
    (
        Row(
            "Roles",
            (
                timeline("Roles", ROLES, ROLES.of("steelyard_failover_role", ROUTER), width=12),
                table(
                    "Problems",
                    {"instance": "Balancer", "router": "Router", "kind": "Kind"},
                    Column("Now", "none", most("steelyard_failover_problem", (*ROUTER, "kind"))),
                    about="`lbctl failover status` says who differs, and what to do.",
                ),
                graph(
                    "Changes of role",
                    "short",
                    growth("steelyard_failover_transitions_total", ("router", "role", "instance")),
                ),
                graph("Priority", "none", most("steelyard_failover_priority", ROUTER)),
                timeline(
                    "The failover process answers",
                    WANTED,
                    least("steelyard_failover_process_up", NODE),
                ),
            ),
        ),
        Row(
            "Adverts",
            (
                graph(
                    "Sent and heard",
                    "pps",
                    rate("steelyard_failover_adverts_sent_total", ROUTER, "sent"),
                    rate("steelyard_failover_adverts_received_total", ROUTER, "heard"),
                ),
                graph(
                    "Refused",
                    "pps",
                    rate("steelyard_failover_adverts_discarded_total", (*ROUTER, "reason")),
                ),
                graph(
                    "Announcements",
                    "pps",
                    rate("steelyard_failover_announcements_total", ROUTER),
                    about="Gratuitous ARP and unsolicited neighbour advertisements.",
                ),
            ),
        ),
        Row(
            "Flow sync",
            (
                timeline("Connected", WANTED, least("steelyard_flow_sync_connected", PEER)),
                graph(
                    "Lag",
                    "s",
                    most("steelyard_flow_sync_lag_seconds", PEER, "is behind, seen"),
                    most("steelyard_flow_sync_behind_seconds", PEER, "is ahead, seen"),
                    about="How old the newest state is that the one behind has entirely.",
                ),
                graph(
                    "Moves that lacked flows",
                    "short",
                    growth("steelyard_failover_moves_lacking_flows_total", NODE),
                    about="Connections may have been cut.",
                ),
                graph(
                    "Flows told", "cps", rate("steelyard_flow_sync_flows_sent_total", PEER, "told")
                ),
                graph(
                    "Flows heard",
                    "cps",
                    rate("steelyard_flow_sync_flows_received_total", PEER, "heard"),
                    rate("steelyard_flow_sync_flows_installed_total", PEER, "in the table"),
                ),
                graph(
                    "Flows that could not be taken",
                    "cps",
                    rate("steelyard_flow_sync_flows_dropped_total", (*PEER, "reason")),
                ),
                graph(
                    "Traffic of flow sync",
                    "bps",
                    rate("steelyard_flow_sync_sent_bytes_total", PEER, "sent", factor=8),
                    rate("steelyard_flow_sync_received_bytes_total", PEER, "received", factor=8),
                ),
                graph(
                    "Packets of unknown flows",
                    "pps",
                    rate("steelyard_flow_sync_packets_total", ("what", *NODE)),
                    about="In mid-connection, of flows that the balancer they came to does not "
                    "know.",
                ),
                graph(
                    "Resyncs and refusals",
                    "short",
                    growth("steelyard_flow_sync_full_resyncs_total", PEER, "all flows anew"),
                    growth("steelyard_flow_sync_refused_total", (*PEER, "reason"), "refused"),
                    growth("steelyard_flow_sync_strangers_total", ("reason", *NODE), "closed"),
                    growth("steelyard_flow_sync_untold_total", NODE, "flows told late"),
                ),
            ),
        ),
    ),
    variables=("instance",),
)
