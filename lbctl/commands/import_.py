"""``lbctl import``: configurations of other balancers, converted."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import click

from lbctl.converted import Converted, Note
from lbctl.environment import Environment

# The keywords that begin the sections of each, at the start of a line.
_OF_HAPROXY = re.compile(r"^\s*(?:defaults|frontend|backend|listen)\b", re.MULTILINE)
_OF_KEEPALIVED = re.compile(
    r"^\s*(?:global_defs|virtual_server|vrrp_instance|virtual_server_group)\b", re.MULTILINE
)


class Source(enum.Enum):
    """The programs whose configurations are converted."""

    HAPROXY = "haproxy"
    KEEPALIVED = "keepalived"


class _VipType(click.ParamType[IPv4Address | IPv6Address]):
    name = "address"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> IPv4Address | IPv6Address:
        try:
            return ip_address(value)
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 or IPv6 address", param, ctx)


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@click.option(
    "--from",
    "source",
    type=click.Choice([each.value for each in Source]),
    help="The program that FILE is for. Default: as its content says.",
)
@click.option(
    "--interface",
    "-i",
    metavar="NAME",
    help="Where clients' packets come in. Default: the interface of keepalived's first "
    "vrrp_instance, or of a bind line of HAProxy.",
)
@click.option(
    "--vip",
    "vips",
    type=_VipType(),
    multiple=True,
    metavar="ADDRESS",
    help="For HAProxy, where it listens on every address (bind :80): the address that clients "
    "connect to. Can be given several times.",
)
@click.pass_context
def import_(
    ctx: click.Context,
    path: Path,
    source: str | None,
    interface: str | None,
    vips: tuple[IPv4Address | IPv6Address, ...],
) -> None:
    """Convert another balancer's configuration: keepalived's or HAProxy's.

    The result is printed as agent.yaml. Of keepalived, virtual servers and VRRP instances are
    converted. Of HAProxy, everything that a layer-4 balancer can do is: proxies in mode tcp, and
    those in mode http that pass requests on as they are.

    Notes about what has no counterpart, or only a similar one, go to standard error, with the
    lines of FILE. If the result has to be changed before it can be used, or some service could not
    be converted, the exit status is 1.

    \b
    Examples:
      lbctl import /etc/keepalived/keepalived.conf > agent.yaml
      lbctl import /etc/haproxy/haproxy.cfg -i eth0 --vip 192.0.2.10 > agent.yaml
      lb-agent check --config agent.yaml
    """
    from agent.config.document import write_yaml
    from agent.config.load import parse, read_text
    from agent.errors import ConfigError

    env = ctx.ensure_object(Environment)
    try:
        text = read_text(path)
    except ConfigError as error:
        if isinstance(error.__cause__, OSError):
            error.remedy = "name keepalived's or HAProxy's file, which this user can read"
        raise
    chosen = Source(source) if source else _source(text, path)
    made = _converted(chosen, text, path, interface, vips)
    result = f"# Made from {path} by `lbctl import`.\n{write_yaml(made.document)}"
    env.write(result)
    for line in _lines(made.notes, path):
        click.echo(line, err=True)
    problems: Sequence[object] = ()
    try:
        parse(result, "the result")
    except ConfigError as error:
        problems = error.problems
    for problem in problems:
        click.echo(f"to be changed: {problem}", err=True)
    if problems or not made.is_complete:
        ctx.exit(1)


def _source(text: str, path: Path) -> Source:
    """Return what a file is for, by the sections in it. Raises ConfigError if it has none."""
    from agent.errors import ConfigError

    if _OF_KEEPALIVED.search(text):
        return Source.KEEPALIVED
    if _OF_HAPROXY.search(text):
        return Source.HAPROXY
    raise ConfigError(
        "it has no section of keepalived's or HAProxy's configuration",
        where=str(path),
        remedy="name another file; if it only includes others, name these, or give --from",
    )


def _converted(
    source: Source,
    text: str,
    path: Path,
    interface: str | None,
    vips: tuple[IPv4Address | IPv6Address, ...],
) -> Converted:
    if source is Source.HAPROXY:
        from lbctl.haproxy.binds import Site
        from lbctl.haproxy.convert import convert
        from lbctl.haproxy.grammar import parse
        from lbctl.haproxy.ledger import Ledger

        return convert(Ledger(parse(text, str(path))), Site(interface, vips))
    from lbctl import keepalived, keepalived_conf

    return keepalived.convert(keepalived_conf.parse(text, str(path)), interface)


def _lines(notes: Sequence[Note], path: Path) -> Iterator[str]:
    """Yield the notes for a person: one for all lines that it holds for."""
    places: dict[str, list[int]] = {}
    for note in notes:
        places.setdefault(note.text, []).append(note.line)
    for text, lines in places.items():
        where = ",".join(str(line) for line in dict.fromkeys(lines) if line)
        yield f"{path}:{where}: {text}" if where else f"{path}: {text}"
