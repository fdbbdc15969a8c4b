"""``lbctl apply``: makes the running services equal to a file."""

from __future__ import annotations

from pathlib import Path

import click

from lbctl.changes import Order, carry_out, report
from lbctl.environment import Environment, pass_environment
from lbctl.options import DURATION, agent_options, dry_run_option, message_option, yes_option


@click.command()
@click.option(
    "-f",
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="A configuration file, or - for standard input.",
)
@click.option(
    "--canary",
    "nodes",
    multiple=True,
    metavar="BALANCER",
    help="In a fleet: this balancer tries it first. May be given several times.",
)
@click.option(
    "--bake",
    "bake_s",
    type=DURATION,
    metavar="TIME",
    help="With --canary: all balancers take it after this time, such as 5m, if nothing goes wrong. "
    "Default: at `lbctl rollout promote`.",
)
@dry_run_option
@yes_option
@message_option
@agent_options
@pass_environment
def apply(
    env: Environment,
    path: Path,
    nodes: tuple[str, ...],
    bake_s: float | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Make the running services equal to a file.

    Shows the plan, and asks on a terminal. Services that the file does not have are
    removed. The file is a configuration file, or only its "services:" (and "defaults:") part;
    other settings belong in the agent's own file and are left alone.

    \b
    Examples:
      lbctl apply -f services.yaml --dry-run
      lbctl apply -f services.yaml --yes
      lbctl apply -f services.yaml --canary lb3 --bake 5m
    """
    from lbctl.wanted import STDIN, read

    if bake_s is not None and not nodes:
        raise click.UsageError("--bake needs --canary: which balancers try it first?")
    if bake_s == 0:
        raise click.UsageError(
            "--bake 0s leaves no time to try it. Without --bake, it is tried until "
            "`lbctl rollout promote` or `lbctl rollout abort`"
        )
    agent = env.agent_to_change()
    wanted = read(env, agent, path)
    if wanted.ignored:
        env.note(
            f"left alone, as they are settings of the agent's own file: {', '.join(wanted.ignored)}"
        )
    order = Order("services.apply", values={"services": wanted.services})
    plan = agent.post("/v1/edit", order.body(env, dry_run=True))
    if dry_run:
        report(env, plan)
        return
    canary = {"canary": {"nodes": list(nodes), "bake_s": bake_s or 0}} if nodes else {}
    # Standard input cannot be both the file and the answer.
    carry_out(
        env,
        agent,
        "/v1/edit",
        order.body(env, dry_run=False) | canary,
        plan=plan,
        what="Apply",
        yes=yes,
        may_ask=path != STDIN,
    )
    if nodes and plan["changes"]:
        env.note(f"only {', '.join(nodes)} runs it as yet: `lbctl rollout` shows how it does")
