"""``python -m vagrant.smoke``: machines up, the rows, a table, machines down."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from agent.errors import SteelyardError
from bench import machine
from lbctl.lab.interrupt import Guard, Interrupted
from lbctl.lab.judge import Outcome
from vagrant.smoke import report, rows
from vagrant.smoke.children import VagrantError
from vagrant.smoke.machines import Machines, require
from vagrant.smoke.report import Guests, Result
from vagrant.smoke.rows import Row
from vagrant.smoke.ssh import CONFIG
from vagrant.smoke.stage import Stage

_RESULTS = Path(__file__).parents[2] / "bench" / "results"


def _progress(text: str) -> None:
    print(f"vagrant: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def _guarded() -> Iterator[Guard]:
    """Signals wait until they are welcome; an interruption and an error end with a line."""
    try:
        with Guard() as guard:
            yield guard
    except Interrupted as left:
        print(f"vagrant: interrupted by {left}", flush=True)
        sys.exit(left.exit_code)
    except SteelyardError as error:
        print(f"vagrant: FAILED: {' '.join(str(error).split())}", flush=True)
        sys.exit(1)


@click.group(invoke_without_command=True)
@click.option(
    "--rows", "names", metavar="NAME,…", default="", help="Only these; `modes` is the first eight."
)
@click.option("--keep", is_flag=True, help="Leave the machines up.")
@click.option("--list", "listed", is_flag=True, help="Name the rows, and do nothing.")
@click.option(
    "--keep-results",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for vagrant.md and vagrant.json, of a whole run or not.  [default: a whole run"
    " that is ok, in bench/results]",
)
@click.pass_context
def main(
    context: click.Context, names: str, keep: bool, listed: bool, keep_results: Path | None
) -> None:
    """Bring up virtual machines, test balancing and failover from a client, and remove them.

    Machines that run already are used, and left up. The local box of vagrant/build-box is built
    if there is none; STEELYARD_VM_BOX=debian/trixie64 takes a public one instead.

    \b
    Examples:
      python -m vagrant.smoke
      python -m vagrant.smoke --keep --rows modes,drain
    """
    if context.invoked_subcommand is not None:
        return
    if listed:
        for row in rows.ROWS:
            print(f"{row.name:16} {row.about}")
        return
    with _guarded() as guard:
        wanted = rows.chosen(name for name in names.split(",") if name)
        _test(guard, wanted, keep, keep_results)


def _test(guard: Guard, wanted: Sequence[Row], keep: bool, keep_results: Path | None) -> None:
    require()
    machines = _machines()
    results: list[Result] = []
    begun_s = time.monotonic()
    finished = False
    try:
        with guard.interruptible():
            guests = _bring_up(machines)
            stage = Stage(machines, _progress)
            for row in wanted:
                results.append(_play(stage, row))
                print(*report.lines(results[-1]), sep="\n", flush=True)
        finished = not any(result.problems for result in results)
    except Interrupted:
        finished = True
        raise
    finally:
        remains = _leave(machines, keep)
        _tidy(machines, well=finished and not remains)
    took_s = time.monotonic() - begun_s
    print(*report.table(results), sep="\n")
    whole = finished and len(wanted) == len(rows.ROWS)
    if folder := keep_results or (_RESULTS if whole else None):
        _write(folder, report.document(guests, results, took_s))
    if remains:
        raise remains
    print(report.conclusion(results, took_s), flush=True)
    if not finished:
        sys.exit(1)


def _bring_up(machines: Machines) -> Guests:
    begun_s = time.monotonic()
    machines.up()
    stage = Stage(machines, _progress)
    _progress("waiting until all is settled")
    stage.settle()
    return Guests(
        host=machine.describe(),
        virtualization=stage.virtualization,
        kernel=stage.run(machines.client, "uname", "-sr").strip(),
        memory_mib=sum(stage.memory_mib(name) for name in machines.names),
        machines=machines.names,
        up_s=None if machines.found_running else round(time.monotonic() - begun_s, 1),
    )


def _play(stage: Stage, row: Row) -> Result:
    """One row, from a settled pair; if it fails, what the machines say of it is kept."""
    _progress(f"{row.name}: {row.about}")
    begun_s = time.monotonic()
    try:
        stage.settle()
        outcome = row.act(stage)
    except VagrantError as error:
        outcome = Outcome(problems=[str(error)])
    took_s = time.monotonic() - begun_s
    if outcome.problems:
        outcome.say(f"journals: {stage.save_journals(row.name)}")
    return Result.of(row.name, row.about, took_s, outcome)


def _machines() -> Machines:
    return Machines(Path(tempfile.mkdtemp(prefix="steelyard-vagrant-")), _progress)


def _leave(machines: Machines, keep: bool) -> VagrantError | None:
    """Remove what is not to stay, and say why if that fails."""
    try:
        if keep or machines.found_running:
            machines.leave()
        else:
            machines.down()
    except VagrantError as error:
        _progress(f"not everything could be removed: {error}")
        return error
    return None


def _tidy(machines: Machines, *, well: bool) -> None:
    """Remove the folder of logs, unless something went wrong and it says something of that."""
    files = [path for path in machines.scratch.rglob("*") if path.is_file()]
    if well or not any(path.stat().st_size for path in files if path.name != CONFIG):
        shutil.rmtree(machines.scratch, ignore_errors=True)


def _write(folder: Path, found: report.Document) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vagrant.json").write_text(report.as_json(found))
    (folder / "vagrant.md").write_text(report.markdown(found))


@main.command()
def up() -> None:
    """Bring the machines up for people, and wait until the VIPs answer."""
    with _guarded() as guard:
        require()
        machines, well = _machines(), True
        try:
            with guard.interruptible():
                guests = _bring_up(machines)
        except VagrantError:
            well = False
            raise
        finally:
            machines.leave()
            _tidy(machines, well=well)
        print(f"vagrant: {', '.join(guests.machines)} are up; remove them: make vagrant-down")


@main.command()
def down() -> None:
    """Remove the machines, and stop libvirt if it was started for them."""
    machines, well = _machines(), False
    with _guarded() as guard:
        try:
            with guard.interruptible():
                machines.down()
                well = True
        finally:
            _tidy(machines, well=well)
        print("vagrant: nothing is left")


if __name__ == "__main__":
    main()
