"""Decides what this dashboard shows: what is dropped and why; floods, blocks, lists and limits."""

from __future__ import annotations

from deploy.grafana.boards.common import DROPPED, UNWANTED, WANTED, WRONG
from deploy.grafana.panels import Column, Dashboard, Row, gauges, graph, table, timeline
from deploy.grafana.queries import NODE, SERVICE, Query, above_zero, least, most, rate, total

_REFUSED = DROPPED + '{reason=~"blocked|denied|not-allowed"}'

DROPS = Dashboard(
    "drops",
    "attacks and drops",
    "What is dropped and why; floods, blocks, lists and limits.",
    (
        Row(
            "Drops",
            (
                graph(
                    "By reason",
                    "pps",
                    above_zero(rate(DROPPED, ("reason",))),
                    about="docs/runbook.md says what the reasons mean.",
                    width=12,
                    stacked=True,
                ),
                graph("By service", "pps", rate(DROPPED, SERVICE), width=12, stacked=True),
                table(
                    "In the last hour",
                    {"service": "Service", "reason": "Reason"},
                    Column(
                        "Packets",
                        "short",
                        above_zero(total(f"increase({DROPPED}[1h])", (*SERVICE, "reason"))),
                    ),
                ),
                graph(
                    "Packets for no service",
                    "pps",
                    rate("steelyard_passed_packets_total", ("reason",)),
                    about="They are left to the host.",
                    width=12,
                ),
            ),
        ),
        Row(
            "Floods",
            (
                timeline(
                    "New clients are challenged",
                    UNWANTED,
                    most("steelyard_service_challenges_clients", (*SERVICE, *NODE)),
                    "They have to show that they are at their address.",
                ),
                timeline(
                    "New clients get SYN cookies",
                    UNWANTED,
                    most("steelyard_service_gives_cookies", (*SERVICE, *NODE)),
                ),
                timeline(
                    "Servers are ready for SYN cookies",
                    WANTED,
                    least("steelyard_service_cookies_ready", (*SERVICE, *NODE)),
                    "Of services with `syn_cookies`.",
                ),
                graph(
                    "Challenges",
                    "pps",
                    rate(DROPPED + '{reason="challenged"}', SERVICE, "SYNs challenged"),
                    rate(DROPPED + '{reason="verified"}', SERVICE, "clients verified"),
                    rate(
                        "steelyard_service_cookie_connections_total",
                        SERVICE,
                        "connections by cookie",
                    ),
                    about="By how much the challenges are more than the others: the flood.",
                ),
                graph(
                    "Flows in the table",
                    "short",
                    total("steelyard_flow_table_flows", ("state", *NODE)),
                    about="In a flood of SYNs many are embryonic. They displace no established "
                    "ones.",
                ),
                graph(
                    "Answered by the balancer",
                    "pps",
                    rate("steelyard_service_replied_packets_total", SERVICE, "answered"),
                    rate("steelyard_service_not_replied_packets_total", SERVICE, "too many"),
                    about="RST, and errors of ICMP and ICMPv6.",
                ),
            ),
        ),
        Row(
            "Blocks and lists",
            (
                graph("Blocked prefixes", "none", total("steelyard_guard_blocks", NODE)),
                graph(
                    "Dropped by blocks and lists",
                    "pps",
                    rate(_REFUSED, (*SERVICE, "reason")),
                    rate("steelyard_guard_list_dropped_packets_total", ("list",), "(list)"),
                ),
                graph(
                    "What `guard: dry-run` would drop",
                    "pps",
                    rate("steelyard_guard_would_block_packets_total", NODE, "blocked"),
                    rate("steelyard_guard_would_not_allow_packets_total", NODE, "not allowed"),
                    rate("steelyard_guard_list_would_drop_packets_total", ("list",), "(list)"),
                    rate(
                        "steelyard_limit_would_drop_packets_total",
                        (*SERVICE, "limit"),
                        "(limit)",
                    ),
                ),
                table(
                    "Lists",
                    {"instance": "Balancer", "list": "List"},
                    Column(
                        "Prefixes",
                        "none",
                        most("steelyard_guard_list_prefixes", ("instance", "list")),
                    ),
                    Column(
                        "Cannot be read",
                        "none",
                        most("steelyard_guard_list_broken", ("instance", "list")),
                        WRONG,
                    ),
                ),
                graph(
                    "Nodes that blocks and lists take",
                    "short",
                    most("steelyard_guard_nodes", NODE),
                    about="The room for them is `tables.guard_nodes`.",
                    width=12,
                ),
            ),
        ),
        Row(
            "Threats",
            (
                graph(
                    "Sources that behave unlike all others",
                    "short",
                    most("steelyard_threats", (*SERVICE, "sign")),
                    about="`lbctl threats` names them.",
                ),
                graph(
                    "Sources blocked for it, per minute",
                    "short",
                    rate("steelyard_threats_blocked_total", NODE, factor=60),
                    about="Only of services with `detect: block`.",
                ),
            ),
        ),
        Row(
            "Alerts of Suricata",
            (
                graph(
                    "Alerts per minute, by what became of them",
                    "short",
                    rate("steelyard_alerts_total", ("outcome", "severity"), factor=60),
                    about="`unproven`: somebody else may have sent the packet, so nobody is "
                    "blocked. `bounded`: as many sources as may be are blocked.",
                ),
                graph(
                    "Sources blocked because of an alert, per minute",
                    "short",
                    rate("steelyard_alerts_blocked_total", NODE, factor=60),
                ),
                graph(
                    "Alerts are not acted on",
                    "none",
                    most("steelyard_alerts_broken", NODE),
                    about="1: the file cannot be read, or nobody can be blocked. `lbctl threats` "
                    "says why.",
                ),
            ),
        ),
        Row(
            "Limits and room",
            (
                graph(
                    "Dropped by limits",
                    "pps",
                    rate("steelyard_limit_dropped_packets_total", (*SERVICE, "limit")),
                ),
                graph(
                    "Sources that may begin no flow now",
                    "short",
                    most("steelyard_limit_sources", (*SERVICE, "limit")),
                    about="Because of what they have open or waiting.",
                ),
                gauges(
                    "Source ports of fullnat in use",
                    Query(
                        "steelyard_nat_used_ports / steelyard_nat_ports",
                        "{{source}} to {{server}} on {{instance}}",
                    ),
                ),
            ),
        ),
    ),
)
