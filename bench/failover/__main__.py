"""``python -m bench.failover``: measure, print, and keep the result in bench/results."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from agent.dataplane.program import require_root
from agent.errors import SteelyardError
from bench import machine
from bench.failover import measure, network, plan, report, steady, watch
from bench.failover.cases import CASES
from bench.failover.measure import Found, MeasureError
from bench.failover.report import Document
from lbctl.lab.interrupt import Guard, Interrupted

_RESULTS = Path(__file__).parents[1] / "results"
_TOOLS = {"keepalived": "keepalived", "nft": "nftables", "gcc": "gcc libc6-dev", "ip": "iproute2"}
_AT_ONCE = 4
_LONGEST_STEADY_S = 840  # what the client's records have room for


def _progress(text: str) -> None:
    print(f"failover: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _prepare() -> None:
    require_root()
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise MeasureError(
            "programs that the comparison runs are not installed",
            where="this machine",
            remedy=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
    network.remove_abandoned()


def _keepalived() -> str:
    done = subprocess.run(
        ["keepalived", "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    words = (done.stderr or done.stdout).split()
    return words[1] if len(words) > 1 else "?"


def _guarded[T](work: Callable[[Path], T]) -> T:
    """Call ``work`` with the client's compiled program; clean up, also after an interrupt."""
    try:
        _prepare()
        with (
            Guard() as guard,
            tempfile.TemporaryDirectory(prefix="steelyard-failover-") as folder,
            guard.interruptible(),
        ):
            return work(watch.compile_tool(Path(folder)))
    except SteelyardError as error:
        raise click.ClickException(str(error)) from error
    except Interrupted as left:
        _progress(f"{left}: ended, nothing is kept")
        sys.exit(left.exit_code)


def _keep(folder: Path | None, part: str, content: Document) -> Document:
    """Return the kept document with this part replaced; write it if a folder is given."""
    path = (folder or _RESULTS) / "failover.json"
    document: Document = json.loads(path.read_text()) if path.exists() else {}
    document = {**document, part: content} if folder else {part: content}
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(report.as_json(document))
        (folder / "failover.md").write_text(report.markdown(document))
    return document


def _finish(document: Document) -> None:
    print(report.markdown(document))
    for mark in report.missed(document):
        _progress(f"missed: {mark.what}: {mark.found}, wanted {mark.wanted}")


_KEEP = click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results, also those of a partial run.",
)


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="Only adverts every 10 ms, each case twice: a minute.")
@click.option(
    "--case", "cases", multiple=True, type=click.Choice([c.name for c in CASES]), help="Only this."
)
@click.option(
    "--variant", "variants", multiple=True, type=click.Choice([v.name for v in plan.VARIANTS])
)
@click.option("--pair", "pairs", multiple=True, type=click.Choice([p.name for p in plan.PAIRINGS]))
@click.option("--repetitions", type=click.IntRange(1, 500), help="Per case; each has a default.")
@click.option("--seed", default=1, show_default=True, help="Seed of the times of faults.")
@_KEEP
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    cases: tuple[str, ...],
    variants: tuple[str, ...],
    pairs: tuple[str, ...],
    repetitions: int | None,
    seed: int,
    keep: Path | None,
) -> None:
    """Compare outages of a pair of ours with those of a pair of keepalived. Needs root.

    A whole run without a failed measurement is kept in bench/results/failover.{md,json}.
    """
    if context.invoked_subcommand is not None:
        return
    series = plan.narrowed(plan.QUICK if quick else plan.WHOLE, cases, variants, pairs, repetitions)
    if not series:
        raise click.ClickException("there is no measurement of this variant, pair and case")

    def work(tool: Path) -> list[Found]:
        alone = plan.tasks((one for one in series if one.alone), seed)
        found = measure.run(alone, tool, 1, _progress)
        together = plan.tasks((one for one in series if not one.alone), seed)
        return found + measure.run(together, tool, _AT_ONCE, _progress)

    found = _guarded(work)
    content = report.outages(machine.describe(), _keepalived(), found)
    part = quick or cases or variants or pairs or repetitions or content["failures"]
    _finish(_keep(keep or (None if part else _RESULTS), "outages", content))
    if content["failures"]:
        raise click.ClickException(f"{len(content['failures'])} measurements failed")


@main.command("steady")
@click.option(
    "--seconds", default=600, show_default=True, type=click.IntRange(1, _LONGEST_STEADY_S)
)
@click.option(
    "--pair",
    "pairs",
    multiple=True,
    type=click.Choice([p.name for p in plan.BOTH]),
    help="Only this.",
)
@_KEEP
def steady_command(seconds: int, pairs: tuple[str, ...], keep: Path | None) -> None:
    """Count false failovers of pairs without a fault, while every core is busy. Needs root.

    Ten minutes of all pairs are kept beside the outages.
    """
    chosen = [
        (variant, pairing)
        for variant in (plan.FAST, plan.MIDDLE)
        for pairing in plan.BOTH
        if not pairs or pairing.name in pairs
    ]
    found = _guarded(lambda tool: steady.run(chosen, tool, seconds, _progress))
    whole = seconds >= 600 and not pairs
    content = report.steady(machine.describe(), seconds, found)
    _finish(_keep(keep or (_RESULTS if whole else None), "steady", content))


if __name__ == "__main__":
    main()
