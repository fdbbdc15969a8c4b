"""``lbctl reload``: has the agent read its configuration file again."""

from __future__ import annotations

import click

from lbctl.changes import message_of, order_cut, report
from lbctl.environment import Environment, pass_environment
from lbctl.options import agent_options, dry_run_option, message_option, yes_option


@click.command()
@dry_run_option
@yes_option
@message_option
@agent_options
@pass_environment
def reload(env: Environment, dry_run: bool, yes: bool) -> None:
    """Have the agent read its configuration file again.

    Does what "systemctl reload lb-agent" does, and shows what changed. If the file removes a
    service, or more than half of its backends, while they have open flows, the file may have been
    cut off: it is refused unless you confirm it, on a terminal or with --yes.

    \b
    Examples:
      lbctl reload --dry-run
      lbctl reload --yes
    """
    agent = env.agent_to_change()
    if dry_run:
        report(env, agent.post("/v1/reload", {"dry_run": True}))
        return
    report(env, order_cut(env, agent, "/v1/reload", message_of(env), yes=yes))
