"""Turns rows into Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.ai.cases import CASES, Case
from bench.ai.contenders import COMPLETE, REFERENCE
from bench.ai.results import (
    PERCENTILES,
    Health,
    Row,
    Verdict,
    ratios,
    verdicts,
)
from bench.machine import Machine


@dataclass(frozen=True, slots=True)
class Found:
    """All results of a run of the benchmark; the rows of a table are grouped by case."""

    machine: Machine
    lengths: str
    time_scale: float
    requests: int  # per case of the real run
    real: tuple[Row, ...]
    health: tuple[Health, ...]
    same: tuple[Row, ...]  # of the simulator, with the requests of the real run
    simulated: tuple[Row, ...]
    simulated_requests: int
    large: Mapping[str, tuple[Row, ...]]  # by site
    failed: tuple[str, ...] = ()  # contenders that could not be measured by real connections


def by_case(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return the rows by case and contender."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.contender] = row
    return found


def judged(rows: Iterable[Row], judge: str = COMPLETE) -> list[Verdict]:
    """Return the verdicts on all targets for which there are a row and a reference."""
    held = by_case(rows)
    return [
        verdict
        for case in CASES
        if judge in held.get(case.name, {}) and REFERENCE in held[case.name]
        for verdict in verdicts(case, held[case.name][judge], held[case.name][REFERENCE])
    ]


def markdown(found: Found) -> str:
    """Return the report as Markdown."""
    on = found.machine
    setup = (
        f"{on.cpu}, {on.cpus} CPUs, {on.kernel}. Commit {on.commit}, {on.date}. Lengths: "
        f"{found.lengths}. How it is measured and what it means: "
        "[docs/benchmarks-ai.md](../../docs/benchmarks-ai.md)."
    )
    units = (
        "Times are the engines' own, in ms. In brackets: the share of what "
        f"{REFERENCE} with the right weights has."
    )
    parts = ["# Time to first token, beside HAProxy and nginx", setup, units]
    if found.failed:
        parts.append(f"Could not be measured by real connections: {', '.join(found.failed)}.")
    if found.real:
        parts += [
            f"## Real connections: {found.requests:,} requests a case",
            f"The engines are {found.time_scale:g} times faster than real ones.",
            *_targets(found.real),
            *_tables(found.real),
            "### Did the machine keep up?",
            _health(found.health),
        ]
    if found.same and found.real:
        parts += ["## The simulator beside the real run", _beside(found.real, found.same)]
    parts += [
        f"## Simulated: {found.simulated_requests:,} requests a case",
        *_targets(found.simulated),
        *_tables(found.simulated),
    ]
    for site, rows in found.large.items():
        parts += [f"## Simulated: {site}", *_tables(rows)]
    return "\n\n".join(parts) + "\n"


def _targets(rows: Sequence[Row]) -> list[str]:
    said = judged(rows)
    missed = [verdict for verdict in said if not verdict.reached]
    table = _table(
        ("case", "percentile", "at most", COMPLETE, ""),
        [
            (
                verdict.case,
                verdict.percentile,
                f"{verdict.most:.2f}",
                f"{verdict.found:.2f}",
                "" if verdict.reached else "missed",
            )
            for verdict in said
        ],
    )
    return [f"Targets of `{COMPLETE}`: {len(said) - len(missed)} of {len(said)} reached.", table]


def _tables(rows: Sequence[Row]) -> Iterable[str]:
    for name, held in by_case(rows).items():
        reference = held.get(REFERENCE)
        case = next((case for case in CASES if case.name == name), Case(name, name))
        yield f"### {name}: {case.about}"
        yield _table(
            ("contender", *PERCENTILES, "tokens/s", "errors"),
            [_cells(row, reference) for row in held.values()],
        )


def _cells(row: Row, reference: Row | None) -> Sequence[str]:
    shares = ratios(row, reference) if reference else (1.0,) * len(PERCENTILES)
    times = (
        f"{1000 * time_s:.0f} ({share:.2f})"
        for time_s, share in zip(row.percentiles_s, shares, strict=True)
    )
    errors = ", ".join(f"{count} {what}" for what, count in row.errors.items()) or "0"
    return (row.contender, *times, f"{row.tokens_per_s:.0f}", errors)


def _health(rows: Sequence[Health]) -> str:
    idle = sorted(row.idle_share for row in rows)
    behind = [row for row in rows if not row.kept_up]
    said = (
        f"Idle processors: {idle[len(idle) // 2]:.0%} of the time at the median, at the least "
        f"{idle[0]:.0%}. The client took {max(row.client_cpu for row in rows):.0%} of one at "
        f"most, and sent {1000 * max(row.late_p50_s for row in rows):.1f} ms late at the worst "
        f"median, {1000 * max(row.late_p99_s for row in rows):.1f} ms at the worst 99th "
        f"percentile. Beyond the bounds: {len(behind)} of {len(rows)} measurements"
    )
    if not behind:
        return said + "."
    named = "; ".join(f"{row.contender}, {row.case}" for row in behind)
    return f"{said}: {named}."


def _beside(real: Sequence[Row], same: Sequence[Row]) -> str:
    simulated = by_case(same)
    rows = []
    for name, held in by_case(real).items():
        for contender, row in held.items():
            other = simulated.get(name, {}).get(contender)
            if other is None:
                continue
            pairs = zip(row.percentiles_s, other.percentiles_s, strict=True)
            rows.append((name, contender, *(f"{1000 * a:.0f} / {1000 * b:.0f}" for a, b in pairs)))
    return "The same requests at the same times, real / simulated, in ms.\n\n" + _table(
        ("case", "contender", *PERCENTILES), rows
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    dashes = "|" + "|".join(["-"] + ["-:"] * (len(head) - 1)) + "|"
    return "\n".join([lines[0], dashes, *lines[1:]])


def as_json(found: Found) -> str:
    """Return the report as JSON, with units in the keys and without the individual waits."""

    def rows(of: Iterable[Row]) -> list[dict[str, object]]:
        held = by_case(of)
        return [
            _row_as_json(row, each.get(REFERENCE))
            for each in held.values()
            for row in each.values()
        ]

    return json.dumps(
        {
            "machine": asdict(found.machine),
            "lengths": found.lengths,
            "time_scale": found.time_scale,
            "failed": found.failed,
            "reference": REFERENCE,
            "judged": COMPLETE,
            "targets_real": [asdict(v) | {"reached": v.reached} for v in judged(found.real)],
            "targets_simulated": [
                asdict(v) | {"reached": v.reached} for v in judged(found.simulated)
            ],
            "real": rows(found.real),
            "health": [asdict(row) | {"kept_up": row.kept_up} for row in found.health],
            "simulated_same_requests": rows(found.same),
            "simulated": rows(found.simulated),
            "large": {site: rows(of) for site, of in found.large.items()},
        },
        indent=2,
    )  # fmt: skip


def _row_as_json(row: Row, reference: Row | None) -> dict[str, object]:
    shares = ratios(row, reference) if reference else None
    return {
        "contender": row.contender,
        "case": row.case,
        "requests_counted": len(row.waits_s),
        "first_token_s": dict(zip(PERCENTILES, row.percentiles_s, strict=True)),
        "share_of_reference": dict(zip(PERCENTILES, shares, strict=True)) if shares else None,
        "tokens_per_s": row.tokens_per_s,
        "errors": dict(row.errors),
    }
