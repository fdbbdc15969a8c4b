"""Turns what the rows found into a table, the page and JSON that are kept, and the last line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.machine import Machine
from lbctl.lab.judge import Figure, Outcome
from vagrant.smoke.stage import EMULATED

type Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one row; ``problems`` empty: it is as it should be."""

    name: str
    about: str
    took_s: float
    lines: tuple[str, ...]
    figures: tuple[Figure, ...]
    problems: tuple[str, ...]

    @classmethod
    def of(cls, name: str, about: str, took_s: float, outcome: Outcome) -> Result:
        """From what a row found."""
        return cls(
            name,
            about,
            round(took_s, 1),
            tuple(outcome.lines),
            tuple(outcome.figures),
            tuple(" ".join(problem.split()) for problem in outcome.problems),
        )


@dataclass(frozen=True, slots=True)
class Guests:
    """What the figures depend on."""

    host: Machine
    virtualization: str  # as systemd-detect-virt says in the guests
    kernel: str
    memory_mib: int  # of all machines together
    machines: tuple[str, ...]
    up_s: float | None  # until all were there; None: they were already

    @property
    def emulated(self) -> bool:
        """Whether their processors are software."""
        return self.virtualization == EMULATED


def document(guests: Guests, results: Sequence[Result], took_s: float) -> Document:
    """What is kept."""
    return {
        "guests": {**asdict(guests), "emulated": guests.emulated},
        "took_s": round(took_s, 1),
        "ok": not any(result.problems for result in results),
        "rows": [
            {
                **asdict(result),
                "figures": [
                    {
                        "name": figure.name,
                        "value": round(figure.value, 2),
                        "unit": figure.unit or "count",
                    }
                    for figure in result.figures
                ],
            }
            for result in results
        ],
    }


def as_json(found: Document) -> str:
    """The JSON that is kept."""
    return json.dumps(found, indent=1) + "\n"


def markdown(found: Document) -> str:
    """The page."""
    parts = ["# The lab in virtual machines", _setup(found)]
    parts.append("\n".join(("| row | | found |", "|-|-|-|", *map(_row, found["rows"]))))
    return "\n\n".join(parts) + "\n"


def _setup(found: Document) -> str:
    guests = found["guests"]
    host = guests["host"]
    if guests["emulated"]:
        how = (
            "**Emulated in software**, ten to thirty times slower than with KVM: durations say what"
            " happens in which order, not how fast it is"
        )
    else:
        how = f"Virtualization: {guests['virtualization']}"
    up = f" All were up after {guests['up_s']:.0f} s." if guests["up_s"] is not None else ""
    return (
        f"By `make vagrant-test`: {', '.join(guests['machines'])}, {guests['memory_mib']} MiB in"
        f" all, {guests['kernel']}. {how}. Host: {host['cpu']}, {host['cpus']} CPUs,"
        f" {host['kernel']}.{up} The whole run took {found['took_s'] / 60:.0f} min. Commit"
        f" {host['commit']}, {host['date']}."
    )


def _row(row: Document) -> str:
    said = [*(f"**{problem}**" for problem in row["problems"]), *row["lines"]]
    mark = "FAILED" if row["problems"] else "ok"
    cells = (row["name"], f"{mark}: {row['about']}", "<br>".join(said))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def lines(result: Result) -> Iterator[str]:
    """What a row prints when it has ended."""
    mark = "FAILED" if result.problems else "ok"
    yield f"{result.name}: {mark}: {result.about} ({result.took_s:.0f} s)"
    for line in result.lines:
        yield f"  {line}"
    for problem in result.problems:
        yield f"  not as it should be: {problem}"


def table(results: Sequence[Result]) -> Iterator[str]:
    """All figures, in columns."""
    cells = [
        (result.name if number == 0 else "", figure.name, _number(figure), figure.unit)
        for result in results
        for number, figure in enumerate(result.figures)
    ]
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(4)]
    for name, what, value, unit in cells:
        line = f"{name:<{widths[0]}}  {what:<{widths[1]}}  {value:>{widths[2]}}  {unit}"
        yield line.rstrip()


def _number(figure: Figure) -> str:
    exact = figure.unit == "s" and figure.value < 100
    return f"{figure.value:,.{1 if exact else 0}f}"


def conclusion(results: Sequence[Result], took_s: float) -> str:
    """The last line."""
    failed = [result for result in results if result.problems]
    if not failed:
        return f"vagrant: ok ({len(results)} rows in {took_s / 60:.0f} min)"
    more = f" (and {len(failed) - 1} more rows)" if len(failed) > 1 else ""
    return f"vagrant: FAILED: {failed[0].name}: {'; '.join(failed[0].problems)}{more}"
