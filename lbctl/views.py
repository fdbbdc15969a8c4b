"""Formats services and backends in a table; the columns that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from agent import humanise
from agent.api.sentences import membership, tier_load
from lbctl import loadviews
from lbctl.layout import Cell, Column, Table

type Row = Mapping[str, Any]

OFTEN = 4  # changes of state in an hour: a restart of an engine makes two

STATE_STYLES = {
    "up": "green",
    "degraded": "yellow",
    "drain": "cyan",
    "maintenance": "cyan",
    "checking": "blue",
    "down": "bold red",
    "ejected": "bold red",
    "unreachable": "bold red",
}


def state(row: Row) -> Cell:
    """Return a state, coloured."""
    return Cell(row["state"], STATE_STYLES.get(row["state"], ""))


def state_text(row: Row) -> Text:
    """Return state, reason, and since when, as one line of prose."""
    return Text.assemble(
        (row["state"], STATE_STYLES.get(row["state"], "")),
        f" for {humanise.age(row['since_s'])}",
        f": {row['reason']}" if row["reason"] else "",
        f"; {changes} changes in the last hour" if (changes := _changes(row)) >= OFTEN else "",
    )


def _changes(row: Row) -> int:
    """Return a backend's changes of state; services have no such figure."""
    return int(row.get("state_changes_last_hour", 0))


def service_key(row: Row) -> str:
    """Return protocol, VIP and port, as in tcp 10.0.0.10:80."""
    return f"{row['protocol']} {humanise.endpoint(row['vip'], row['port'])}"


def weight(row: Row) -> str:
    """Return the configured weight, and the effective one if it differs."""
    configured, effective = row["weight_configured"], row["weight_effective"]
    return str(configured) if configured == effective else f"{configured}→{effective}"


def share(row: Row) -> str:
    """Return the share of the new flows: expected / actual."""
    expected, actual = row["share_expected"], row["share_actual"]
    shown = "-" if actual is None else f"{humanise.percent(actual)}%"
    return f"{humanise.percent(expected)}/{shown}"


def why(row: Row) -> str:
    """Return the reason of the state, and of a weight that is not the configured one."""
    reasons = [row["reason"]]
    # if the state already says it ("drain"), once is enough
    if row["weight_reason"] not in ("", row["state"], "configured"):
        reasons.append(f"weight: {row['weight_reason']}")
    if (changes := _changes(row)) >= OFTEN:
        reasons.append(f"{changes} changes in an hour")
    return "; ".join(reason for reason in reasons if reason)


def rate_cells(rates: Row) -> tuple[Cell, Cell, Cell]:
    """Return new flows, packets and bits per second."""
    return (
        Cell(humanise.count(rates["new_flows_per_s"])),
        Cell(humanise.count(rates["packets_per_s"])),
        Cell(humanise.count(rates["bits_per_s"])),
    )


def rates_line(rates: Row) -> str:
    """Return the same rates in a sentence, with the drops."""
    return (
        f"{humanise.count(rates['new_flows_per_s'])} new flows/s,"
        f" {humanise.count(rates['packets_per_s'])} packets/s,"
        f" {humanise.quantity(rates['bits_per_s'], 'bit/s')},"
        f" {humanise.count(rates['drops_per_s'])} drops/s"
    )


def totals(row: Row) -> str:
    """Return what a backend or service has carried since it was added."""
    back = ""
    if row["reply_packets_total"]:
        back = (
            f"; back: {humanise.exact(row['reply_packets_total'])} packets,"
            f" {humanise.quantity(row['reply_bytes_total'], 'B')}"
        )
    return (
        f"{humanise.exact(row['packets_total'])} packets,"
        f" {humanise.quantity(row['bytes_total'], 'B')},"
        f" {humanise.exact(row['new_flows_total'])} new flows"
        f" ({humanise.exact(row['established_flows_total'])} established,"
        f" {humanise.exact(row['closed_flows_total'])} closed){back}"
    )


def shares(row: Row) -> str:
    """Return the share of the new flows, in a sentence."""
    expected, actual = row["share_expected"], row["share_actual"]
    now = "none came" if actual is None else f"{humanise.percent(actual)}%"
    return f"{humanise.percent(expected)}% of the new flows expected, {now} in the last minute"


def server(row: Row) -> str:
    """Return a backend's address, and its port if it has its own."""
    port = row["port"]
    return str(row["address"]) if port is None else humanise.endpoint(row["address"], port)


def scheduler(row: Row) -> str:
    """Return a service's scheduler and its parameters."""
    shown = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in row["scheduler_settings"].items()
        if value is not None
    ]
    draws = row["draws_in_use"]
    if draws is not None and draws != row["scheduler_settings"].get("draws"):
        shown.append(f"{draws} draws for now")
    return f"{row['scheduler']} ({', '.join(shown)})" if shown else str(row["scheduler"])


def waiting(row: Row) -> str:
    """Return the bytes that wait for an answer; a dash if they are not counted."""
    return "-" if row["waiting_bytes"] is None else humanise.count(row["waiting_bytes"])


def quantiles(times: Row | None) -> str:
    """Return p50/p99 of the last minute; a dash if there was nothing, or it is not counted."""
    if times is None or times["last_minute"]["p50_ms"] is None:
        return "-"
    recent = times["last_minute"]
    return "/".join(humanise.milliseconds(recent[name]) for name in ("p50_ms", "p99_ms"))


def times(row: Row | None) -> str:
    """Return times of the last minute and of all time, in a sentence."""
    if row is None:
        return "not counted"
    recent = row["last_minute"]
    now = f"{quantiles(row)} (p50/p99 of {humanise.exact(recent['count'])} in the last minute)"
    if not recent["count"]:
        now = "none in the last minute"
    if not row["count_total"]:
        return now
    mean = humanise.milliseconds(row["mean_ms"])
    return f"{now}; {mean} on average of {humanise.exact(row['count_total'])}"


def load(row: Row) -> str:
    """Return the load of a backend or service, in a sentence."""
    parts = [humanise.plural(row["open_connections"], "open connection")]
    if row["waiting_bytes"] is not None:
        requests = humanise.plural(row["waiting_requests"], "request")
        size = humanise.quantity(row["waiting_bytes"], "B")
        parts.append(f"{requests} ({size}) waiting for an answer")
    if row.get("unanswered_bytes"):
        unanswered = humanise.quantity(row["unanswered_bytes"], "B")
        parts.append(f"{unanswered} of requests that waited too long to weigh anything")
    if row.get("load_score") is not None:
        parts.append(f"load score {row['load_score']:.2f}")
    return ", ".join(parts)


BACKEND_COLUMNS = (
    Column("SERVICE"),
    Column("BACKEND"),
    Column("ADDRESS", drop=3),
    Column("STATE"),
    Column("SINCE", right=True),
    Column("WHY", prose=True),
    Column("WEIGHT", right=True),
    Column("FLOWS", right=True),
    Column("NEW/S", right=True, drop=1),
    Column("PKT/S", right=True, drop=6),
    Column("BIT/S", right=True, drop=5),
    Column("SHARE exp/act", right=True),
)
# If requests are not counted, these columns are empty.
WAITING_COLUMN = Column("WAITING B", right=True, drop=2)
REQUEST_COLUMNS = (WAITING_COLUMN, Column("1ST BYTE p50/p99", right=True, drop=4))
# Requests that run + wait, as the engines report.
QUEUE_COLUMN = Column("QUEUE", right=True, drop=2)
# The share of the last minute's prompt tokens that came from the engines' prefix caches.
CACHED_COLUMN = Column("CACHED", right=True, drop=4)


def backend_table(backends: Iterable[Row], *, with_service: bool = True) -> Table:
    """Return the table of backends."""
    backends = list(backends)
    asked = any(backend["waiting_bytes"] is not None for backend in backends)
    told = any(loadviews.queue(backend) != "-" for backend in backends)
    caching = any(loadviews.cached(backend) != "-" for backend in backends)
    rows = [
        (
            Cell(backend["service"]),
            Cell(backend["name"]),
            Cell(server(backend)),
            state(backend),
            Cell(humanise.age(backend["since_s"])),
            Cell(why(backend)),
            Cell(
                weight(backend),
                "" if backend["weight_configured"] == backend["weight_effective"] else "yellow",
            ),
            Cell(humanise.count(backend["flows_established"])),
            *rate_cells(backend["rates"]),
            Cell(share(backend)),
            *((Cell(loadviews.queue(backend), "red" if backend["hot"] else ""),) if told else ()),
            *((Cell(loadviews.cached(backend)),) if caching else ()),
            *((Cell(waiting(backend)), Cell(quantiles(backend["first_byte"]))) if asked else ()),
        )
        for backend in backends
    ]
    first = 0 if with_service else 1
    columns = (
        *BACKEND_COLUMNS,
        *((QUEUE_COLUMN,) if told else ()),
        *((CACHED_COLUMN,) if caching else ()),
        *(REQUEST_COLUMNS if asked else ()),
    )
    return Table(columns[first:], tuple(row[first:] for row in rows), prose_under="STATE")


SERVICE_COLUMNS = (
    Column("SERVICE"),
    Column("VIP"),
    Column("FORWARD", drop=3),
    Column("STATE"),
    Column("SINCE", right=True),
    Column("WHY", prose=True),
    Column("BACKENDS", right=True),
    Column("FLOWS", right=True),
    Column("NEW/S", right=True, drop=1),
    Column("PKT/S", right=True, drop=6),
    Column("BIT/S", right=True, drop=4),
    Column("DROP/S", right=True, drop=5),
)


def service_table(services: Iterable[Row]) -> Table:
    """Return the table of services."""
    services = list(services)
    asked = any(service["waiting_bytes"] is not None for service in services)
    rows = tuple(
        (
            Cell(service["name"]),
            Cell(service_key(service)),
            Cell(service["forward"]),
            state(service),
            Cell(humanise.age(service["since_s"])),
            Cell(service["reason"]),
            Cell(f"{service['backends_up']}/{service['backends_total']}"),
            Cell(humanise.count(service["flows_established"])),
            *rate_cells(service["rates"]),
            Cell(
                humanise.count(service["rates"]["drops_per_s"]),
                "red" if service["rates"]["drops_per_s"] else "",
            ),
            *((Cell(waiting(service)),) if asked else ()),
        )
        for service in services
    )
    columns = (*SERVICE_COLUMNS, *((WAITING_COLUMN,) if asked else ()))
    return Table(columns, rows, prose_under="STATE")


def reasons(counts: Mapping[str, int]) -> str:
    """Return packets by reason, without zeros."""
    there = [f"{humanise.exact(number)} {reason}" for reason, number in counts.items() if number]
    return ", ".join(there) or "none"


def tier_facts(tier: Row | None) -> list[tuple[str, object]]:
    """Return the line of `lbctl status` about the tier of the balancer's host, if it has one."""
    if not tier:
        return []
    return [("tier", tier_load(tier["load"]) if tier["load"] else "not known: lbctl tier status")]


def fleet_facts(fleet: Row | None) -> list[tuple[str, object]]:
    """Return the line of `lbctl status` about the balancer's fleet; none if it belongs to none."""
    from lbctl.commands.events import local_time

    return [("fleet", membership(fleet, local_time(fleet["since"])))] if fleet else []
