"""Decides which manual pages exist, and what each contains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click

from agent import __version__
from agent.clitools import DEFAULT_CONFIG
from agent.config.reference import EXAMPLE, reference
from agent.main import cli as agent_cli
from lbctl.environment import DEFAULT_SOCKET
from lbctl.main import COMMANDS, cli
from lbctl.reference import Example, children, names, options, paragraphs, text, usage, value
from manual import roff

YAML = "steelyard-agent.yaml"


@dataclass(frozen=True, slots=True)
class Page:
    """A page, and its path below a folder of manual pages."""

    name: str
    number: int
    text: str

    @property
    def path(self) -> str:
        return f"man{self.number}/{self.name}.{self.number}"


def pages(date: str) -> Iterator[Page]:
    """Yield all pages; ``date`` is shown in their footer."""
    for name, number, body in _bodies():
        yield Page(name, number, roff.page(name, number, date, __version__, body))


def _bodies() -> Iterator[tuple[str, int, list[str]]]:
    root = click.Context(cli, info_name="lbctl", **cli.context_settings)
    yield "lbctl", 1, _root(root)
    for child in children(root, cli):
        yield _name_of(child), 1, _command(child)
    agent = click.Context(agent_cli, info_name="lb-agent", **agent_cli.context_settings)
    yield "lb-agent", 8, _agent(agent)
    yield YAML, 5, _configuration()


def _name_of(ctx: click.Context) -> str:
    return ctx.command_path.replace(" ", "-")


# -- the commands


def _root(ctx: click.Context) -> list[str]:
    """Return the page of lbctl itself, with references to the pages of its commands."""
    body = [*_head("lbctl", "control the Steelyard load balancer"), *_usage(ctx)]
    body += [*_description(ctx.command), *_options(ctx, heading=roff.section("options"))]
    for heading in dict.fromkeys(command.section for command in COMMANDS):
        body.append(roff.section(f"commands: {heading}"))
        for command in COMMANDS:
            if command.section == heading:
                label = f"{roff.bold(f'lbctl-{command.name}')}(1)"
                body += roff.item(label, command.help)
    files = {str(DEFAULT_SOCKET): "The agent's socket."}
    return [*body, *_files(files), *_see(("lb-agent", 8), (YAML, 5))]


def _command(ctx: click.Context) -> list[str]:
    """Return the page of a command with all its subcommands."""
    command = ctx.command
    body = [*_head(_name_of(ctx), command.get_short_help_str(limit=1000)), *_usage(ctx)]
    body += [*_description(command), *_options(ctx, heading=roff.section("options"))]
    below = [line for child in children(ctx, command) for line in _below(child)]
    if below:
        body += [roff.section("commands"), *below]
    return [*body, *_see(("lbctl", 1), ("lb-agent", 8))]


def _below(ctx: click.Context) -> Iterator[str]:
    yield roff.subsection(ctx.command_path)
    yield from (".PP", _called(ctx))
    yield from _help(ctx.command)
    yield from _options(ctx)
    for child in children(ctx, ctx.command):
        yield from _below(child)


def _agent(ctx: click.Context) -> list[str]:
    """Return the page of lb-agent with all its commands, as is usual for daemons."""
    body = [*_head("lb-agent", "agent of the Steelyard load balancer"), *_usage(ctx)]
    body += [*_description(ctx.command), *_options(ctx, heading=roff.section("options"))]
    body.append(roff.section("commands"))
    body += [line for child in children(ctx, ctx.command) for line in _below(child)]
    files = {
        str(DEFAULT_CONFIG): f"The configuration, see {YAML}(5).",
        str(DEFAULT_SOCKET): "The socket on which lbctl(1) talks to it.",
    }
    return [*body, *_files(files), *_see(("lbctl", 1), (YAML, 5))]


def _head(name: str, what: str) -> list[str]:
    return [
        roff.section("name"),
        rf"{roff.literal(name)} \- {roff.prose(what.removesuffix('.'))}",
    ]


def _usage(ctx: click.Context) -> list[str]:
    lines = [_called(ctx)]
    for child in children(ctx, ctx.command):
        lines += [".br", _called(child)]
    return [roff.section("synopsis"), ".nh", *lines, ".hy"]


def _called(ctx: click.Context) -> str:
    """Return the command in bold, and its arguments."""
    rest = usage(ctx, ctx.command).removeprefix(ctx.command_path)
    return roff.bold(ctx.command_path) + roff.literal(rest)


def _description(command: click.Command) -> list[str]:
    return [roff.section("description"), *_help(command)]


def _help(command: click.Command) -> Iterator[str]:
    for each in paragraphs(command):
        if isinstance(each, Example):
            yield from roff.paragraph(each.title)
            yield from roff.code(each.lines)
        else:
            yield from roff.paragraph(each)


def _options(ctx: click.Context, heading: str = "") -> Iterator[str]:
    """Yield the options; a separate page has a heading for them, and includes ``--help``."""
    if heading:
        yield heading
    for option in options(ctx.command):
        given = value(option)
        label = roff.bold(names(option)) + (f" {roff.italic(given)}" if given else "")
        yield from roff.item(label, text(option))
    asked = ctx.command.get_help_option(ctx)
    if heading and asked is not None:
        # Not the option's own names: click keeps those of the first context that asked for it.
        yield from roff.item(roff.bold(", ".join(ctx.help_option_names)), text(asked))


# -- the configuration


def _configuration() -> list[str]:
    body = _head(YAML, "configuration of the Steelyard load balancer")
    files = {str(DEFAULT_CONFIG): "The file, unless `lb-agent --config` names another."}
    example = EXAMPLE.read_text(encoding="utf-8")
    body += [roff.section("description"), *roff.from_markdown(reference(example))]
    return [*body, *_files(files), *_see(("lb-agent", 8), ("lbctl", 1))]


def _files(files: dict[str, str]) -> Iterator[str]:
    yield roff.section("files")
    for path, what in files.items():
        yield from roff.item(roff.italic(path), what)


def _see(*others: tuple[str, int]) -> Iterator[str]:
    yield roff.section("see also")
    yield ", ".join(f"{roff.bold(name)}({number})" for name, number in others)
