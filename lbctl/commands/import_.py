"""``lbctl import``: configurations of other balancers, converted."""

from __future__ import annotations

from pathlib import Path

import click

from lbctl.environment import Environment
from lbctl.groups import SuggestingGroup


@click.group("import", cls=SuggestingGroup)
def import_() -> None:
    """Convert another balancer's configuration: keepalived.

    \b
    Example:
      lbctl import keepalived /etc/keepalived/keepalived.conf > agent.yaml
    """


@import_.command("keepalived")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@click.option(
    "--interface",
    "-i",
    metavar="NAME",
    help="Where clients' packets come in. Default: the interface of the first vrrp_instance.",
)
@click.pass_context
def keepalived(ctx: click.Context, path: Path, interface: str | None) -> None:
    """Print what keepalived's virtual servers and VRRP instances are here, as agent.yaml.

    Notes about what has no counterpart, or only a similar one, go to standard error, with the
    line of FILE. If the result has to be changed before it can be used, the exit status is 1.

    \b
    Examples:
      lbctl import keepalived /etc/keepalived/keepalived.conf > agent.yaml
      lb-agent check --config agent.yaml
    """
    from agent.config.document import write_yaml
    from agent.config.load import parse, read_text
    from agent.errors import ConfigError
    from lbctl.keepalived import convert
    from lbctl.keepalived_conf import parse as parse_statements

    env = ctx.ensure_object(Environment)
    made = convert(parse_statements(read_text(path), str(path)), interface)
    text = f"# Made from {path} by `lbctl import keepalived`.\n{write_yaml(made.document)}"
    env.write(text)
    for note in made.notes:
        click.echo(f"{path}:{note.line}: {note.text}", err=True)
    try:
        parse(text, "the result")
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"to be changed: {problem}", err=True)
        ctx.exit(1)
