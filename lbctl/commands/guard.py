"""``lbctl guard`` and ``lbctl threats``: blocks, lists and limits, what they have dropped, and the
sources that behave unlike all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import (
    ADDRESS,
    DURATION,
    SERVICE,
    SOURCES,
    agent_options,
    watch_option,
    yes_option,
)
from lbctl.output import emit, render, watch


@click.group(cls=SuggestingGroup)
def guard() -> None:
    """Blocked sources, lists and limits: status, list, block, unblock, test, top.

    \b
    Examples:
      lbctl guard status
      lbctl guard block 198.51.100.7 --for 1h --why "scans every port"
      lbctl guard test 198.51.100.7
    """


@guard.command("status")
@watch_option
@agent_options
@pass_environment
def guard_status(env: Environment, watch_s: float | None) -> None:
    """Show what is blocked, listed and limited, and how many packets were dropped for it.

    WOULD DROP counts packets that `guard: dry-run` let through. SOURCES is the number of sources
    that may begin no flow now, because of their open flows or waiting bytes.

    \b
    Examples:
      lbctl guard status --watch
      lbctl guard status -o json | jq .blocked_packets_total
    """
    watch(env, watch_s, lambda: render(env, env.agent().get("/v1/guard"), _status_view(env)))


@guard.command("list")
@agent_options
@pass_environment
def guard_list(env: Environment) -> None:
    """List the blocked sources, those whose block ends first at the top.

    \b
    Example:
      lbctl guard list
    """
    emit(env, env.agent().get("/v1/guard"), lambda data: [*_blocks(data["blocks"]), *_force(data)])


@guard.command("block")
@click.argument("prefixes", type=SOURCES, nargs=-1, required=True, metavar="ADDRESS|PREFIX…")
@click.option(
    "--for",
    "for_s",
    type=DURATION,
    default="10m",
    show_default=True,
    metavar="DURATION",
    help="How long: 30s, 10m, 24h.",
)
@click.option("--why", default="", metavar="TEXT", help="A reason, shown in the list.")
@yes_option
@agent_options
@pass_environment
def block(env: Environment, prefixes: tuple[str, ...], for_s: float, why: str, yes: bool) -> None:
    """Drop what these sources send, at once, and end their flows.

    A block expires, and outlives restarts of the agent until then. Blocking a source again
    restarts its time. An IPv6 host usually has a whole /64.

    \b
    Examples:
      lbctl guard block 198.51.100.7
      lbctl guard block 203.0.113.0/24 2001:db8:7::/64 --for 2h --why "credential stuffing"
    """
    body = {"prefixes": list(prefixes), "for_s": for_s, "why": why, "confirmed": yes}
    emit(env, env.agent_to_change().post("/v1/guard/block", body), _blocked_view)


@guard.command("unblock")
@click.argument("prefixes", type=SOURCES, nargs=-1, required=True, metavar="ADDRESS|PREFIX…")
@agent_options
@pass_environment
def unblock(env: Environment, prefixes: tuple[str, ...]) -> None:
    """Serve these sources again.

    \b
    Example:
      lbctl guard unblock 198.51.100.7
    """
    answer = env.agent().post("/v1/guard/unblock", {"prefixes": list(prefixes)})
    emit(env, answer, _unblocked_view)


@guard.command("test")
@click.argument("address", type=ADDRESS)
@agent_options
@pass_environment
def guard_test(env: Environment, address: str) -> None:
    """Show what happens to a new flow from ADDRESS at each service, by the kernel's tables.

    \b
    Example:
      lbctl guard test 198.51.100.7
    """
    emit(env, env.agent().get("/v1/guard/test", {"address": address}), _test_view)


@guard.command("top")
@click.option("--service", type=SERVICE, metavar="SERVICE", help="Only flows of this service.")
@click.option(
    "--by",
    type=click.Choice(["flows", "waiting"]),
    default="flows",
    show_default=True,
    help="Rank by open flows, or by request bytes that wait for an answer.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    metavar="N",
    default=20,
    show_default=True,
    help="Show at most N sources.",
)
@watch_option
@agent_options
@pass_environment
def top(env: Environment, service: str | None, by: str, limit: int, watch_s: float | None) -> None:
    """List the sources with most open flows, or most request bytes that wait for an answer.

    \b
    Examples:
      lbctl guard top --limit 5
      lbctl guard top --by waiting --service chat
    """
    params = {"service": service, "by": by, "limit": limit}
    watch(env, watch_s, lambda: render(env, env.agent().get("/v1/guard/top", params), _top_view))


@click.command("threats")
@watch_option
@agent_options
@pass_environment
def threats(env: Environment, watch_s: float | None) -> None:
    """Show the sources that behave unlike all others, and the alerts of Suricata.

    ACTION is what the service does about such sources (`detect`): log or block. OUTCOME is what
    became of an alert; docs/guard.md explains each.

    \b
    Examples:
      lbctl threats --watch
      lbctl threats -o json | jq -r .threats[].source
    """
    watch(env, watch_s, lambda: render(env, env.agent().get("/v1/guard"), _threats_view))


def _status_view(env: Environment) -> Any:
    def view(data: Mapping[str, Any]) -> list[object]:
        from agent.humanise import count, exact, plural
        from lbctl.output import facts

        dropped = (
            f"{exact(data['blocked_packets_total'])} packets of blocked sources, "
            f"{exact(data['not_allowed_packets_total'])} of sources that no list allows, "
            f"{exact(sum(each['dropped_packets_total'] for each in data['limits']))} beyond a limit"
        )
        pairs: list[tuple[str, object]] = [
            ("blocked", f"{len(data['blocks']):,} prefixes (lbctl guard list)"),
            ("dropped", dropped),
            ("room", f"{count(data['nodes'])} of {count(data['nodes_total'])} nodes"),
        ]
        spared = data["would_block_packets_total"] + data["would_not_allow_packets_total"]
        spared += sum(each["would_drop_packets_total"] for each in data["limits"])
        if spared:
            text = f"{exact(spared)} packets would have been dropped"
            pairs.insert(2, ("dry run", text))
        if data["threats"]:
            sources = len({each["source"] for each in data["threats"]})
            pairs.append(("threats", f"{plural(sources, 'source')} (lbctl threats)"))
        if data["problem"]:
            pairs.append(("problem", data["problem"]))
        tables = [*_services(data), *_lists(data), *_limits(data)]
        return [*facts(env, pairs), *_force(data), *_note(data), *tables]

    return view


def _services(data: Mapping[str, Any]) -> list[object]:
    from lbctl.layout import Cell, Column, Table

    rows = tuple(
        (
            Cell(each["name"]),
            Cell(each["guard"], {"enforce": "green", "dry-run": "yellow"}.get(each["guard"], "")),
            Cell(", ".join(each["allow"]) or "all"),
            Cell(", ".join(each["deny"]) or "-"),
        )
        for each in data["services"]
    )
    columns = (Column("SERVICE"), Column("GUARD"), Column("ALLOW"), Column("DENY"))
    return ["", Table(columns, rows)] if rows else []


def _lists(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import age, exact
    from lbctl.layout import Cell, Column, Table

    lists = data["lists"]
    if not lists:
        return []
    columns = (
        Column("LIST"),
        Column("PREFIXES", right=True),
        Column("DROPPED", right=True),
        Column("WOULD DROP", right=True),
        Column("READ", right=True, drop=1),
        Column("USED BY", drop=2),
    )
    rows = tuple(
        (
            Cell(each["name"]),
            Cell(exact(each["prefixes"])),
            Cell(exact(each["dropped_packets_total"])),
            Cell(exact(each["would_drop_packets_total"])),
            Cell("-" if each["read_s"] is None else f"{age(each['read_s'])} ago"),
            Cell(", ".join(each["used_by"]) or "nobody"),
        )
        for each in lists
    )
    problems = [f"list {each['name']}: {each['problem']}" for each in lists if each["problem"]]
    return ["", Table(columns, rows), *problems]


def _limits(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import exact
    from lbctl.layout import Cell, Column, Table

    if not data["limits"]:
        return []
    columns = (
        Column("SERVICE"),
        Column("LIMIT"),
        Column("AT MOST", right=True),
        Column("DROPPED", right=True),
        Column("WOULD DROP", right=True),
        Column("SOURCES", right=True, drop=1),
    )
    rows = tuple(
        (
            Cell(each["service"]),
            Cell(each["limit"]),
            Cell(each["at_most"]),
            Cell(exact(each["dropped_packets_total"])),
            Cell(exact(each["would_drop_packets_total"])),
            Cell(exact(each["sources"]) if each["limit"] in _OF_WHAT_IS_HELD else "-"),
        )
        for each in data["limits"]
    )
    return ["", Table(columns, rows)]


_OF_WHAT_IS_HELD = ("open_flows_per_source", "waiting_per_source")  # SOURCES exceed them now


def _blocks(blocks: list[Mapping[str, Any]]) -> list[object]:
    from agent.humanise import age
    from lbctl.layout import Cell, Column, Table

    if not blocks:
        return ["nobody is blocked"]
    columns = (Column("PREFIX"), Column("LEFT", right=True), Column("UNTIL", drop=1), Column("WHY"))
    rows = tuple(
        (
            Cell(each["prefix"]),
            Cell(age(each["left_s"])),
            Cell(each["until"]),
            Cell(each["why"] or "-"),
        )
        for each in blocks
    )
    return [Table(columns, rows)]


def _blocked_view(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import plural

    ended = data["flows_ended"]
    more = f"; {plural(ended, 'open connection')} ended" if ended else ""
    return [f"blocked: {', '.join(data['blocked'])}{more}{_informed(data)}", *_note(data)]


def _unblocked_view(data: Mapping[str, Any]) -> list[object]:
    return [f"served again: {', '.join(data['unblocked'])}{_informed(data)}", *_note(data)]


def _informed(data: Mapping[str, Any]) -> str:
    from agent.humanise import plural

    balancers = data["told_balancers"]
    return f"; {plural(balancers, 'other balancer')} informed" if balancers else ""


def _force(data: Mapping[str, Any]) -> list[object]:
    return [] if data["in_force"] else ["not in force yet: the program for it is being compiled"]


def _note(data: Mapping[str, Any]) -> list[object]:
    problem = data["unsaved_problem"]
    return [f"in memory only, a restart of the agent forgets it: {problem}"] if problem else []


def _test_view(data: Mapping[str, Any]) -> list[object]:
    from lbctl.layout import Cell, Column, Table

    address, block = data["address"], data["block"]
    pieces: list[object] = [
        f"{address} is on {', '.join(data['lists'])}"
        if data["lists"]
        else f"{address} is on no list"
    ]
    if block is not None:
        why = f": {block['why']}" if block["why"] else ""
        pieces.append(f"blocked as {block['prefix']} until {block['until']}{why}")
    rows = tuple(
        (Cell(each["name"]), Cell(each["verdict"], "green" if each["verdict"] == "served" else ""))
        for each in data["services"]
    )
    return [*pieces, "", Table((Column("SERVICE"), Column("A NEW FLOW IS")), rows)]


def _threats_view(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import age, exact, plural
    from agent.state.threats import is_ours
    from lbctl.layout import Cell, Column, Table

    lines: list[object] = []
    found = data["threats"]
    watched = [each["name"] for each in data["services"] if each["detect"] != "off"]
    if found:
        columns = (
            Column("SERVICE"),
            Column("SOURCE"),
            Column("FOR", right=True),
            Column("ACTION"),
            Column("WHY"),
        )
        rows = tuple(
            (
                Cell(each["service"]),
                Cell(each["source"]),
                Cell(age(each["since_s"])),
                Cell(each["action"], "red" if each["action"] == "block" else "yellow"),
                Cell(each["why"]),
            )
            for each in found
        )
        lines = [Table(columns, rows)]
        if (more := data["threats_total"] - len(found)) > 0:
            lines.append(f"and {exact(more)} more")
    elif watched:
        services = plural(len(watched), "service")
        lines = [f"no source behaves unlike the others ({services} watched)"]
    else:
        lines = ["no service is watched: `detect` is off"]
    forgeable = sorted({each["service"] for each in found if not each["address_proven"]})
    if forgeable:
        lines.append(
            f"note: sources of {', '.join(forgeable)} may be forged, because clients do not prove "
            "there that an address is theirs"
        )
    if blocks := [each for each in data["blocks"] if is_ours(each["why"])]:
        lines += ["", "blocked for it:", *_blocks(blocks)]
    return [*lines, *_alerts(data), *_force(data)]


_OUTCOMES = {"blocked": "red", "logged": "", "spared": "green", "failed": "red"}


def _alerts(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import age, exact, plural
    from agent.state.alerts import is_ours
    from lbctl.layout import Cell, Column, Table

    found = data["alerts"]
    if found["file"] is None:
        return []
    lines: list[object] = ["", f"alerts in {found['file']}:"]
    if found["recent"]:
        columns = (
            Column("SIGNATURE"),
            Column("SEVERITY", right=True),
            Column("OUTCOME"),
            Column("ALERTS", right=True),
            Column("LAST", right=True),
            Column("LAST SOURCE"),
            Column("TO"),
        )
        rows = tuple(
            (
                Cell(f"{each['signature']} {each['text']}"),
                Cell(str(each["severity"])),
                Cell(each["outcome"], _OUTCOMES.get(each["outcome"], "yellow")),
                Cell(exact(each["alerts"])),
                Cell(f"{age(each['last_s'])} ago"),
                Cell(each["source"]),
                Cell(each["server"]),
            )
            for each in found["recent"]
        )
        lines.append(Table(columns, rows))
    else:
        lines.append("none since the agent began")
    if found["problem"]:
        lines.append(f"problem: {found['problem']}")
    if found["unreadable_lines_total"]:
        lines.append(f"{plural(found['unreadable_lines_total'], 'line')} could not be read")
    if found["skipped_bytes_total"]:
        size = exact(found["skipped_bytes_total"])
        lines.append(f"{size} bytes were left out: alerts came faster than they can be read")
    if blocks := [each for each in data["blocks"] if is_ours(each["why"])]:
        lines += ["", "blocked for an alert:", *_blocks(blocks)]
    return lines


def _top_view(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import count, exact
    from lbctl.layout import Cell, Column, Table

    sources = data["sources"]
    if not sources:
        return ["no open flows"]
    columns = (
        Column("SOURCE"),
        Column("OPEN FLOWS", right=True),
        Column("WAITING B", right=True),
    )
    rows = tuple(
        (Cell(each["source"]), Cell(exact(each["flows"])), Cell(count(each["waiting_bytes"])))
        for each in sources
    )
    return [Table(columns, rows), f"{exact(data['sources_total'])} sources have open flows"]
