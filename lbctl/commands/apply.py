"""``lbctl apply``: makes the running services equal to a file."""

from __future__ import annotations

from pathlib import Path

import click

from lbctl.changes import (
    Order,
    RefusedError,
    ask,
    counted,
    order_cut,
    report,
    report_done,
    show_plan,
)
from lbctl.environment import Environment, pass_environment
from lbctl.options import agent_options, dry_run_option, yes_option


@click.command()
@click.option(
    "-f",
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="A configuration file, or - for standard input.",
)
@dry_run_option
@yes_option
@agent_options
@pass_environment
def apply(env: Environment, path: Path, dry_run: bool, yes: bool) -> None:
    """Make the running services equal to a file.

    Shows the plan, and asks on a terminal. The services that the file does not have are
    removed. The file is a configuration file, or only its "services:" (and "defaults:") part;
    other settings belong into the agent's own file and are left alone.

    \b
    Examples:
      lbctl apply -f services.yaml --dry-run
      lbctl apply -f services.yaml --yes
    """
    from lbctl.wanted import STDIN, read

    agent = env.agent()
    wanted = read(env, agent, path)
    if wanted.ignored:
        env.note(
            f"left alone, as they are settings of the agent's own file: {', '.join(wanted.ignored)}"
        )
    order = Order("services.apply", values={"services": wanted.services})
    plan = agent.post("/v1/edit", order.body(dry_run=True))
    if dry_run or not plan["changes"]:
        report(env, plan if dry_run else plan | {"applied": True})
        return
    body = order.body(dry_run=False)
    if yes:
        report(env, order_cut(env, agent, "/v1/edit", body, yes=True))
        return
    removals = [change for change in plan["changes"] if change["action"] == "remove"]
    # Standard input cannot be the file and the answer, too.
    if env.interactive and path != STDIN:
        show_plan(env, plan)
        ask(env, f"Apply: {counted(plan['changes'])}?")
        report_done(env, order_cut(env, agent, "/v1/edit", body, yes=False))
        return
    if removals:
        show_plan(env, plan)
        raise RefusedError(
            f"not applying unasked, with {counted(removals)}: there is no terminal to ask on",
            remedy="--yes applies without asking",
        )
    report(env, order_cut(env, agent, "/v1/edit", body, yes=False))
