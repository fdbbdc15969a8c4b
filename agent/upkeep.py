"""Defines the commands of ``lb-agent`` for a change of an instance's name or of the release."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agent.clitools import config_option, guarded


@click.command("take-over")
@config_option
@click.option(
    "--from", "former", required=True, metavar="NAME", help="The name that the instance had."
)
def take_over(path: Path, former: str) -> None:
    """Continue under another name after `name:` has changed in the configuration.

    The program, its tables with the recorded flows, and the state files pass to the new name; no
    connection is affected. Stop the agent first, and start it afterwards.

    Example: lb-agent take-over --from default
    """

    def work() -> None:
        from agent.config.load import load_file
        from agent.dataplane.program import require_root
        from agent.takeover import take_over as move

        require_root()
        config = load_file(path)
        move(config, former)
        click.echo(f"{former} is {config.name} from now on: start the agent")

    guarded(work)


@click.command("rollback-check")
@config_option
@click.option(
    "--to",
    "folder",
    required=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="A checkout of the former release.",
)
def rollback_check(path: Path, folder: Path) -> None:
    """Show which open connections a return to a former release would cost; changes nothing.

    Exit status 1: some would be reset, or might be.

    Example: lb-agent rollback-check --to /tmp/former
    """

    def work() -> None:
        from agent.config.load import load_file
        from agent.dataplane import abi
        from agent.dataplane.program import require_root
        from agent.rollback import cost, open_flows, release_at

        require_root()
        release = release_at(folder)
        found = cost(release, open_flows(load_file(path)))
        click.echo(f"from ABI {abi.ABI_VERSION} to ABI {release.abi} ({folder})")
        for line in found.lines:
            click.echo(f"  {line}")
        if found.is_free:
            return
        click.echo(
            f"{found.reset} connections are reset, {found.moved} may be. To lose none, first hand"
            " over to another balancer or drain the services (docs/upgrade.md)"
        )
        sys.exit(1)

    guarded(work)
