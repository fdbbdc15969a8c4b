"""Command groups that import a command when it is run, and suggest a name for a mistyped one.

``lbctl --help`` must not pay for commands that it does not run, so the short help of the top-level
commands is kept in a table; a test compares it with the commands themselves.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import override

import click

from agent.errors import AgentUnreachableError, SteelyardError
from lbctl.suggest import nearest

EXIT_FAILED = 1
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is, and its help text before it is imported."""

    name: str
    module: str
    attribute: str
    help: str
    section: str


class CliError(click.ClickException):
    """One of our errors as click reports it: on stderr, with our exit code."""

    exit_code = EXIT_FAILED

    def __init__(self, error: SteelyardError) -> None:
        # A single problem is the error itself; its remedy may have been improved on the way here.
        problems = getattr(error, "problems", ())
        shown = problems if len(problems) > 1 else (error,)
        super().__init__("\n".join(str(problem) for problem in shown))


class CliUnreachableError(CliError):
    """No agent answered."""

    exit_code = EXIT_UNREACHABLE


class SuggestingGroup(click.Group):
    """A group that lists its commands in order, and suggests a command for a mistyped name."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = self.list_commands(ctx)
        if name in known or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        guess = nearest(name, known)
        hint = f"did you mean {guess}?" if guess else f"available: {', '.join(known)}"
        raise click.UsageError(f"no such command {name!r}; {hint}", ctx)


class LazyGroup(SuggestingGroup):
    """The root group: imports a command when it is run, and turns our errors into exit codes."""

    table: tuple[LazyCommand, ...] = ()

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [entry.name for entry in self.table]

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in self.table:
            if entry.name == cmd_name:
                command = getattr(importlib.import_module(entry.module), entry.attribute)
                assert isinstance(command, click.Command)  # noqa: S101
                return command
        return None

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry.section for entry in self.table):
            with formatter.section(section):
                formatter.write_dl(
                    [(entry.name, entry.help) for entry in self.table if entry.section == section]
                )

    @override
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except AgentUnreachableError as error:
            raise CliUnreachableError(error) from error
        except SteelyardError as error:
            raise CliError(error) from error
        except KeyboardInterrupt:
            # The shell's convention, if no command has a better exit code.
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
