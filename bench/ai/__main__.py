"""``python -m bench.ai``: measure and simulate, print, and keep the result in bench/results."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from agent.dataplane.program import require_root
from agent.errors import SteelyardError
from bench import machine
from bench.ai import cases, fleet, plot, report, results, run, setups, simulations, trace
from bench.ai.cases import CASES, Case
from bench.ai.contenders import COMPLETE, REFERENCE, Contender, everybody
from bench.ai.report import Found
from bench.ai.results import PERCENTILES, Health, Row
from bench.ai.simulations import LARGE, Site
from bench.ai.trace import Lengths
from bench.peers import wiring

_RESULTS = Path(__file__).parents[1] / "results"
_TOOLS = {"haproxy": "haproxy", "nginx": "nginx libnginx-mod-stream", "nft": "nftables"}
_SERVERS = 8
_SEED = 1
_LARGE_CASES = ("trace", "bursty")
_IN_LARGE = (
    REFERENCE,
    "maglev",
    "least-conn",
    "least-load, waiting bytes",
    "least-load, telemetry",
    COMPLETE,
)
_IN_TAILS = (
    REFERENCE,
    "HAProxy random(2)",
    "maglev",
    "least-load, connections alone",
    "least-load, waiting bytes",
    COMPLETE,
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many requests each part sends."""

    real: int
    time_scale: float
    simulated: int
    seeds: tuple[int, ...]
    large: int


# The policy was chosen with runs of seeds 1 to 3, so the results that are kept use other seeds.
WHOLE = Sizes(real=4000, time_scale=10.0, simulated=20_000, seeds=(11, 12, 13), large=20_000)
QUICK = Sizes(real=1200, time_scale=10.0, simulated=5000, seeds=(1,), large=6000)


def _progress(text: str) -> None:
    print(f"ai: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _check_tools() -> None:
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise run.RunError(
            "programs that the comparison runs are not installed",
            where="this machine",
            remedy=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )


def _real(
    contenders: Sequence[Contender], chosen: Sequence[Case], of: Lengths, sizes: Sizes
) -> tuple[list[Row], list[Health], list[str]]:
    servers = fleet.servers(_SERVERS)
    weights = fleet.right_weights(servers, of)
    scenarios = {case.name: cases.scenario(case, servers, of, sizes.real, _SEED) for case in chosen}
    warm_up = cases.scenario(CASES[0], servers, of, sizes.real // 8, _SEED + 1)
    rows: list[Row] = []
    health: list[Health] = []
    failed: list[str] = []
    for contender in contenders:
        _progress(f"real: {contender.name}")
        mine = {
            case.name: scenarios[case.name]
            for case in chosen
            if contender.listens or not case.loses_telemetry
        }
        if not mine:
            continue
        try:
            setup = setups.setup(servers, weights, sizes.time_scale)
            found = run.run(contender.start, mine, setup, warm_up)
            measured = [
                results.measured(contender.name, name, mine[name], one, sizes.time_scale)
                for name, one in found.items()
            ]
        except SteelyardError as error:
            # Go on: the half hour of the other contenders must not be lost.
            _progress(f"  failed: {error}")
            failed.append(contender.name)
            continue
        for row, kept in measured:
            _progress(f"  {row.case}: " + ", ".join(f"{1000 * s:.0f}" for s in row.percentiles_s))
            rows.append(row)
            health.append(kept)
    return _in_order(_with_lost(rows, chosen), contenders, chosen), health, failed


def _with_lost(rows: list[Row], chosen: Sequence[Case]) -> list[Row]:
    """Add the first case's rows of contenders without telemetry to the case that loses it."""
    lost = next((case.name for case in chosen if case.loses_telemetry), None)
    have = {row.contender for row in rows if row.case == lost}
    if lost is None:
        return rows
    return rows + [
        Row(row.contender, lost, row.waits_s, row.percentiles_s, row.tokens_per_s, dict(row.errors))
        for row in rows
        if row.case == CASES[0].name and row.contender not in have
    ]


def _in_order(
    rows: Sequence[Row], contenders: Sequence[Contender], chosen: Sequence[Case]
) -> list[Row]:
    held = report.by_case(rows)
    return [
        held[case.name][contender.name]
        for case in chosen
        for contender in contenders
        if contender.name in held.get(case.name, {})
    ]


def _plots(found: Found, folder: Path) -> None:
    """Draw the plots that the documentation shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, rows in (("real", found.real), ("simulated", found.simulated)):
        held = report.by_case(rows)
        if not held:
            continue
        for index in (1, 2, 3):
            shares = {
                f"{name}: {of[REFERENCE].percentiles_s[index]:.2f} s at {REFERENCE}": {
                    contender: results.ratios(row, of[REFERENCE])[index]
                    for contender, row in of.items()
                }
                for name, of in held.items()
                if REFERENCE in of
            }
            if not shares:
                continue
            title = f"{PERCENTILES[index]} of the time to first token, as a share of {REFERENCE}'s"
            name = f"{kind}-{PERCENTILES[index].replace('.', '')}.svg"
            (folder / name).write_text(plot.bars(f"{title} ({kind})", shares, 2.0))
        for name, of in held.items():
            waits = {one: of[one].waits_s for one in _IN_TAILS if one in of}
            (folder / f"{kind}-tail-{name}.svg").write_text(plot.tails(f"{name} ({kind})", waits))


def _lengths(traces: Path | None) -> Lengths:
    """Load the lengths; in a folder that is named, the trace has to exist."""
    if traces and not (path := trace.path(place=traces)).exists():
        raise click.BadParameter(f"there is no {path.name} in it", param_hint="--traces")
    return trace.lengths(place=traces)


def _contenders(only: str | None) -> list[Contender]:
    """Return all contenders, or those whose names contain ``only``, and the reference."""
    wanted = {one.name for one in everybody() if only is None or only in one.name}
    if not wanted:
        raise click.BadParameter(f"no contender's name contains {only!r}", param_hint="--only")
    return [one for one in everybody() if one.name in wanted | {REFERENCE}]


@click.command()
@click.option("--quick", is_flag=True, help="Send a part of the load; keep nothing.")
@click.option("--only", metavar="TEXT", help="Only contenders whose name contains this text.")
@click.option(
    "--case", "one_case", type=click.Choice([case.name for case in CASES]), help="Only this case."
)
@click.option("--simulate", is_flag=True, help="Only simulate; needs no root.")
@click.option(
    "--traces",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the Azure traces.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results, also those of a partial run.",
)
def main(
    quick: bool,
    only: str | None,
    one_case: str | None,
    simulate: bool,
    traces: Path | None,
    keep: Path | None,
) -> None:
    """Compare the time to first token through Steelyard, HAProxy and nginx. Needs root.

    A whole run in which no contender failed is kept in bench/results/ai.{md,json} and
    bench/results/ai/*.svg.
    """
    sizes = QUICK if quick else WHOLE
    of = _lengths(traces)
    contenders = _contenders(only)
    chosen = [case for case in CASES if one_case in (None, case.name)]
    try:
        real: list[Row] = []
        health: list[Health] = []
        failed: list[str] = []
        if not simulate:
            require_root()
            _check_tools()
            wiring.refuse_second(setups.LAB_NAME)
            real, health, failed = _real(contenders, chosen, of, sizes)
        found = _simulated(contenders, chosen, of, sizes, real, health, failed)
    except SteelyardError as error:
        raise click.ClickException(str(error)) from error
    page = report.markdown(found)
    print(page)
    whole = not (quick or only or one_case or simulate or failed)
    if folder := keep or (_RESULTS if whole else None):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ai.md").write_text(page)
        (folder / "ai.json").write_text(report.as_json(found) + "\n")
        _plots(found, folder / "ai")
    if failed:
        kept = f"written to {folder}" if folder else "nothing was kept"
        raise click.ClickException(f"could not be measured: {', '.join(failed)}; {kept}")


def _simulated(
    contenders: Sequence[Contender],
    chosen: Sequence[Case],
    of: Lengths,
    sizes: Sizes,
    real: Sequence[Row],
    health: Sequence[Health],
    failed: Sequence[str],
) -> Found:
    site = Site(_SERVERS)
    same = []
    if real:
        # As in the lab: telemetry at its shortest interval, from engines that run faster.
        todo = simulations.cells(
            contenders, chosen, site, of, sizes.real, (_SEED,), setups.REPORT_S, sizes.time_scale
        )
        same = simulations.run(todo, of, _progress)
    todo = simulations.cells(contenders, chosen, site, of, sizes.simulated, sizes.seeds)
    simulated = simulations.run(todo, of, _progress)
    few = [one for one in contenders if one.name in _IN_LARGE]
    few_cases = [case for case in chosen if case.name in _LARGE_CASES]
    large = {
        big.name: tuple(
            simulations.run(
                simulations.cells(few, few_cases, big, of, sizes.large, (_SEED,)), of, _progress
            )
        )
        for big in LARGE
    }
    return Found(
        machine.describe(),
        of.source,
        sizes.time_scale,
        sizes.real,
        tuple(real),
        tuple(health),
        tuple(same),
        tuple(simulated),
        sizes.simulated * len(sizes.seeds),
        large,
        tuple(failed),
    )


if __name__ == "__main__":
    main()
