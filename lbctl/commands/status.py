"""``lbctl status``: the balancer on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.errors import AgentUnreachableError, ApiError
from lbctl.environment import Environment, pass_environment
from lbctl.options import agent_options, watch_option
from lbctl.output import facts, render, watch

if TYPE_CHECKING:
    from rich.text import Text


@click.command()
@watch_option
@agent_options
@pass_environment
def status(env: Environment, watch_s: float | None) -> None:
    """Show the balancer on one screen: what is wrong, agent, data plane, rates, services.

    \b
    Examples:
      lbctl status
      lbctl status --watch
      lbctl status -o json | jq .dataplane.hook
    """

    def once() -> str:
        data = env.agent().get("/v1/status")
        return render(env, data, lambda data: [*_view(env, data), *_services(env)])

    watch(env, watch_s, once)


def _view(env: Environment, data: Mapping[str, Any]) -> list[object]:
    from rich.text import Text

    from agent.api.sentences import problems
    from lbctl.views import fleet_facts, rates_line, tier_facts

    agent, plane = data["agent"], data["dataplane"]
    pairs: list[tuple[str, object]] = [
        *(("PROBLEM", Text(text, "bold red")) for text in problems(data)),
        ("balancer", headline(agent, plane)),
        ("services", _tally(data["services"])),
        ("backends", _tally(data["backends"])),
        ("traffic", rates_line(data["rates"])),
        *_threats(data.get("threats", 0)),
        *_failover(data["failover"]),
        *tier_facts(data.get("tier")),
        *fleet_facts(data.get("fleet")),
        ("flow table", _flow_table(plane["flow_table"])),
        *_nat(plane["nat_ports"]),
        ("passed", _passed(plane["passed_packets"])),
        ("hook", _hook(plane)),
        ("program", _program(plane)),
        ("features", " ".join(plane["features"])),
        ("agent", _agent(agent)),
        ("config", _config(agent)),
        *_recent(data.get("events_last_hour", {})),
    ]
    return facts(env, pairs)


def _services(env: Environment) -> list[object]:
    """Return the services, the worst first; none if the agent is too old to list them."""
    from agent.humanise import exact
    from lbctl.views import service_table

    try:
        found = env.agent().get("/v1/list/services", {"sort": "state", "limit": SHOWN_SERVICES})
    except AgentUnreachableError:
        raise
    except ApiError:
        return []
    if not found["services"]:
        return []
    shown, every = len(found["services"]), found["total"]
    more = [f"{shown} of {exact(every)} services; lbctl top has all"] if shown < every else []
    return ["", service_table(found["services"]), *more]


SHOWN_SERVICES = 10


def _recent(counts: Mapping[str, int]) -> list[tuple[str, object]]:
    """Return the number of errors and warnings in the last hour, if there were any."""
    from agent.humanise import plural

    shown = [plural(counts[level], level) for level in ("error", "warning") if counts.get(level)]
    hint = "lbctl events --since 1h --level warning"
    return [("last hour", f"{', '.join(shown)}: {hint}")] if shown else []


def _threats(sources: int) -> list[tuple[str, object]]:
    from agent.humanise import plural

    text = f"{plural(sources, 'source')} unlike all others: lbctl threats"
    return [("threats", text)] if sources else []


HOOKS = {
    "native": "native XDP",
    "generic": "generic XDP",
    "tc": "tc ingress",
    "external": "called by another program",
}


def headline(agent: Mapping[str, Any], plane: Mapping[str, Any]) -> Text:
    """Return which balancer it is, and whether and where it balances."""
    from rich.text import Text

    where = ", ".join((plane["interface"], *plane["backend_interfaces"]))
    if not plane["attached"]:
        return Text(f"{agent['name']}: NOT attached to {where}", "bold red")
    hook = HOOKS.get(plane["hook"], plane["hook"])
    if troubles := plane.get("link_problems"):
        return Text.assemble(
            f"{agent['name']}: ",
            ("; ".join(troubles), "bold red"),
            f", attached to {where} ({hook}, driver {plane['driver']})",
        )
    return Text.assemble(
        f"{agent['name']}: ",
        ("balancing", "green"),
        f" on {where} ({hook}, driver {plane['driver']})",
    )


def _tally(counts: Mapping[str, int]) -> object:
    from rich.text import Text

    from lbctl.views import STATE_STYLES

    text = Text(str(counts["total"]))
    separator = ": "
    for state, number in counts.items():
        if state != "total" and number:
            text.append(separator)
            text.append(f"{number} {state}", STATE_STYLES.get(state, ""))
            separator = ", "
    return text


def _flow_table(table: Mapping[str, Any]) -> str:
    from agent.humanise import count, percent

    states = ", ".join(
        f"{count(table[state])} {state}"
        for state in ("established", "acked", "embryonic", "closing")
        if table[state] or state == "established"
    )
    return f"{states}; {percent(table['used_share'])}% of {count(table['slots'])} slots in use"


def _failover(data: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return who has the VIPs, and the state of flow sync; nothing without an instance."""
    if not data["configured"]:
        return []
    from lbctl.failoverviews import summary_lines

    return [
        ("failover" if number == 0 else "", line) for number, line in enumerate(summary_lines(data))
    ]


def _nat(ports: Sequence[Mapping[str, Any]]) -> list[tuple[str, object]]:
    """Return, for each source address of fullnat, the server with the most ports in use."""
    from agent.humanise import count, percent

    fullest: dict[str, Mapping[str, Any]] = {}
    for one in ports:
        held = fullest.setdefault(one["source"], one)
        if one["used_ports"] > held["used_ports"]:
            fullest[one["source"]] = one
    lines = [
        f"{source}: {count(one['used_ports'])} of {count(one['ports'])} ports in use"
        f" ({percent(one['used_ports'] / one['ports'])}%) towards {one['server']}"
        for source, one in fullest.items()
    ]
    return [("nat" if number == 0 else "", line) for number, line in enumerate(lines)]


def _hook(plane: Mapping[str, Any]) -> str:
    if not plane["attached"]:
        return "none"
    return f"{HOOKS.get(plane['hook'], plane['hook'])}: {plane['hook_reason']}"


def _program(plane: Mapping[str, Any]) -> str:
    from agent.humanise import exact, quantity

    return (
        f"id {plane['program_id']}, ABI {plane['abi_version']},"
        f" {exact(plane['instructions'])} instructions"
        f" ({quantity(plane['machine_code_bytes'], 'B')} of machine code),"
        f" compiled in {plane['compile_ms']:.0f} ms,"
        f" {exact(plane['verified_instructions'])} instructions verified"
    )


def _passed(packets: Mapping[str, int]) -> str:
    from agent.humanise import count

    there = [f"{count(number)} {reason}" for reason, number in packets.items() if number]
    return f"to the host, untouched: {', '.join(there) or 'no packets'}"


def _agent(agent: Mapping[str, Any]) -> str:
    from agent.humanise import age

    return f"version {agent['version']}, pid {agent['pid']}, up {age(agent['uptime_s'])}"


def _config(agent: Mapping[str, Any]) -> str:
    from agent.humanise import plural

    changes, parts = agent["changes_since_file"], [agent["config_file"]]
    if agent["config_problem"]:
        parts.append("refused as it is now: the last good configuration runs")
    elif not changes:
        parts.append("running as written")
    if changes:
        parts.append(f"{plural(changes, 'change')} since (lbctl diff shows them)")
    return ", ".join(parts)
