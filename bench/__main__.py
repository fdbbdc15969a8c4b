"""``python -m bench``: measure, print, and keep the result in bench/results."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from agent.dataplane.program import require_root
from agent.errors import SteelyardError
from bench import agent_side, cases, machine, report, setting
from bench.katran import Katran

_RESULTS = Path(__file__).with_name("results")


def _matches(name: str, only: str | None) -> bool:
    return only is None or only in name or fnmatch.fnmatch(name, only)


def _progress(name: str) -> None:
    print(f"bench: {name}", file=sys.stderr, flush=True)


def _pin(cpu: int | None) -> None:
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(available) if cpu is None else cpu})


def _measure(quick: bool, only: str | None, katran_object: Path | None) -> report.Report:
    runs, repeat = (7, 100_000) if quick else (25, 500_000)
    chosen = [case for case in cases.cases() if _matches(case.name, only)]
    beside = [case for case in agent_side.cases() if _matches(case.name, only)]
    packets, agent = [], []
    for slots in (setting.DEFAULT_SLOTS, setting.LARGE_SLOTS):
        own = [case for case in chosen if case.slots == slots]
        with setting.bench(slots) as bench, _katran(katran_object, slots) as katran:
            for case in own:
                _progress(case.name)
                packets.append(cases.measure(bench, case, runs, repeat, katran))
            for agent_case in (c for c in beside if c.slots == slots):
                _progress(agent_case.name)
                agent.append(agent_case.measure(bench, 5 if quick else 15))
    packets.sort(key=lambda result: chosen.index(result.case))
    return report.Report(machine.describe(), tuple(packets), tuple(agent))


@contextlib.contextmanager
def _katran(path: Path | None, slots: int) -> Iterator[Katran | None]:
    """Load Katran's program with a connection table of ``slots`` entries, if an object is given."""
    if path is None:
        yield None
        return
    katran = Katran(path, slots)
    try:
        yield katran
    finally:
        katran.close()


@click.command()
@click.option("--quick", is_flag=True, help="Fewer and shorter runs of each case.")
@click.option("--only", metavar="PATTERN", help="Only cases whose name contains or matches it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
@click.option("--cpu", type=int, help="The CPU to run on; the last one by default.")
@click.option(
    "--katran",
    "katran_object",
    envvar="KATRAN_OBJECT",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="An object with Katran's program, to measure in turn with ours. [env: KATRAN_OBJECT]",
)
def main(
    quick: bool, only: str | None, as_json: bool, cpu: int | None, katran_object: Path | None
) -> None:
    """Measure the packet path and the agent. Needs root; attaches nothing to your interfaces.

    A whole run (neither --quick nor --only) is kept in bench/results/latest.{json,md}.
    """
    # As for Ctrl-C: the pinned tables, hundreds of megabytes, are removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        require_root()
        _pin(cpu)
        measured = _measure(quick, only, katran_object)
    except SteelyardError as error:
        raise click.ClickException(str(error)) from error
    if not measured.packets and not measured.agent:
        raise click.ClickException(f"no case matches {only!r}")
    page, data = report.markdown(measured), report.as_json(measured)
    print(data if as_json else page)
    if not quick and only is None:
        _RESULTS.mkdir(exist_ok=True)
        (_RESULTS / "latest.md").write_text("# Benchmark results\n\n" + page)
        (_RESULTS / "latest.json").write_text(data + "\n")


if __name__ == "__main__":
    main()
