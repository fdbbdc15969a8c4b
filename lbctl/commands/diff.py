"""``lbctl diff``: the differences between the running and the written configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lbctl.changes import Order, change_lines
from lbctl.environment import Environment, pass_environment
from lbctl.options import agent_options
from lbctl.output import emit


@click.command()
@click.option(
    "-f",
    "--file",
    "path",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Compare with this file.  [default: the agent's own]",
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs.")
@agent_options
@pass_environment
def diff(env: Environment, path: Path | None, exit_code: bool) -> None:
    """Show what differs between running and written configuration.

    Without -f: what was changed at run time since the agent read its file.
    With -f: what "lbctl apply -f" would change.

    \b
    Examples:
      lbctl diff
      lbctl diff -f services.yaml --exit-code
    """
    answer = _since_file(env) if path is None else _to_file(env, path)
    # Past changes have had their effect already: only a plan says what it does to traffic.
    effects = path is not None
    emit(
        env,
        answer,
        lambda data: change_lines(data["changes"], effects=effects) or ["no difference"],
    )
    if exit_code and answer["changes"]:
        raise click.exceptions.Exit(1)


def _since_file(env: Environment) -> dict[str, Any]:
    answer = env.agent().get("/v1/config")
    if answer["changes_since_file"]:
        env.note("changed at run time, not in the agent's file (lbctl export prints what runs):")
    return {"changes": answer["changes_since_file"]}


def _to_file(env: Environment, path: Path) -> dict[str, Any]:
    from lbctl.wanted import read

    agent = env.agent()
    wanted = read(env, agent, path)
    if wanted.ignored:
        env.note(f"settings that differ, but that apply leaves alone: {', '.join(wanted.ignored)}")
    order = Order("services.apply", values={"services": wanted.services})
    return {"changes": agent.post("/v1/edit", order.body(env, dry_run=True))["changes"]}
