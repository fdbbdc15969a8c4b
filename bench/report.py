"""Turns results into Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from bench.agent_side import AgentResult
from bench.cases import Result
from bench.machine import Machine
from bench.timing import Timing


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run measured."""

    machine: Machine
    packets: tuple[Result, ...]
    agent: tuple[AgentResult, ...]

    def missed(self) -> list[str]:
        """Return the names of the cases that are over their targets."""
        packets = [
            r.case.name
            for r in self.packets
            if r.case.target_ns is not None and r.all_features.min_ns > r.case.target_ns
        ]
        agent = [
            r.name for r in self.agent if r.target_ms is not None and r.median_ms > r.target_ms
        ]
        return packets + agent


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    machine = report.machine
    setup = (
        f"{machine.cpu}, {machine.cpus} CPUs, {machine.caches}, hypervisor: {machine.hypervisor}. "
        f"{machine.kernel}, BPF JIT {machine.jit}. Spectre v2: {machine.mitigations}. "
        f"Python {machine.python}. Commit {machine.commit}, {machine.date}."
    )
    parts = [setup]
    if report.packets:
        parts.append("Nanoseconds per packet, the wrapper's own cost subtracted:")
        beside = any(r.katran for r in report.packets)
        head = _PACKET_HEAD + (_KATRAN_HEAD if beside else ())
        parts.append(_table(head, [_packet_row(r, beside=beside) for r in report.packets]))
    if report.agent:
        parts.append("Milliseconds, beside the packet path:")
        parts.append(_table(_AGENT_HEAD, [_agent_row(r) for r in report.agent]))
    missed = report.missed()
    parts.append(f"Over target: {', '.join(missed)}." if missed else "Every target is met.")
    return "\n\n".join(parts) + "\n"


_PACKET_HEAD = (
    "case", "min", "median", "all features: min", "median", "target",
)  # fmt: skip
# The ratios are those of the program with all features.
_KATRAN_HEAD = ("Katran: min", "median", "ratio of min", "of median")
_AGENT_HEAD = ("case", "min", "median", "target")


def _packet_row(result: Result, *, beside: bool) -> Sequence[str]:
    case = result.case
    own = (
        case.name,
        f"{result.specialised.min_ns:.0f}",
        f"{result.specialised.median_ns:.0f}",
        f"{result.all_features.min_ns:.0f}",
        f"{result.all_features.median_ns:.0f}",
        "" if case.target_ns is None else f"≤ {case.target_ns:.0f}",
    )
    if not beside:
        return own
    theirs, ours = result.katran, result.all_features
    if theirs is None:
        return (*own, "", "", "", "")
    return (
        *own,
        f"{theirs.min_ns:.0f}",
        f"{theirs.median_ns:.0f}",
        f"{ours.min_ns / theirs.min_ns:.2f}",
        f"{ours.median_ns / theirs.median_ns:.2f}",
    )


def _agent_row(result: AgentResult) -> Sequence[str]:
    target = "" if result.target_ms is None else f"≤ {result.target_ms:.0f}"
    return (result.name, f"{result.min_ms:.1f}", f"{result.median_ms:.1f}", target)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def row(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join((first, *rest)) + " |"

    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join((row(head), row(dashes), *map(row, rows)))


def as_json(report: Report) -> str:
    """Return the report as JSON, with units in the keys."""
    return json.dumps(
        {
            "machine": asdict(report.machine),
            "packets": [
                {
                    "case": r.case.name,
                    "specialised": _timing(r.specialised),
                    "all_features": _timing(r.all_features),
                    "target_ns": r.case.target_ns,
                    "katran": _timing(r.katran) if r.katran else None,
                }
                for r in report.packets
            ],
            "agent": [asdict(r) for r in report.agent],
            "over_target": report.missed(),
        },
        indent=2,
    )


def _timing(timing: Timing) -> dict[str, float]:
    return asdict(timing)
