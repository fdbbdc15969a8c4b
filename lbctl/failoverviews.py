"""Shows failover: who is master and why, mismatches, the exchange of flows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from agent import humanise
from agent.failover.status import OWN
from lbctl.layout import Cell, Column, Table

type Row = Mapping[str, Any]

ROLE_STYLES = {"master": "bold green", "backup": "cyan", "fault": "bold red", "init": "yellow"}
_SYNC_STYLES = {"connected": "green", "connecting": "yellow", "refused": "bold red"}
_ENDED = "over"  # a flow that had ended when its record arrived: no trouble
_SLOW_LAG_S = 1.0


def summary_lines(data: Row) -> Iterator[Text]:
    """Yield one line for each instance and each peer of flow sync, as part of `lbctl status`."""
    if data["problem"]:
        yield Text(data["problem"], "bold red")
    for row in data["instances"]:
        line = Text.assemble(f"{row['name']}: ", role(row["role"]))
        line.append(f" for {humanise.age(row['since_s'])}: {row['why']}")
        if row["mode"] != "normal":
            line.append(f" ({row['mode']})", "yellow")
        yield line
        for problem in row["problems"]:
            yield Text(problem, "bold red")
    for peer in data["flow_sync"]:
        yield _peer_line(peer["peer"], peer)


def role(word: str) -> Text:
    """Return a role, coloured."""
    return Text(word, ROLE_STYLES.get(word, ""))


def instance_table(rows: list[Row]) -> Table:
    """Return the table of virtual routers."""
    columns = (
        Column("INSTANCE"),
        Column("ROLE"),
        Column("FOR", right=True, drop=2),
        Column("PRIORITY", right=True, drop=1),
        Column("MASTER", drop=3),
        Column("VIPS", drop=4),
        Column("WHY", prose=True),
    )
    return Table(columns, tuple(_instance_cells(row) for row in rows), prose_under="INSTANCE")


def _instance_cells(row: Row) -> tuple[Cell, ...]:
    return (
        Cell(row["name"]),
        Cell(row["role"], ROLE_STYLES.get(row["role"], "")),
        Cell(humanise.age(row["since_s"])),
        Cell(_priority(row)),
        Cell("this node" if row["role"] == "master" else row["master"] or "-"),
        Cell(" ".join(row["vips"])),
        Cell(_why(row)),
    )


def _priority(row: Row) -> str:
    """Return the configured priority, and the effective one if it differs."""
    if row["method"] == "announce":
        return "-"
    configured, effective = row["priority_configured"], row["priority_effective"]
    return str(configured) if configured == effective else f"{configured}→{effective}"


def _why(row: Row) -> str:
    reasons = [row["why"], *row["priority_reasons"]]
    if row["mode"] != "normal":
        reasons.append(f"{row['mode']} by the operator")
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason))


def problem_lines(rows: list[Row]) -> list[Text]:
    """Return the mismatches with other nodes, and what this node cannot do."""
    return [_problem_line(row["name"], problem) for row in rows for problem in row["problems"]]


def _problem_line(name: str, problem: Row) -> Text:
    if problem["kind"] in OWN:
        return Text.assemble(("PROBLEM ", "bold red"), f"{name}: {problem['text']}")
    return Text.assemble(
        ("MISMATCH ", "bold red"),
        f"{name}: {problem['text']} ({problem['count']} times,"
        f" last {humanise.age(problem['last_s'])} ago)",
    )


def process_line(data: Row) -> Text:
    """Return the line about the failover process itself."""
    process = data["process"]
    if process is None:
        return Text(f"failover process: {data['problem'] or 'unknown'}", "bold red")
    kind = "scheduled in real time" if process["realtime"] else "NOT scheduled in real time"
    parts = [f"pid {process['pid']}", f"up {humanise.age(process['uptime_s'])}", kind]
    if not process["memory_locked"]:
        parts.append("memory not locked")
    line = Text(f"failover process: {', '.join(parts)}")
    if process["config_problem"]:
        line.append(f"\nPROBLEM {process['config_problem']}", "bold red")
    return line


def sync_lines(data: Row) -> list[Text]:
    """Return the lines about the exchange of flows with each peer."""
    lines = [_sync_line(peer) for peer in data["peers"]]
    if data["problem"]:
        lines.insert(0, Text(f"flow sync: {data['problem']}", "bold red"))
    if last := data.get("last_move_lacking_flows"):  # older agents do not report it
        number = humanise.plural(data["moves_lacking_flows_total"], "move")
        lines.append(
            Text(
                f"PROBLEM {number} from this node before the other balancer had all flows, the last"
                f" {humanise.age(last['age_s'])} ago: {last['why']}",
                "yellow",
            )
        )
    return lines or [Text("flow sync: no peers")]


def _sync_line(peer: Row) -> Text:
    who = f"{peer['address']} ({peer['name']})" if peer["name"] else peer["address"]
    line = _peer_line(who, peer)
    line.append(
        f"; {humanise.count(peer['flows_sent_total'])} flows sent,"
        f" {humanise.count(peer['flows_installed_total'])} accepted"
    )
    dropped = sum(n for reason, n in peer["flows_dropped_total"].items() if reason != _ENDED)
    if dropped:
        line.append(f", {humanise.count(dropped)} were not accepted", "yellow")
    return line


def _peer_line(who: str, peer: Row) -> Text:
    state, lag_s = peer["state"], peer["lag_s"]
    line = Text.assemble(f"flow sync with {who}: ", (state, _SYNC_STYLES.get(state, "")))
    if state != "connected" and "why" in peer:  # older agents do not report it
        line.append(f" for {humanise.age(peer['since_s'])}: {peer['why']}")
    elif state == "connected" and lag_s is not None:
        shown = f", lag {humanise.duration(lag_s)}"
        line.append(shown, "yellow" if lag_s > _SLOW_LAG_S else "")
    return line
