"""How services and backends read in a table; the columns that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from lbctl import humanise
from lbctl.layout import Cell, Column, Table

type Row = Mapping[str, Any]

STATE_STYLES = {
    "up": "green",
    "degraded": "yellow",
    "drain": "cyan",
    "maintenance": "cyan",
    "checking": "blue",
    "down": "bold red",
    "unreachable": "bold red",
}


def state(row: Row) -> Cell:
    """A state, coloured."""
    return Cell(row["state"], STATE_STYLES.get(row["state"], ""))


def state_text(row: Row) -> Text:
    """State, why, and since when, as one line of prose."""
    return Text.assemble(
        (row["state"], STATE_STYLES.get(row["state"], "")),
        f" for {humanise.age(row['since_s'])}",
        f": {row['reason']}" if row["reason"] else "",
    )


def service_key(row: Row) -> str:
    """tcp 10.0.0.10:80."""
    return f"{row['protocol']} {humanise.endpoint(row['vip'], row['port'])}"


def weight(row: Row) -> str:
    """The configured weight, and the effective one where it is another."""
    configured, effective = row["weight_configured"], row["weight_effective"]
    return str(configured) if configured == effective else f"{configured}→{effective}"


def share(row: Row) -> str:
    """Share of the new flows: expected / actual."""
    expected, actual = row["share_expected"], row["share_actual"]
    shown = "-" if actual is None else f"{humanise.percent(actual)}%"
    return f"{humanise.percent(expected)}/{shown}"


def why(row: Row) -> str:
    """The reason of the state, and of a weight that is not the configured one."""
    reasons = [row["reason"]]
    # where the state says it already ("drain"), once is enough
    if row["weight_reason"] not in ("", row["state"], "configured"):
        reasons.append(f"weight: {row['weight_reason']}")
    return "; ".join(reason for reason in reasons if reason)


def rate_cells(rates: Row) -> tuple[Cell, Cell, Cell]:
    """New flows, packets and bits per second."""
    return (
        Cell(humanise.count(rates["new_flows_per_s"])),
        Cell(humanise.count(rates["packets_per_s"])),
        Cell(humanise.count(rates["bits_per_s"])),
    )


def rates_line(rates: Row) -> str:
    """The same in a sentence, with the drops."""
    return (
        f"{humanise.count(rates['new_flows_per_s'])} new flows/s,"
        f" {humanise.count(rates['packets_per_s'])} packets/s,"
        f" {humanise.quantity(rates['bits_per_s'], 'bit/s')},"
        f" {humanise.count(rates['drops_per_s'])} drops/s"
    )


def totals(row: Row) -> str:
    """What it has carried since it was added."""
    return (
        f"{humanise.exact(row['packets_total'])} packets,"
        f" {humanise.quantity(row['bytes_total'], 'B')},"
        f" {humanise.exact(row['new_flows_total'])} new flows"
        f" ({humanise.exact(row['established_flows_total'])} established,"
        f" {humanise.exact(row['closed_flows_total'])} closed)"
    )


def shares(row: Row) -> str:
    """Share of the new flows, in a sentence."""
    expected, actual = row["share_expected"], row["share_actual"]
    now = "none came" if actual is None else f"{humanise.percent(actual)}%"
    return f"{humanise.percent(expected)}% of the new flows expected, {now} in the last minute"


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
    Column("PKT/S", right=True, drop=4),
    Column("BIT/S", right=True, drop=2),
    Column("SHARE exp/act", right=True),
)


def backend_table(backends: Iterable[Row], *, with_service: bool = True) -> Table:
    """The table of backends."""
    rows = [
        (
            Cell(backend["service"]),
            Cell(backend["name"]),
            Cell(backend["address"]),
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
        )
        for backend in backends
    ]
    first = 0 if with_service else 1
    return Table(BACKEND_COLUMNS[first:], tuple(row[first:] for row in rows), prose_under="STATE")


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
    Column("PKT/S", right=True, drop=4),
    Column("BIT/S", right=True, drop=2),
    Column("DROP/S", right=True, drop=5),
)


def service_table(services: Iterable[Row]) -> Table:
    """The table of services."""
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
        )
        for service in services
    )
    return Table(SERVICE_COLUMNS, rows, prose_under="STATE")


def reasons(counts: Mapping[str, int]) -> str:
    """Packets by reason, those that there were."""
    there = [f"{humanise.exact(number)} {reason}" for reason, number in counts.items() if number]
    return ", ".join(there) or "none"
