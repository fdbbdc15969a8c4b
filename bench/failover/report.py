"""Turns results into JSON, which is kept, and that into Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bench.failover.cases import CASES
from bench.failover.measure import Found, Sample
from bench.failover.plan import VARIANTS
from bench.failover.results import Figure, Mark, Row, failures, marks, rows
from bench.failover.steady import LOOPS_PER_CORE, Steady
from bench.machine import Machine

type Document = dict[str, Any]


def outages(on: Machine, keepalived: str, found: Sequence[Found]) -> Document:
    """Return the part about faults."""
    return {
        "machine": asdict(on),
        "keepalived": keepalived,
        "rows": [asdict(row) for row in rows(found)],
        "failures": [asdict(one) for one in failures(found)],
        "samples": [
            {"variant": one.variant, "pairing": one.pairing, "case": one.case}
            | asdict(one.outcome)
            | {"given_up": one.given_up}
            for one in found
            if isinstance(one, Sample)
        ],
    }


def steady(on: Machine, seconds: float, found: Sequence[Steady]) -> Document:
    """Return the part about pairs without a fault."""
    return {
        "machine": asdict(on),
        "seconds": seconds,
        "busy_loops": LOOPS_PER_CORE * on.cpus,
        "rows": [asdict(one) for one in found],
    }


def as_json(document: Document) -> str:
    """Return what is kept: each figure once, with units in the keys."""
    return json.dumps(document, indent=1) + "\n"


def _rows(document: Document) -> list[Row]:
    return [
        Row(
            **(row | {"outage": Figure(**row["outage"])})
            | {"back_outage": Figure(**row["back_outage"])}
        )
        for row in document.get("outages", {}).get("rows", [])
    ]


def _steady(document: Document) -> list[Steady]:
    return [
        Steady(**(row | {"cpu_ms_per_s": tuple(row["cpu_ms_per_s"])}))
        for row in document.get("steady", {}).get("rows", [])
    ]


def missed(document: Document) -> list[Mark]:
    """Return the targets that were not met."""
    return [mark for mark in marks(_rows(document), _steady(document)) if not mark.reached]


def markdown(document: Document) -> str:
    """Return the report as Markdown."""
    found, unharmed = _rows(document), _steady(document)
    parts = ["# Failover beside keepalived", _setup(document)]
    if said := marks(found, unharmed):
        parts += ["## What is to be reached", _marks(said)]
    for variant in VARIANTS:
        of = [row for row in found if row.variant == variant.name]
        if of:
            parts += [f"## {variant.title}", _table(_HEAD, map(_cells, of))]
    if found:
        parts.append("Cases: " + "; ".join(f"**{one.name}**: {one.about}" for one in CASES) + ".")
    if unharmed:
        parts += ["## Every core busy, nobody harmed", *_unharmed(document["steady"], unharmed)]
    if lost := document.get("outages", {}).get("failures", []):
        parts += ["## Could not be measured", *(_failure(one) for one in lost)]
    return "\n\n".join(parts) + "\n"


def _setup(document: Document) -> str:
    part = document.get("outages") or document["steady"]
    on = part["machine"]
    peer = f" keepalived {part['keepalived']}." if "keepalived" in part else ""
    return (
        f"{on['cpu']}, {on['cpus']} CPUs, {on['kernel']}.{peer} Commit {on['commit']}, "
        f"{on['date']}. ms, as a client sees it that asks every millisecond. How it is measured "
        "and what it means: [docs/benchmarks-failover.md](../../docs/benchmarks-failover.md)."
    )


def _marks(said: Sequence[Mark]) -> str:
    table = _table(
        ("mark", "wanted", "found", ""),
        [
            (mark.what, mark.wanted, mark.found, "met" if mark.reached else "**missed**")
            for mark in said
        ],
    )
    met = sum(mark.reached for mark in said)
    return f"{met} of {len(said)} met.\n\n{table}"


_HEAD = (
    "case", "pair", "times", "outage: median", "worst", "once undone: median", "worst",
    "black-holed", "longest", "two owners",
)  # fmt: skip


def _cells(row: Row) -> Sequence[str]:
    helped = f" ({row.given_up} given up)" if row.given_up else ""
    return (
        row.case,
        row.pairing,
        str(row.repetitions),
        f"{row.outage.median:.1f}",
        f"{row.outage.worst:.1f}",
        f"{row.back_outage.median:.1f}",
        f"{row.back_outage.worst:.1f}",
        f"{row.black_holed}{helped}",
        f"{row.hole_ms:.1f}",
        f"{row.two_owners_ms:.1f}",
    )


def _unharmed(part: Mapping[str, Any], found: Sequence[Steady]) -> Iterable[str]:
    yield (
        f"{part['seconds']:.0f} s with {part['busy_loops']} busy loops on "
        f"{part['machine']['cpus']} CPUs, all pairs at once. Commit {part['machine']['commit']}, "
        f"{part['machine']['date']}."
    )
    yield _table(
        ("adverts", "pair", "transitions", "probes lost", "of", "longest outage",
         "CPU of the master, ms per s", "of the backup"),
        [
            (
                one.variant,
                one.pairing,
                str(one.transitions),
                str(one.lost),
                str(one.probes),
                f"{one.hole_ms:.1f}",
                *(f"{ms:.1f}" for ms in one.cpu_ms_per_s),
            )
            for one in found
        ],
    )  # fmt: skip


def _failure(one: Mapping[str, str]) -> str:
    why = " ".join(one["why"].split())
    return f"- {one['variant']}, {one['pairing']}, {one['case']}: {why}"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *body)]
    dashes = "|" + "|".join(["-", "-"] + ["-:"] * (len(head) - 2)) + "|"
    return "\n".join([lines[0], dashes, *lines[1:]])
