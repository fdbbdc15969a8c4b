"""``lbctl discovery``: the sources of backends, and what they have named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import SERVICE, agent_options
from lbctl.output import emit
from lbctl.settings import discover_settings


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@agent_options
@click.pass_context
def discovery(ctx: click.Context) -> None:
    """Sources of backends: list, show, accept, test.

    Without a subcommand, it lists them.

    \b
    Examples:
      lbctl discovery
      lbctl discovery show chat
      lbctl discovery test dns=_http._tcp.gpu.example.org
    """
    if ctx.invoked_subcommand is None:
        _list(ctx.ensure_object(Environment))


@discovery.command("list")
@agent_options
@pass_environment
def list_(env: Environment) -> None:
    """List the services with a source of backends, and whether its answers can be used.

    \b
    Example:
      lbctl discovery list -o json
    """
    _list(env)


def _list(env: Environment) -> None:
    emit(env, env.agent().get("/v1/discovery"), _table)


def _table(data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import age
    from lbctl.layout import Cell, Column, Table

    if not data["sources"]:
        return ["no service has a source of backends: lbctl service set SERVICE --discover …"]
    columns = (
        Column("SERVICE"),
        Column("SOURCE"),
        Column("TARGETS", right=True),
        Column("LEFT OUT", right=True),
        Column("ANSWERED", drop=1),
        Column("STATE", prose=True),
    )
    rows = tuple(
        (
            Cell(each["service"]),
            Cell(each["source"]),
            Cell(str(sum(1 for target in each["targets"] if target["left_s"] is None))),
            Cell(str(each["left_out_total"])),
            Cell("never" if each["answered_s"] is None else f"{age(each['answered_s'])} ago"),
            Cell(*_state(each)),
        )
        for each in data["sources"]
    )
    return [Table(columns, rows, prose_under="SOURCE")]


def _state(source: Mapping[str, Any]) -> tuple[str, str]:
    if source["held"] is not None:
        return f"held: {source['problem']}: lbctl discovery accept {source['service']}", "yellow"
    if source["problem"]:
        return source["problem"], "red"
    return ("in use", "green") if source["answered"] else ("not yet asked", "yellow")


@discovery.command("show")
@click.argument("service", type=SERVICE)
@agent_options
@pass_environment
def show(env: Environment, service: str) -> None:
    """Show what a service's source has named, and which targets are no backends, and why.

    \b
    Example:
      lbctl discovery show chat
    """
    from agent.errors import ApiError

    sources = env.agent().get("/v1/discovery")["sources"]
    source = next((each for each in sources if each["service"] == service), None)
    if source is None:
        known = ", ".join(each["service"] for each in sources)
        raise ApiError(
            f"there is no service {service} with a source of backends",
            remedy=f"these have one: {known}"
            if known
            else f"give it one: lbctl service set {service} --discover …",
        )
    emit(env, source, lambda data: _view(env, data))


def _view(env: Environment, source: Mapping[str, Any]) -> list[object]:
    from agent.humanise import age
    from lbctl.output import facts

    answered = source["answered_s"]
    return [
        *facts(
            env,
            [
                ("service", source["service"]),
                ("source", source["source"]),
                ("match", ", ".join(f"{k}={v}" for k, v in source["match"].items()) or "-"),
                ("state", _state(source)[0]),
                ("answered", "never" if answered is None else f"{age(answered)} ago"),
                ("targets", f"{source['min']} to {source['max']}"),
                ("removed", f"at most {source['most_removed']:.0%} at once"),
            ],
        ),
        "",
        *_targets(source["targets"]),
        *_left_out(source),
    ]


def _targets(targets: list[Mapping[str, Any]]) -> list[object]:
    from agent.humanise import age
    from lbctl.layout import Cell, Column, Table

    if not targets:
        return ["no target is a backend"]
    columns = (
        Column("BACKEND"),
        Column("ADDRESS"),
        Column("WEIGHT", right=True),
        Column("STATE"),
        Column("ZONE", drop=1),
        Column("NOTE", prose=True),
    )

    def note(target: Mapping[str, Any]) -> str:
        said = []
        if target["left_s"] is not None:
            said.append(f"no longer named for {age(target['left_s'])}, and drains")
        if (override := target["override"]) is not None:
            kept = [f"{key} {value}" for key, value in override.items() if value is not None]
            said.append(f"an operator set {', '.join(kept)}")
        return "; ".join(said)

    rows = tuple(
        (
            Cell(target["name"]),
            Cell(_endpoint(target)),
            Cell(str(target["weight"])),
            Cell(target["state"]),
            Cell(target["zone"] or "-"),
            Cell(note(target)),
        )
        for target in targets
    )
    return [Table(columns, rows, prose_under="ADDRESS")]


def _endpoint(target: Mapping[str, Any]) -> str:
    if target["port"] is None:
        return str(target["address"])
    address = f"[{target['address']}]" if ":" in target["address"] else target["address"]
    return f"{address}:{target['port']}"


def _left_out(source: Mapping[str, Any]) -> list[object]:
    if not source["left_out_total"]:
        return []
    shown = [f"  {each['target']}: {each['why']}" for each in source["left_out"]]
    more = source["left_out_total"] - len(source["left_out"])
    return ["", "left out:", *shown, *([f"  and {more} more"] if more else [])]


@discovery.command("accept")
@click.argument("service", type=SERVICE)
@agent_options
@pass_environment
def accept(env: Environment, service: str) -> None:
    """Use an answer that was held because it looked like a mistake.

    The targets that it lacks drain, and are removed when they have no flows left.

    \b
    Example:
      lbctl discovery accept chat
    """
    answer = env.agent_to_change().post(f"/v1/discovery/{service}/accept", {})
    emit(env, answer, _table)


@discovery.command("test")
@click.argument(
    "settings", nargs=-1, required=True, metavar="KEY=VALUE…", callback=discover_settings
)
@click.option("-6", "ipv6", is_flag=True, help="dns: ask for AAAA records instead of A.")
@agent_options
@click.pass_context
def test(ctx: click.Context, settings: Mapping[str, object], ipv6: bool) -> None:
    """Ask a source from this host, without the agent, and show what it names.

    The settings are keys of `discover`, as for `lbctl service set --discover`.

    \b
    Examples:
      lbctl discovery test file=/etc/steelyard/gpu.yaml match.model=llama
      lbctl discovery test http=https://inventory.example.org/gpu.json
      lbctl discovery test dns=gpu.example.org port=8000 server=127.0.0.1:8600
    """
    import asyncio

    from agent.config.discover_schema import DiscoverSection
    from agent.config.layers import name_of
    from agent.config.load import parse_section
    from agent.discovery import sources
    from agent.model import SOURCES

    discover = parse_section(DiscoverSection, settings, "the settings").model()
    if not discover.is_on:
        kinds = ", ".join(f"{kind}=…" for kind in SOURCES)
        raise click.UsageError(f"give one of {kinds}", ctx)
    answer = asyncio.run(sources.ask(discover, 6 if ipv6 else 4))
    env = ctx.ensure_object(Environment)
    data: dict[str, Any] = {
        "source": discover.source,
        "valid_s": answer.valid_s,
        "targets": [
            {
                "name": name_of(each),
                "address": str(each.address),
                "port": each.port,
                "weight": each.weight,
                "state": each.admin.value,
                "zone": each.zone,
                "left_s": None,
                "override": None,
            }
            for each in answer.targets
        ],
        "left_out": [{"target": each.what, "why": each.why} for each in answer.refused],
        "left_out_total": len(answer.refused),
    }
    emit(env, data, lambda found: [*_targets(found["targets"]), *_left_out(found)])
