"""``python -m bench.peers``: measure, print, and keep the result in bench/results."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from agent.dataplane.program import require_root
from agent.errors import SteelyardError
from bench import machine
from bench.peers import floors, haproxy, nftables, nginx, report, rounds, steelyard
from bench.peers.contender import Contender
from bench.peers.wiring import PeersError

_RESULTS = Path(__file__).parents[1] / "results"
_STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_TOOLS = {
    "haproxy": "haproxy",
    "nginx": "nginx",
    "nft": "nftables",
    "gcc": "gcc libc6-dev",
    "taskset": "util-linux",
    "ethtool": "ethtool",
    "ss": "iproute2",
}


def _check_packages() -> None:
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if not _STREAM_MODULE.exists():
        missing.append("libnginx-mod-stream")
    if missing:
        raise PeersError(
            "programs that the comparison runs are not installed",
            where="this machine",
            remedy=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )


def _contenders(only: str | None) -> list[Contender]:
    everybody = [
        *floors.contenders(),
        *steelyard.contenders(),
        *nftables.contenders(),
        *haproxy.contenders(),
        *nginx.contenders(),
    ]
    return [contender for contender in everybody if only is None or only in contender.name]


def _progress(text: str) -> None:
    print(f"peers: {text}", file=sys.stderr, flush=True)


@click.command()
@click.option("--quick", is_flag=True, help="One round with a fifth of the load; keep nothing.")
@click.option("--only", metavar="TEXT", help="Only contenders whose name contains this text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of Markdown.")
def main(quick: bool, only: str | None, as_json: bool) -> None:
    """Compare the CPU cost of Steelyard with that of HAProxy, nginx and nftables. Needs root.

    A whole run (neither --quick nor --only) is kept in bench/results/peers.{json,md}.
    """
    try:
        require_root()
        _check_packages()
        chosen = _contenders(only)
        if not chosen:
            raise click.ClickException(f"no contender matches {only!r}")
        plan = rounds.plan(quick)
        results = rounds.run(chosen, plan, _progress)
    except SteelyardError as error:
        raise click.ClickException(str(error)) from error
    rows = [report.row(result) for result in results]
    on = machine.describe()
    page, data = report.markdown(on, plan, rows), report.as_json(on, plan, rows, results)
    print(data if as_json else page)
    if not quick and only is None:
        _RESULTS.mkdir(exist_ok=True)
        (_RESULTS / "peers.md").write_text(page)
        (_RESULTS / "peers.json").write_text(data + "\n")


if __name__ == "__main__":
    main()
