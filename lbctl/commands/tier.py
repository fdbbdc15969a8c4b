"""``lbctl tier``: the HAProxy in front of the engines' VIPs, as `lb-agent tier` keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from agent.errors import AgentUnreachableError, SteelyardError
from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import Decorator, output_option
from lbctl.output import emit, facts

_SOON_DAYS = 14  # as the alert
_RELOAD_S = 120.0
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent")

_at_option: Decorator = click.option(
    "--tier-socket",
    "at",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/run/steelyard/tier/tier.sock"),
    envvar="STEELYARD_TIER_SOCKET",
    show_default=True,
    show_envvar=True,
    help="The socket of `lb-agent tier run`.",
)
_file_option: Decorator = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of keys.  [default: that of the tier that runs]",
)


@click.group(cls=SuggestingGroup)
def tier() -> None:
    """TLS and keys in front of engines: status, certs, keys, limits, reload.

    These commands are about the HAProxy that `lb-agent tier` keeps on this host.

    \b
    Examples:
      lbctl tier status
      lbctl tier keys add alice --requests-per-minute 600
    """


def _asked(at: Path, path: str, *, post: bool = False) -> dict[str, Any]:
    from agent.api.client import Client

    client = Client(at, _RELOAD_S)
    try:
        return client.post(path) if post else client.get(path)
    except AgentUnreachableError as error:
        raise AgentUnreachableError(
            "no tier answers there",
            where=str(at),
            remedy="run this as root on the tier's host; systemctl start lb-agent-tier, or name "
            "the socket: --tier-socket FOLDER/tier.sock",
        ) from error


@tier.command("status")
@_at_option
@output_option
@pass_environment
def status(env: Environment, at: Path) -> None:
    """Show what the tier does, what it refuses, and what is wrong with it.

    Exits with 1 while something is wrong.

    \b
    Example:
      lbctl tier status
    """
    found = _asked(at, "/v1/tier")
    emit(env, found, lambda data: _status(env, data))
    if found["problems"]:
        raise SystemExit(1)


def _status(env: Environment, data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import exact
    from lbctl.layout import Cell, Column, Table

    def counts(of: Mapping[str, int]) -> str:
        return ", ".join(f"{exact(count)} {what}" for what, count in of.items() if count) or "none"

    state = "running" if data["haproxy"] else "not running"
    ends = [each["end"] for each in data["certificates"]]
    left = data["leaving"]
    leaving = f", {exact(left['connections'])} more at older workers" if left["workers"] else ""
    shown = [
        ("tier", data["file"]),
        ("listens on", ", ".join(data["listen"])),
        ("HAProxy", f"{state}, {exact(data['connections'] or 0)} connections{leaving}"),
        ("handshakes", counts(data["handshakes_total"])),
        ("answers", counts(data["answers_total"])),
        ("refused", counts(data["refused_total"])),
        ("certificates", f"{len(ends)}, the first one ends {_day(min(ends))}" if ends else "none"),
        ("new workers", exact(data["reloads_total"])),
    ]
    if (affinity := data["affinity"]) is not None:
        kept = f"by {affinity['by']}, from {', '.join(affinity['sources'])}"
        shown.append(("sessions", kept if affinity["kept"] else "not kept at their engines"))
    columns = (
        Column("ENGINES"),
        Column("NOW", right=True),
        Column("QUEUED", right=True),
        Column("REQUESTS", right=True),
        Column("FAILED", right=True),
    )
    rows = tuple(
        (
            Cell(each["engines"]),
            Cell(exact(each["current"])),
            Cell(exact(each["queued"]), "yellow" if each["queued"] else ""),
            Cell(exact(each["requests_total"])),
            Cell(exact(each["failed_total"]), "red" if each["failed_total"] else ""),
        )
        for each in data["engines"]
    )
    problems = [f"problem: {each}" for each in data["problems"]]
    return [*facts(env, shown), "", Table(columns, rows), *([""] if problems else []), *problems]


def _day(end_s: float) -> str:
    return f"{datetime.fromtimestamp(end_s, UTC):%Y-%m-%d}"


@tier.command("certs")
@_at_option
@output_option
@pass_environment
def certs(env: Environment, at: Path) -> None:
    """List the certificates that are served, and when they end.

    \b
    Example:
      lbctl tier certs
    """
    found = _asked(at, "/v1/tier")
    data = {"certificates": found["certificates"], "problems": found["problems"]}
    emit(env, data, _certs)


def _certs(data: Mapping[str, Any]) -> list[object]:
    from lbctl.layout import Cell, Column, Table

    now = datetime.now(UTC).timestamp()
    rows = []
    for each in data["certificates"]:
        days = int((each["end"] - now) // 86_400)
        colour = "red" if days < 0 else "yellow" if days < _SOON_DAYS else ""
        left = "expired" if days < 0 else f"{days} days"
        rows.append((Cell(each["name"]), Cell(_day(each["end"])), Cell(left, colour)))
    table = Table((Column("CERTIFICATE"), Column("ENDS"), Column("LEFT", right=True)), tuple(rows))
    return [table, *(f"problem: {each}" for each in data["problems"])]


@tier.command("limits")
@_at_option
@output_option
@pass_environment
def limits(env: Environment, at: Path) -> None:
    """Show who asks how much now: each key, or without keys each client's address.

    \b
    Example:
      lbctl tier limits
    """
    found = _asked(at, "/v1/tier")
    emit(env, {"limits": found["limits"], "usage": found["usage"]}, _limits)


def _limits(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import exact
    from lbctl.layout import Cell, Column, Table

    columns = (
        Column("KEY OR CLIENT"),
        Column("REQUESTS/MIN", right=True),
        Column("TOKENS/MIN", right=True),
        Column("NOW", right=True),
    )
    usage = sorted(data["usage"].items(), key=lambda each: -each[1]["requests"])
    rows = tuple(
        (
            Cell(name),
            Cell(exact(used["requests"])),
            Cell(exact(used["tokens"])),
            Cell(exact(used["concurrent"])),
        )
        for name, used in usage
    )
    most = ", ".join(
        f"{name} {'none' if value is None else exact(value)}"
        for name, value in data["limits"].items()
    )
    return [f"limits of the tier: {most}", *([Table(columns, rows)] if rows else ["nobody asks"])]


@tier.command("reload")
@_at_option
@output_option
@pass_environment
def reload(env: Environment, at: Path) -> None:
    """Read the tier's file again. A file that is wrong changes nothing.

    \b
    Example:
      lbctl tier reload
    """
    emit(env, _asked(at, "/v1/reload", post=True), lambda data: _status(env, data))


@tier.group("keys", cls=SuggestingGroup)
def keys() -> None:
    """Keys of clients: list, add, remove.

    The tier takes changes of the file over within seconds, without a reload.

    \b
    Examples:
      lbctl tier keys add alice
      lbctl tier keys list
    """


def _keys_file(path: Path | None, at: Path) -> Path:
    if path is not None:
        return path
    try:
        named = _asked(at, "/v1/tier")["keys_file"]
    except AgentUnreachableError as error:
        error.remedy += "; or name the file of keys: --file"
        raise
    if named is None:
        raise SteelyardError(
            "the tier has no keys: anybody may ask",
            where=str(at),
            remedy="set `keys` in its file to the path of a file, or give --file",
        )
    return Path(named)


@keys.command("list")
@_file_option
@_at_option
@output_option
@pass_environment
def list_(env: Environment, path: Path | None, at: Path) -> None:
    """List the names of keys, and the limits that differ from the tier's.

    \b
    Example:
      lbctl tier keys list
    """
    from agent.tier.keys import read

    found = [{"name": key.name, **asdict(key.limits)} for key in read(_keys_file(path, at))]
    emit(env, {"keys": found}, _keys)


def _keys(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import exact
    from lbctl.layout import Cell, Column, Table

    if not data["keys"]:
        return ["there are no keys, so nobody may ask: lbctl tier keys add NAME"]
    columns = (
        Column("KEY"),
        Column("REQUESTS/MIN", right=True),
        Column("TOKENS/MIN", right=True),
        Column("CONCURRENT", right=True),
    )
    shown = {None: "-", 0: "none"}
    rows = tuple(
        (
            Cell(key["name"]),
            *(Cell(shown.get(key[limit]) or exact(key[limit])) for limit in _LIMITS),
        )
        for key in data["keys"]
    )
    return [Table(columns, rows)]


def _limit(name: str) -> Decorator:
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        type=click.IntRange(0, 1_000_000_000),
        metavar="N",
        help="A limit of its own; 0: none.  [default: the tier's]",
    )


@keys.command("add")
@click.argument("name")
@_limit("requests_per_minute")
@_limit("tokens_per_minute")
@_limit("concurrent")
@_file_option
@_at_option
@output_option
@pass_environment
def add(
    env: Environment,
    *,
    name: str,
    path: Path | None,
    at: Path,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent: int | None,
) -> None:
    """Make a key and show it, once: only its hash is kept.

    \b
    Example:
      lbctl tier keys add alice --requests-per-minute 600
    """
    from agent.tier import keys as tier_keys

    limits = tier_keys.Limits(requests_per_minute, tokens_per_minute, concurrent)
    text = tier_keys.add(_keys_file(path, at), name, limits)
    emit(env, {"name": name, "key": text}, lambda data: [data["key"]])


@keys.command("remove")
@click.argument("name")
@_file_option
@_at_option
@output_option
@pass_environment
def remove(env: Environment, name: str, path: Path | None, at: Path) -> None:
    """Remove a key. Requests that are being answered go on.

    \b
    Example:
      lbctl tier keys remove alice
    """
    from agent.tier import keys as tier_keys

    tier_keys.remove(_keys_file(path, at), name)
    emit(env, {"name": name}, lambda data: [f"removed {data['name']}"])
