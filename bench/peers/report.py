"""Turns the measurements into Markdown and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from bench.machine import Machine
from bench.peers.rounds import AT_ONCE, FLOOD, HONEST, PACE, Measurement, Plan, Result

DISTURBED = 0.15  # of the time; interrupts that wake an idle core take up to 0.1


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity over all rounds."""

    median: float
    least: float
    most: float

    def text(self, digits: int) -> str:
        """Return it as in ``12.3 (11.9 to 12.8)``."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


def figure(values: Iterable[float]) -> Figure:
    """Return median and extremes."""
    all_values = list(values)
    return Figure(statistics.median(all_values), min(all_values), max(all_values))


@dataclass(frozen=True, slots=True)
class Row:
    """Return the figures of one contender."""

    name: str
    answers: str
    short_us: Figure  # CPU of the data path per short connection
    core_us: Figure  # all that kept the core busy, per short connection
    paced_us: Figure  # as short_us, at the same pace for all contenders
    up_s_per_gb: Figure
    down_s_per_gb: Figure
    control_ms_per_s: Figure
    connections_per_s: Figure
    flood_served: Figure  # percent of the honest connections during a flood
    flood_core: Figure  # percent of the core during a flood
    disturbed: int  # measurements in which others used the core too much
    measurements: int
    target_us: float | None
    command: str
    configuration: str
    note: str

    @property
    def missed(self) -> bool:
        """Return whether it is over its target."""
        return self.target_us is not None and self.short_us.median > self.target_us


def row(result: Result) -> Row:
    """Return the figures of one contender."""

    def of(kind: str, value: Callable[[Measurement], float], paced: bool = False) -> Figure:
        return figure(
            value(m)
            for m in result.measurements
            if m.load.kind == kind and bool(m.load.rate) == paced and not m.load.flood
        )

    def data_us(measured: Measurement) -> float:
        return measured.spent.per_connection_us(measured.load.connections)

    floods = [m for m in result.measurements if m.load.flood]
    contender, running = result.contender, result.running
    return Row(
        name=contender.name,
        answers="through it" if contender.both_ways else "past it",
        short_us=of("short", data_us),
        core_us=of("short", lambda m: m.spent.busy_per_connection_us(m.load.connections)),
        paced_us=of("short", data_us, paced=True),
        up_s_per_gb=of("up", lambda m: m.spent.per_gb_s(m.load.payload)),
        down_s_per_gb=of("down", lambda m: m.spent.per_gb_s(m.load.payload)),
        control_ms_per_s=of("short", lambda m: m.spent.control_ms_per_s, paced=True),
        connections_per_s=of("short", lambda m: m.load.connections / m.seconds),
        flood_served=figure(100 * (1 - m.failed / m.load.connections) for m in floods),
        flood_core=figure(100 * m.spent.busy_share for m in floods),
        disturbed=sum(m.spent.other_share > DISTURBED for m in result.measurements),
        measurements=len(result.measurements),
        target_us=contender.target_us,
        command=running.command,
        configuration=running.configuration,
        note=running.note,
    )


_HEAD = (
    "contender", "answers go", "µs per short connection", "whole core",
    f"at {PACE:,} per s", "CPU s per GB up", "down", "control, ms per s", "connections/s",
    "% served in a flood", "% of the core then",
)  # fmt: skip


def markdown(machine: Machine, plan: Plan, rows: Sequence[Row]) -> str:
    """Return the report as Markdown."""
    connections = next(load.connections for load in plan.loads if load.kind == "short")
    setup = (
        f"{machine.cpu}, {machine.cpus} CPUs, {machine.caches}, hypervisor: {machine.hypervisor}. "
        f"{machine.kernel}, BPF JIT {machine.jit}. Spectre v2: {machine.mitigations}. "
        f"Commit {machine.commit}, {machine.date}."
    )
    method = (
        f"CPU of the balancer's core, median (least to most) of {plan.rounds} "
        f"round{'s' if plan.rounds > 1 else ''} of {connections:,} short connections, "
        f"{AT_ONCE} at once, and of bulk in frames of 1,500 bytes. A flood is {FLOOD:,} packets of "
        f"strangers a second, beside {HONEST} honest connections a second. How to read it: "
        "[docs/benchmarks.md](../../docs/benchmarks.md#against-the-peers)."
    )
    parts = ["# Against the peers", setup, method, _table(_HEAD, [_cells(r) for r in rows])]
    missed = [r.name for r in rows if r.missed]
    if any(r.target_us is not None for r in rows):
        parts.append(_verdict(rows, missed))
    disturbed, taken = sum(r.disturbed for r in rows), sum(r.measurements for r in rows)
    parts.append(
        f"Disturbed, because others had over {DISTURBED:.0%} of the balancer's core: "
        f"{disturbed} of {taken} measurements."
    )
    parts += ["## What was run", *map(_how, rows)]
    return "\n\n".join(parts) + "\n"


def _verdict(rows: Sequence[Row], missed: Sequence[str]) -> str:
    target = next(r.target_us for r in rows if r.target_us is not None)
    said = f"over it: {', '.join(missed)}" if missed else "met in every mode"
    return f"Target: at most {target:.0f} µs per short connection; {said}."


def _cells(row: Row) -> Sequence[str]:
    return (
        row.name,
        row.answers,
        row.short_us.text(1),
        f"{row.core_us.median:.1f}",
        row.paced_us.text(1),
        row.up_s_per_gb.text(2),
        row.down_s_per_gb.text(2),
        f"{row.control_ms_per_s.median:.0f}",
        f"{row.connections_per_s.median:,.0f}",
        row.flood_served.text(1),
        f"{row.flood_core.median:.0f}",
    )


def _how(row: Row) -> str:
    note = f" ({row.note})" if row.note else ""
    text = f"**{row.name}**{note}: `{row.command}`"
    if row.configuration:
        text += f"\n\n```\n{row.configuration.rstrip()}\n```"
    return text


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    dashes = "|" + "|".join(["-"] * 2 + ["-:"] * (len(head) - 2)) + "|"
    return "\n".join([lines[0], dashes, *lines[1:]])


def as_json(machine: Machine, plan: Plan, rows: Sequence[Row], results: Sequence[Result]) -> str:
    """Return the report as JSON, with units in the keys and every measurement."""
    return json.dumps(
        {
            "machine": asdict(machine),
            "rounds": plan.rounds,
            "contenders": [asdict(row) | {"missed_target": row.missed} for row in rows],
            "measurements": [asdict(m) for result in results for m in result.measurements],
        },
        indent=2,
    )
