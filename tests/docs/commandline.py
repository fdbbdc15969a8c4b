"""Says what is wrong with a command line of ours, by click's own parser, without running it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from agent.main import cli as agent_cli
from lbctl.main import cli as lbctl_cli

_PROGRAMS: dict[str, click.Command] = {"lbctl": lbctl_cli, "lb-agent": agent_cli}


def wrong_with(words: Sequence[str], *, whole: bool = True) -> str:
    """Return what is wrong with a call, or an empty text.

    ``whole``: it can be run. Otherwise it is a mention, in which arguments may be left out, and
    words such as SERVICE stand for them.
    """
    try:
        _parse(_PROGRAMS[words[0]], list(words[1:]), None, words[0], whole)
    except click.BadOptionUsage as error:
        # A mention may end with an option, of which it says no value.
        return error.format_message() if whole or error.option_name != words[-1] else ""
    except click.UsageError as error:
        return error.format_message()
    return ""


def _parse(
    command: click.Command, words: list[str], above: click.Context | None, name: str, whole: bool
) -> None:
    context = click.Context(command, info_name=name, parent=above, **command.context_settings)
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    # What is not given is an object of click's own.
    given = {
        key: value
        for key, value in values.items()
        if isinstance(value, str | tuple | list | bool) and value != ()
    }
    if {"help", "version"} & set(given):
        return
    for param in command.params:
        value = given.get(param.name or "")
        if value is not None:
            _convert(param, value, context, whole)
        elif whole and param.required and isinstance(param, click.Argument):
            raise click.MissingParameter(param=param, ctx=context)
    if isinstance(command, click.Group):
        if rest:
            child_name, child, more = command.resolve_command(context, rest)
            assert child is not None
            _parse(child, more, context, child_name or "", whole)
        elif whole and not command.invoke_without_command:
            raise click.UsageError(f"{context.command_path} needs a command")
    elif rest:
        raise click.UsageError(f"unexpected: {' '.join(rest)}")


def _convert(param: click.Parameter, value: object, context: click.Context, whole: bool) -> None:
    """Convert a value as click would, but of files: the page's reader has others."""
    if isinstance(param.type, click.Path | click.File) or isinstance(value, bool):
        return
    if not whole and any(word.isupper() for word in ([value] if isinstance(value, str) else value)):
        return
    param.type_cast_value(context, value)
