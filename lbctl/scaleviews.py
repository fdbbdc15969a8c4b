"""Decides how people are shown what a scaler needs to know about services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent import humanise
from lbctl.layout import Cell, Column, Table

type Row = Mapping[str, Any]

_NAMES = {
    "connections": "connections",
    "waiting_bytes": "waiting bytes",
    "requests": "requests",
    "queued": "queued requests",
}
_COLUMNS = (
    Column("SERVICE"),
    Column("USABLE", right=True),
    Column("WANTED", right=True),
    Column("CONNS", right=True),
    Column("WAITING", right=True),
    Column("REQUESTS", right=True, drop=2),
    Column("QUEUED", right=True, drop=3),
    Column("FIRST BYTE P95", right=True, drop=1),
    Column("WHY", prose=True),
)


def table(rows: Sequence[Row]) -> Table:
    """Return a table with a line for each service."""
    return Table(_COLUMNS, tuple(_cells(row) for row in rows), prose_under="USABLE")


def _cells(row: Row) -> tuple[Cell, ...]:
    p95_s = row["first_byte_p95_s"]
    return (
        Cell(row["service"]),
        Cell(str(row["usable_backends"]) + _draining(row)),
        Cell(*_wanted(row)),
        *(Cell(_load(row, signal)) for signal in _NAMES),
        Cell("-" if p95_s is None else humanise.milliseconds(p95_s * 1000)),
        Cell(why(row)),
    )


def _draining(row: Row) -> str:
    return f" (+{row['draining_backends']} draining)" if row["draining_backends"] else ""


def _wanted(row: Row) -> tuple[str, str]:
    wanted, usable = row["wanted_backends"], row["usable_backends"]
    if wanted is None:
        return "-", ""
    return str(wanted), "" if wanted == usable else "yellow"


def _load(row: Row, signal: str) -> str:
    load, target = row["load"][signal], row["target_per_backend"][signal]
    if load is None:
        return "-"
    shown = humanise.count(load)
    return shown if target is None else f"{shown} / {humanise.count(target)}"


def why(row: Row) -> str:
    """Return what determines the wanted number of backends, as a clause."""
    usable = row["usable_backends"]
    match row["wanted_because"]:
        case None:
            targets = [_NAMES[name] for name in row["target_per_backend"] if _has(row, name)]
            return f"unknown: {' and '.join(targets)}" if targets else "no target is set"
        case "objective":
            return f"an objective is missed with {humanise.plural(usable, 'backend')}"
        case "unknown":
            silent = [_NAMES[n] for n in row["load"] if _has(row, n) and row["load"][n] is None]
            return f"no fewer than now, because this is unknown: {' and '.join(silent)}"
        case "no_backend":
            held = row["held_clients"]
            if held == 1:
                return "no backend is usable, and a client waits"
            who = humanise.plural(held, "client") if held else "clients"
            return f"no backend is usable, and {who} wait"
        case "min" | "max" as bound:
            return f"{bound} is {row[f'{bound}_backends']}"
        case signal:
            load, target = row["load"][signal], row["target_per_backend"][signal]
            return f"{humanise.count(load)} {_NAMES[signal]}, {humanise.count(target)} for each"


def _has(row: Row, signal: str) -> bool:
    return row["target_per_backend"][signal] is not None


def sentence(row: Row) -> str:
    """Return how many backends are wanted and why, as a sentence."""
    wanted = row["wanted_backends"]
    if wanted is None:
        return why(row)
    return f"{humanise.plural(wanted, 'backend')} wanted ({why(row)})"
