"""Makes docs/cli.md from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from lbctl.main import cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """\
<!-- Made from lbctl/ by `make docs`; do not edit. -->

# lbctl

"""


def page() -> str:
    """Return the whole reference."""
    return HEAD + "\n".join(_command(click.Context(cli, info_name="lbctl"), cli, level=1)) + "\n"


def _command(ctx: click.Context, command: click.Command, *, level: int) -> Iterator[str]:
    if level > 1:
        yield f"{'#' * min(level, 4)} {ctx.command_path}"
        yield ""
    yield from _help(command)
    yield from (f"Usage: `{usage(ctx, command)}`", "")
    yield from _options(command)
    for child in children(ctx, command):
        yield from _command(child, child.command, level=level + 1)


@dataclass(frozen=True, slots=True)
class Example:
    """Commands to copy, and the line above them."""

    title: str
    lines: tuple[str, ...]


def paragraphs(command: click.Command) -> Iterator[str | Example]:
    """Yield the paragraphs of the help text; a paragraph after ``\\b`` is an example."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if not paragraph.startswith("\b"):
            yield paragraph
            continue
        title, *lines = paragraph.removeprefix("\b").strip("\n").splitlines()
        yield Example(title, tuple(line.removeprefix("  ") for line in lines))


def usage(ctx: click.Context, command: click.Command) -> str:
    """Return how the command is called, in one line."""
    parts = [ctx.command_path, "[OPTIONS]"]
    for param in command.params:
        if isinstance(param, click.Argument):
            name = param.metavar or _type(param) or (param.name or "").upper()
            many = param.nargs == -1 and not name.endswith(("...", "…"))
            parts.append(f"{name}..." if many else name)
    if isinstance(command, click.Group):
        parts.append("COMMAND …")
    return " ".join(parts)


def options(command: click.Command) -> list[click.Option]:
    """Return the visible options, except ``--help``."""
    return [one for one in command.params if isinstance(one, click.Option) and not one.hidden]


def names(option: click.Option) -> str:
    """Return all names of an option."""
    both = ", ".join(option.secondary_opts)
    return ", ".join(option.opts) + (f" / {both}" if both else "")


def value(option: click.Option) -> str:
    """Return the placeholder of an option's value; empty: it takes none."""
    return "" if option.is_flag else option.metavar or _type(option)


def text(option: click.Option) -> str:
    """Return what an option is for, and its default."""
    described = " ".join((option.help or "").split())
    notes = []
    if option.required:
        notes.append("required")
    if option.show_default and option.default is not None:
        notes.append(f"default: {option.default}")
    return f"{described} [{', '.join(notes)}]" if notes else described


def children(ctx: click.Context, command: click.Command) -> Iterator[click.Context]:
    """Yield the commands of a group, each with its context."""
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            if child is not None and not child.hidden:
                yield click.Context(child, info_name=name, parent=ctx)


def _help(command: click.Command) -> Iterator[str]:
    for each in paragraphs(command):
        if isinstance(each, str):
            yield from (each, "")
        else:
            yield from (each.title, "", "```sh", *each.lines, "```", "")


def _options(command: click.Command) -> Iterator[str]:
    if not options(command):
        return
    yield from ("| Option | |", "|-|-|")
    for option in options(command):
        # A pipe would end the table's cell.
        name = f"{names(option)} {value(option)}".rstrip().replace("|", "\\|")
        told = text(option).replace("|", "\\|")
        yield f"| `{name}` | {told} |"
    yield ""


def _type(param: click.Parameter) -> str:
    if isinstance(param.type, click.Choice):
        return "[" + "|".join(str(choice) for choice in param.type.choices) + "]"
    return param.type.name.upper()


def files() -> dict[Path, str]:
    """Return the text of each file."""
    return {PAGE: page()}
