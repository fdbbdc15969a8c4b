"""Holds what the commands of ``lb-agent`` have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from agent.errors import ConfigError, SteelyardError

DEFAULT_CONFIG = Path("/etc/steelyard/agent.yaml")

config_option = click.option(
    "--config",
    "-c",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file.",
)


def guarded(work: Callable[[], object]) -> None:
    """Run a command; turn errors raised on purpose into a message and exit status 1."""
    try:
        work()
    except* SteelyardError as group:
        for error in leaves(group):
            problems = error.problems if isinstance(error, ConfigError) else (error,)
            for problem in problems:
                click.echo(f"lb-agent: {problem}", err=True)
        sys.exit(1)
    except* OSError as group:
        for failure in leaves(group):
            click.echo(f"lb-agent: {failure}", err=True)
        sys.exit(1)


def leaves[E: BaseException](group: BaseExceptionGroup[E]) -> list[E]:
    found: list[E] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
