"""``lbctl context``: agents on other hosts, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import output_option
from lbctl.output import emit


@click.group(cls=SuggestingGroup)
def context() -> None:
    """Agents on other hosts, by name: list, add, use, remove.

    They are reached through `lb-agent api`, over TLS and with a client certificate. "lbctl
    --context NAME …" means one of them, and "use" makes one the default. The context "local" is
    the agent of this host.

    \b
    Example:
      lbctl context list
    """


@context.command("list")
@output_option
@pass_environment
def list_(env: Environment) -> None:
    """Show all contexts, and which one is used.

    \b
    Example:
      lbctl context list -o json
    """
    from lbctl import contexts
    from lbctl.layout import Cell, Column, Table

    found = contexts.read()
    rows = [{"name": contexts.LOCAL, "server": str(env.socket), "cert": None}] + [
        {"name": name, "server": each.server, "cert": each.cert}
        for name, each in found.known.items()
    ]
    data = {"contexts": [row | {"current": row["name"] == found.current} for row in rows]}
    columns = (Column("CONTEXT"), Column("USED"), Column("SERVER"), Column("CERTIFICATE"))

    def view(shown: Mapping[str, Any]) -> list[object]:
        cells = tuple(
            (
                Cell(str(each["name"])),
                Cell("yes" if each["current"] else ""),
                Cell(str(each["server"])),
                Cell(str(each["cert"] or "-")),
            )
            for each in shown["contexts"]
        )
        return [Table(columns, cells)]

    emit(env, data, view)


_name = click.argument("name", metavar="NAME")
_file = click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True)


@context.command("add")
@_name
@click.option("--server", required=True, metavar="HOST[:PORT]", help="Where `lb-agent api` is.")
@click.option("--cert", required=True, type=_file, help="Your certificate, in PEM.")
@click.option("--key", required=True, type=_file, help="Its key, in PEM, without a password.")
@click.option("--ca", type=_file, help="What the server's certificate must be signed by.")
@click.option("--use", is_flag=True, help="Make it the default.")
@pass_environment
def add(
    env: Environment, name: str, server: str, cert: Path, key: Path, ca: Path | None, use: bool
) -> None:
    """Add an agent on another host, or replace the one of that name.

    \b
    Example:
      lbctl context add lb1 --server lb1.example.org --cert me.pem --key me.key --ca ca.pem
    """
    from lbctl import contexts

    made = contexts.Context(server, str(cert), str(key), None if ca is None else str(ca))
    kept = contexts.read().with_context(name, made)
    contexts.write(contexts.Contexts(name if use else kept.current, kept.known))
    env.note(f"context {name}: {server}" + (", used from now on" if use else ""))


@context.command("use")
@_name
@pass_environment
def use(env: Environment, name: str) -> None:
    """Make a context the default; "local" is this host.

    \b
    Example:
      lbctl context use lb1
    """
    from lbctl import contexts

    found = contexts.read()
    found.target(name)
    contexts.write(contexts.Contexts(name, found.known))
    env.note(f"context {name} is used from now on")


@context.command("remove")
@_name
@pass_environment
def remove(env: Environment, name: str) -> None:
    """Forget a context. If it was the default, that is this host again.

    \b
    Example:
      lbctl context remove lb1
    """
    from lbctl import contexts

    contexts.write(contexts.read().without(name))
    env.note(f"context {name} is removed")
