"""``lbctl server``: the machines behind all services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from agent.model import AdminState, BackendRef
from lbctl.changes import Order, change
from lbctl.commands.backend import (
    await_empty,
    wait_limit_option,
    wait_option,
)
from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.listing import Sorts, left_out, list_options, listed
from lbctl.options import (
    SERVER,
    agent_options,
    dry_run_option,
    message_option,
    watch_option,
)
from lbctl.output import render, watch
from lbctl.servers import STATES, Server, find, servers
from lbctl.settings import WEIGHT

_SORTS: Sorts = {
    "name": lambda server: server.name,
    "state": lambda server: STATES.index(server.worst),
    "connections": lambda server: -server.total("open_connections"),
    "waiting": lambda server: -server.total("waiting_bytes"),
    "new": lambda server: -sum(row["rates"]["new_flows_per_s"] for row in server.backends),
}
_words_argument = click.argument("words", type=SERVER, nargs=-1, required=True, metavar="SERVER...")


@click.group(cls=SuggestingGroup)
def server() -> None:
    """Servers, over all services: list, show, drain, enable, disable, weight.

    A server is named by its address, or by the name of its backends if no other server has
    backends of that name.

    \b
    Examples:
      lbctl server list --state down
      lbctl server drain gpu-7 --wait -m "new driver"
    """


@server.command("list")
@list_options(_SORTS, STATES)
@watch_option
@agent_options
@pass_environment
def list_servers(
    env: Environment,
    watch_s: float | None,
    states: tuple[str, ...],
    sort: str | None,
    limit: int | None,
) -> None:
    """List all servers: the worst state of their backends, the reason, and the load.

    BACKENDS shows how many of the server's backends are up.

    \b
    Examples:
      lbctl server list --sort waiting --limit 10
      lbctl server list --state down --state ejected
    """

    def once() -> str:
        known = servers(env.agent().get("/v1/services")["services"])
        wanted = [each for each in known if not states or each.worst in states]
        shown = listed(wanted, _SORTS, sort, limit)
        data = {"servers": [_json(each) for each in shown], "servers_total": len(wanted)}
        return render(env, data, lambda _: _table(shown, len(wanted)))

    watch(env, watch_s, once)


def _json(each: Server) -> dict[str, Any]:
    return {
        "name": each.name,
        "address": each.address,
        "state": each.worst,
        "reason": each.reason,
        "backends_up": sum(row["state"] == "up" for row in each.backends),
        "backends_total": len(each.backends),
        "open_connections": each.total("open_connections"),
        "waiting_bytes": each.total("waiting_bytes"),
        "backends": list(each.refs),
    }


def _table(shown: Sequence[Server], total: int) -> list[object]:
    from agent.humanise import age, count
    from lbctl.layout import Cell, Column, Table
    from lbctl.views import STATE_STYLES

    if not shown:
        return ["no servers"]
    columns = (
        Column("SERVER"),
        Column("ADDRESS"),
        Column("STATE"),
        Column("SINCE", right=True),
        Column("WHY", prose=True),
        Column("BACKENDS", right=True),
        Column("CONN", right=True),
        Column("NEW/S", right=True, drop=1),
        Column("WAITING B", right=True, drop=2),
    )
    rows = tuple(
        (
            Cell(each.name),
            Cell(each.address),
            Cell(each.worst, STATE_STYLES.get(each.worst, "")),
            Cell(age(max(r["since_s"] for r in each.backends if r["state"] == each.worst))),
            Cell(each.reason),
            Cell(f"{sum(row['state'] == 'up' for row in each.backends)}/{len(each.backends)}"),
            Cell(count(each.total("open_connections"))),
            Cell(count(sum(row["rates"]["new_flows_per_s"] for row in each.backends))),
            Cell(count(each.total("waiting_bytes"))),
        )
        for each in shown
    )
    return [Table(columns, rows, prose_under="STATE"), *left_out(len(shown), total)]


@server.command("show")
@click.argument("word", type=SERVER, metavar="SERVER")
@watch_option
@agent_options
@pass_environment
def show_server(env: Environment, word: str, watch_s: float | None) -> None:
    """Show the backends of a server, in every service.

    \b
    Example:
      lbctl server show gpu-7
    """

    def once() -> str:
        found = find(servers(env.agent().get("/v1/services")["services"]), word)
        rows = [dict(row) for each in found for row in each.backends]
        return render(env, {"backends": rows}, _show_view)

    watch(env, watch_s, once)


def _show_view(data: Mapping[str, Any]) -> list[object]:
    from lbctl.views import backend_table

    return [backend_table(data["backends"])]


@server.command("drain")
@_words_argument
@wait_option
@wait_limit_option
@dry_run_option
@message_option
@agent_options
@pass_environment
def drain_server(
    env: Environment, words: tuple[str, ...], wait: bool, wait_limit: float, dry_run: bool
) -> None:
    """Send no new flows to servers, in every service; their open flows go on.

    All backends are drained in one step, or none if a server does not exist.

    \b
    Examples:
      lbctl server drain gpu-7 --dry-run
      lbctl server drain gpu-7 gpu-8 --wait -m "new driver"
    """
    refs = _set(env, words, {"state": AdminState.DRAIN.value}, dry_run=dry_run)
    if wait and not dry_run:
        await_empty(env, refs, wait_limit)


@server.command("enable")
@_words_argument
@dry_run_option
@message_option
@agent_options
@pass_environment
def enable_server(env: Environment, words: tuple[str, ...], dry_run: bool) -> None:
    """Let drained or disabled servers serve again, in every service.

    \b
    Example:
      lbctl server enable gpu-7
    """
    _set(env, words, {"state": AdminState.ACTIVE.value}, dry_run=dry_run)


@server.command("disable")
@_words_argument
@dry_run_option
@message_option
@agent_options
@pass_environment
def disable_server(env: Environment, words: tuple[str, ...], dry_run: bool) -> None:
    """Maintenance: send nothing to servers in any service, not even packets of open flows.

    \b
    Example:
      lbctl server disable 10.0.0.27 --dry-run
    """
    _set(env, words, {"state": AdminState.MAINTENANCE.value}, dry_run=dry_run)


@server.command("weight")
@click.argument("word", type=SERVER, metavar="SERVER")
@click.argument("weight", type=WEIGHT, metavar="WEIGHT")
@dry_run_option
@message_option
@agent_options
@pass_environment
def weigh_server(env: Environment, word: str, weight: int, dry_run: bool) -> None:
    """Give a server this weight in every service.

    \b
    Example:
      lbctl server weight gpu-7 50
    """
    _set(env, (word,), {"weight": weight}, dry_run=dry_run)


def _set(
    env: Environment, words: Sequence[str], values: Mapping[str, object], *, dry_run: bool
) -> list[BackendRef]:
    """Set these values for every backend of the servers."""
    known = servers(env.agent().get("/v1/services")["services"])
    found = {each.address: each for word in words for each in find(known, word)}
    refs = [BackendRef(row["service"], row["name"]) for s in found.values() for row in s.backends]
    orders = [Order("backend.set", ref.service, ref.backend, values) for ref in refs]
    change(env, *orders, dry_run=dry_run)
    return refs
