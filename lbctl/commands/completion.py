"""``lbctl completion``: the script by which a shell completes lbctl's arguments."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lbctl.environment import Environment, pass_environment

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
@pass_environment
def completion(env: Environment, ctx: click.Context, shell: str) -> None:
    """Print the completion script for bash, zsh or fish.

    The script also completes services and backends: it asks the agent for their names.

    \b
    Examples:
      lbctl completion bash > /etc/bash_completion.d/lbctl
      lbctl completion zsh > "${fpath[1]}/_lbctl"
      lbctl completion fish > ~/.config/fish/completions/lbctl.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this version of click knows no completion for {shell}")
    env.write(kind(ctx.find_root().command, {}, "lbctl", "_LBCTL_COMPLETE").source())
