"""``python -m vagrant.peers``: IPVS beside Steelyard in the virtual machines; keeps the result."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from agent.errors import SteelyardError
from bench import machine
from lbctl.lab.interrupt import Guard, Interrupted
from vagrant.peers import plan, report
from vagrant.peers.plan import Plan
from vagrant.peers.report import Balancer, Kept
from vagrant.peers.rounds import Measurement, Rounds
from vagrant.peers.setting import Setting
from vagrant.smoke.children import VagrantError
from vagrant.smoke.machines import Machines, require
from vagrant.smoke.report import Guests
from vagrant.smoke.stage import EMULATED, Stage

_RESULTS = Path(__file__).parents[2] / "bench" / "results"
_PAGE, _DATA = "vagrant-peers.md", "vagrant-peers.json"


def _progress(text: str) -> None:
    print(f"peers: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@click.command()
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True)
@click.option("--add", is_flag=True, help="Add the rounds to the result that is kept.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=_RESULTS,
    help=f"Folder for {_PAGE} and {_DATA}.  [default: bench/results]",
)
@click.option("--keep", is_flag=True, help="Leave the machines up.")
def main(rounds: int, add: bool, results: Path, keep: bool) -> None:
    """Measure keepalived with IPVS and Steelyard on the same balancer, one after the other.

    The virtual machines are brought up if they do not run, and are afterwards as they were
    before. It takes some four minutes a round with emulated machines, and two more.

    \b
    Examples:
      python -m vagrant.peers
      python -m vagrant.peers --rounds 1 --add
    """
    try:
        with Guard() as guard:
            _compare(guard, rounds, results, add, keep)
    except Interrupted as left:
        print(f"peers: interrupted by {left}", flush=True)
        sys.exit(left.exit_code)
    except SteelyardError as error:
        print(f"peers: FAILED: {' '.join(str(error).split())}", flush=True)
        sys.exit(1)


def _compare(guard: Guard, rounds: int, results: Path, add: bool, keep: bool) -> None:
    require()
    scratch = Path(tempfile.mkdtemp(prefix="steelyard-peers-"))
    machines = Machines(scratch, _progress)
    taken: list[Measurement] = []
    # What is undone is undone whole: signals are heeded within interruptible() alone.
    with ExitStack() as undo:
        undo.callback(_leave, machines, keep)
        with guard.interruptible():
            machines.up()
            stage = Stage(machines, _progress)
            _progress("waiting until all is settled")
            stage.settle()
            chosen = plan.EMULATED if stage.virtualization == EMULATED else plan.REAL
            before = _kept_before(results / _DATA, chosen) if add else ()
            setting = Setting(stage)
            guests, balancer = _describe(stage, setting)
            setting.undone_by(undo)
            setting.prepare()
            measuring = Rounds(setting, chosen)
            first = 1 + max((m.round for m in before), default=-1)
            for number in range(first, first + rounds):
                taken += measuring.run(number)
        page = _write(results, Kept(guests, balancer, chosen, (*before, *taken)))
        _progress("putting the machines back as they were")
    shutil.rmtree(scratch, ignore_errors=True)
    print(page)
    print(f"peers: ok ({len(taken)} measurements)", flush=True)


def _write(folder: Path, kept: Kept) -> str:
    page = report.markdown(kept)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _PAGE).write_text(page)
    (folder / _DATA).write_text(report.as_json(kept))
    return page


def _kept_before(path: Path, chosen: Plan) -> tuple[Measurement, ...]:
    try:
        return report.measurements(path.read_text(), chosen)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VagrantError(
            f"nothing can be added to the result that is kept: {error}",
            where=str(path),
            remedy="measure anew, without --add",
        ) from error


def _describe(stage: Stage, setting: Setting) -> tuple[Guests, Balancer]:
    def told(*words: str) -> str:
        return stage.run(setting.balancer, *words).strip()

    machines = stage.machines
    guests = Guests(
        host=machine.describe(),
        virtualization=stage.virtualization,
        kernel=told("uname", "-sr"),
        memory_mib=sum(stage.memory_mib(name) for name in machines.names),
        machines=machines.names,
        up_s=None,
    )
    version = told("sh", "-c", "keepalived --version 2>&1 | head -n 1")
    jit = {"0": "off", "1": "on"}.get(told("sysctl", "-n", "net.core.bpf_jit_enable"), "?")
    balancer = Balancer(
        keepalived=version.split(" (")[0],
        jit=jit,
        mitigations=told("cat", "/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
        cpus=int(told("nproc")),
        configurations={c.name: c.configuration for c in setting.contenders},
    )
    return guests, balancer


def _leave(machines: Machines, keep: bool) -> None:
    if keep or machines.found_running:
        machines.leave()
    else:
        machines.down()


if __name__ == "__main__":
    main()
