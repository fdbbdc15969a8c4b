"""``lbctl history``: versions of the running configuration: list, compare, roll back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lbctl.changes import carry_out, change_lines, message_of, report
from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import (
    SERVICE,
    agent_options,
    dry_run_option,
    message_option,
    yes_option,
)
from lbctl.output import emit

TIMEOUT_S = 60.0  # enough to read and check thousands of backends

_number_argument = click.argument("number", type=click.IntRange(min=1), metavar="N")


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="Only the newest N.")
@agent_options
@click.pass_context
def history(ctx: click.Context, count: int | None) -> None:
    """Versions of the running configuration: show, diff, rollback.

    Without a subcommand, it lists every version, with who made it, when and why, the newest
    last. The last 200 versions are kept, fewer of very large configurations.

    \b
    Examples:
      lbctl history
      lbctl history diff 41 43
      lbctl history rollback 41 --service chat --dry-run
    """
    if ctx.invoked_subcommand is None:
        env = ctx.ensure_object(Environment)
        found = _versions(env)
        data = {"versions": found[-count:] if count else found}
        emit(env, data, lambda shown: _table(shown["versions"]))


def _versions(env: Environment) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = env.agent().get("/v1/history")["versions"]
    return found


def _table(versions: list[Mapping[str, Any]]) -> list[object]:
    from lbctl.commands.events import local_time
    from lbctl.layout import Cell, Column, Table

    if not versions:
        return ["no versions yet"]
    columns = (
        Column("VERSION", right=True),
        Column("TIME"),
        Column("BY"),
        Column("HOW", drop=1),
        Column("CHANGES", prose=True),
    )
    rows = tuple(
        (
            Cell(str(version["number"])),
            Cell(local_time(version["at"])),
            Cell(version["who"]),
            Cell(version["how"]),
            Cell(in_short(version)),
        )
        for version in versions
    )
    return [Table(columns, rows, prose_under="TIME")]


def in_short(version: Mapping[str, Any]) -> str:
    """Return why a version was made, and its first change."""
    said_why = f"“{version['message']}” " if version["message"] else ""
    if not version["changes"]:
        return said_why + ("as the file says" if version["how"] == "start" else "")
    more = version["changes_count"] - 1
    return f"{said_why}{version['changes'][0]}" + (f", and {more} more" if more else "")


@history.command("show")
@_number_argument
@agent_options
@pass_environment
def show(env: Environment, number: int) -> None:
    """Show who made a version, when and why, and what it changed.

    \b
    Example:
      lbctl history show 42
    """
    from agent.errors import ApiError
    from lbctl.commands.events import local_time
    from lbctl.output import facts

    version = next((each for each in _versions(env) if each["number"] == number), None)
    if version is None:
        raise ApiError(f"there is no version {number}", remedy="lbctl history lists them")

    def view(data: Mapping[str, Any]) -> list[object]:
        more = data["changes_count"] - len(data["changes"])
        shown = [*data["changes"], *([f"and {more} more"] if more else [])]
        return facts(
            env,
            [
                ("version", data["number"]),
                ("time", local_time(data["at"])),
                ("by", data["who"]),
                ("how", data["how"]),
                ("message", data["message"] or "-"),
                ("changes", "\n".join(shown) or "-"),
            ],
        )

    emit(env, version, view)


@history.command("diff")
@click.argument("old", type=click.IntRange(min=1))
@click.argument("new", type=click.IntRange(min=1), required=False, metavar="[NEW]")
@agent_options
@pass_environment
def diff(env: Environment, old: int, new: int | None) -> None:
    """Show what differs between version OLD and version NEW, or the running configuration.

    \b
    Examples:
      lbctl history diff 41
      lbctl history diff 41 43
    """
    answer = env.agent(TIMEOUT_S).get("/v1/history/diff", {"old": old, "new": new})
    emit(
        env,
        answer,
        lambda data: change_lines(data["changes"], effects=False) or ["no difference"],
    )


@history.command("rollback")
@_number_argument
@click.option("--service", type=SERVICE, help="Only this service; the others stay as they are.")
@dry_run_option
@yes_option
@message_option
@agent_options
@pass_environment
def rollback(env: Environment, number: int, service: str | None, dry_run: bool, yes: bool) -> None:
    """Run the services of version N again, or one of them.

    Shows the plan, and asks on a terminal. A rollback makes a new version, so it can be undone in
    the same way. Settings other than services belong to the file, and stay as they are.

    \b
    Examples:
      lbctl history rollback 41 --dry-run
      lbctl history rollback 41 --service chat -m "v2 of the model is too slow"
    """
    agent = env.agent_to_change()
    body: dict[str, object] = {"version": number, "service": service}
    plan = agent.post("/v1/rollback", body | {"dry_run": True})
    if dry_run:
        report(env, plan)
        return
    carry_out(
        env, agent, "/v1/rollback", body | message_of(env), plan=plan, what="Roll back", yes=yes
    )
