"""``lbctl service``: the services of the balancer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from agent.api.client import ApiNotFoundError
from agent.model import CheckKind, DownFlows, Forward, Protocol, Scheduler
from lbctl.changes import Order, change, guess, remove, require
from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import (
    ADDRESS,
    PORT,
    SERVICE,
    agent_options,
    dry_run_option,
    watch_option,
    yes_option,
)
from lbctl.output import facts, render, watch

FLOW_STATES = ("embryonic", "acked", "established", "closing")


@click.group(cls=SuggestingGroup)
def service() -> None:
    """Services: list, show, add, set, remove.

    \b
    Examples:
      lbctl service list
      lbctl service add chat --vip 10.0.0.10 --port 80 --backend gpu-1=10.0.0.21
    """


@service.command("list")
@watch_option
@agent_options
@pass_environment
def list_services(env: Environment, watch_s: float | None) -> None:
    """All services: state, why, since when, and their traffic.

    \b
    Example:
      lbctl service list --watch
    """

    def once() -> str:
        return render(env, env.agent().get("/v1/services"), _list_view)

    watch(env, watch_s, once)


def _list_view(data: Mapping[str, Any]) -> list[object]:
    from lbctl.views import service_table

    if not data["services"]:
        return ["no services yet: lbctl service add --help, or lbctl apply -f FILE"]
    return [service_table(data["services"])]


@service.command("show")
@click.argument("name", type=SERVICE, metavar="SERVICE")
@watch_option
@agent_options
@pass_environment
def show_service(env: Environment, name: str, watch_s: float | None) -> None:
    """One service in full, with its backends.

    \b
    Example:
      lbctl service show chat
    """

    def once() -> str:
        return render(env, get_service(env, name), lambda data: _show_view(env, data))

    watch(env, watch_s, once)


def get_service(env: Environment, name: str) -> dict[str, Any]:
    """One service of the agent; an unknown name comes with the nearest one."""
    from urllib.parse import quote

    agent = env.agent()
    try:
        return agent.get(f"/v1/services/{quote(name, safe='')}")
    except ApiNotFoundError as error:
        error.remedy = guess(agent, name, None)
        raise


def _show_view(env: Environment, data: Mapping[str, Any]) -> list[object]:
    from lbctl import views
    from lbctl.humanise import duration, exact

    timeouts = data["timeouts_s"]
    pairs: list[tuple[str, object]] = [
        ("service", data["name"]),
        ("vip", views.service_key(data)),
        ("state", views.state_text(data)),
        ("forward", f"{data['forward']}, scheduler {data['scheduler']}"),
        ("health check", _check(data["health_check"])),
        ("timeouts", ", ".join(f"{name} {duration(timeouts[name])}" for name in timeouts)),
        ("down flows", _DOWN_FLOWS.get(data["down_flows"], data["down_flows"])),
        ("traffic", views.rates_line(data["rates"])),
        ("totals", views.totals(data)),
        ("drops", views.reasons(data["drops_total"])),
    ]
    if data["flows_not_recorded_total"]:
        text = f"{exact(data['flows_not_recorded_total'])} flows found no room in the flow table"
        pairs.append(("not recorded", text))
    pieces = facts(env, pairs)
    if not data["backends"]:
        return [*pieces, "", f"no backends: lbctl backend add {data['name']}/NAME --address …"]
    return [*pieces, "", views.backend_table(data["backends"], with_service=False)]


_DOWN_FLOWS = {
    "keep": "keep (established flows stay with a backend that goes down)",
    "reroute": "reroute (established flows of a backend that goes down move)",
}


def _check(check: Mapping[str, Any]) -> str:
    """A health check on one line, whatever keys it has."""
    kind = check.get("type", "none")
    if kind == "none":
        return "none (backends count as up)"
    rest = ", ".join(
        f"{key.removesuffix('_s')} {_with_unit(key, value)}"
        for key, value in check.items()
        if key != "type" and value is not None
    )
    return f"{kind}: {rest}" if rest else str(kind)


def _with_unit(key: str, value: object) -> str:
    from lbctl.changes import value as plain
    from lbctl.humanise import duration

    return (
        duration(value) if key.endswith("_s") and isinstance(value, int | float) else plain(value)
    )


def _timeouts(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, object]:
    result: dict[str, object] = {}
    for text in given:
        state, equals, duration = text.partition("=")
        if not equals or state not in FLOW_STATES:
            raise click.BadParameter(
                f"{text!r} is not STATE=DURATION, STATE one of {', '.join(FLOW_STATES)}", ctx, param
            )
        result[state] = seconds(duration)
    return result


def seconds(text: str) -> object:
    """A bare number is seconds; what has a unit is read by the agent."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else text


def _duration(_ctx: click.Context, _param: click.Parameter, given: str | None) -> object:
    return None if given is None else seconds(given)


def _statuses(_ctx: click.Context, _param: click.Parameter, given: str | None) -> object:
    """200-399 stays a range; 200,204 becomes a list."""
    if given is None:
        return None
    parts = [int(part) if part.isdigit() else part for part in given.split(",")]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _choice(
    enumeration: type[Protocol | Forward | Scheduler | DownFlows | CheckKind],
) -> click.Choice[str]:
    return click.Choice([member.value for member in enumeration])


# Options whose name starts with health_ go under the key "health" of the configuration.
_SETTINGS = (
    click.option("--vip", type=ADDRESS, help="The address that clients connect to."),
    click.option("--port", type=PORT, help="1 to 65535, or any."),
    click.option("--protocol", type=_choice(Protocol), help="tcp or udp."),
    click.option("--forward", type=_choice(Forward), help="How packets reach the backends."),
    click.option("--scheduler", type=_choice(Scheduler), help="How a backend is chosen."),
    click.option(
        "--down-flows",
        type=_choice(DownFlows),
        help="What happens to the flows of a backend that goes down.",
    ),
    click.option(
        "--timeout",
        "timeouts",
        multiple=True,
        metavar="STATE=DURATION",
        callback=_timeouts,
        help="Idle time after which a flow is forgotten, as in established=15m; may be repeated.",
    ),
    click.option("--health", "health_type", type=_choice(CheckKind), help="Kind of health check."),
    click.option(
        "--health-port",
        type=click.IntRange(1, 65_535),
        metavar="PORT",
        help="Another port than the service's.",
    ),
    click.option("--health-interval", metavar="DURATION", callback=_duration, help="As in 2s."),
    click.option("--health-timeout", metavar="DURATION", callback=_duration, help="As in 500ms."),
    click.option(
        "--health-rise",
        type=click.IntRange(1),
        metavar="N",
        help="Passes in a row that make it up.",
    ),
    click.option(
        "--health-fall", type=click.IntRange(1), metavar="N", help="Failures that make it down."
    ),
    click.option(
        "--health-jitter",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Share of the interval, 0 to 1.",
    ),
    click.option("--health-method", metavar="METHOD", help="HTTP method."),
    click.option("--health-path", metavar="PATH", help="HTTP path, as in /health."),
    click.option("--health-host", metavar="NAME", help="Host header and TLS server name."),
    click.option(
        "--health-expect-status",
        metavar="STATUS",
        callback=_statuses,
        help="As in 200-399, or 200,204.",
    ),
    click.option(
        "--health-verify-tls/--health-no-verify-tls",
        default=None,
        help="Whether the certificate must be valid.",
    ),
)


def _settings(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_SETTINGS):
        function = option(function)
    return function


def _document(options: Mapping[str, object]) -> dict[str, object]:
    """The options given, in the shape of a service in the configuration."""
    given = {key: value for key, value in options.items() if value not in (None, {}, ())}
    values = {key: value for key, value in given.items() if not key.startswith("health_")}
    health = {
        key.removeprefix("health_"): value
        for key, value in given.items()
        if key.startswith("health_")
    }
    return values | {"health": health} if health else values


def _backends(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> list[dict[str, object]]:
    result = []
    for text in given:
        match = re.fullmatch(r"([^=/,]+)=([^,]+)(?:,weight=(\d+))?", text)
        if match is None:
            raise click.BadParameter(f"{text!r} is not NAME=ADDRESS[,weight=N]", ctx, param)
        name, address, weight = match.groups()
        entry: dict[str, object] = {"name": name, "address": ADDRESS.convert(address, param, ctx)}
        result.append(entry | {"weight": int(weight)} if weight else entry)
    return result


@service.command("add")
@click.argument("name", metavar="SERVICE")
@_settings
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME=ADDRESS[,weight=N]",
    callback=_backends,
    help="A backend of it; may be repeated.",
)
@dry_run_option
@agent_options
@pass_environment
def add_service(env: Environment, /, name: str, dry_run: bool, **options: object) -> None:
    """Add a service, with its backends if you like.

    \b
    Examples:
      lbctl service add chat --vip 10.0.0.10 --port 80 \\
          --health http --health-path /health \\
          --backend gpu-1=10.0.0.21 --backend gpu-2=10.0.0.22,weight=50
      lbctl service add dns --vip 10.0.0.53 --port 53 --protocol udp --dry-run
    """
    missing = [f"--{key}" for key in ("vip", "port") if options[key] is None]
    if missing:
        raise click.UsageError(
            f"a service needs {' and '.join(missing)}", click.get_current_context()
        )
    values = _document({"protocol": "tcp"} | {k: v for k, v in options.items() if v is not None})
    if not values.get("backends"):
        values.pop("backends", None)
    change(env, Order("service.add", name, values=values), dry_run=dry_run)


@service.command("set")
@click.argument("name", type=SERVICE, metavar="SERVICE")
@_settings
@dry_run_option
@agent_options
@pass_environment
def set_service(env: Environment, /, name: str, dry_run: bool, **options: object) -> None:
    """Change settings of a service; what is not named stays.

    \b
    Examples:
      lbctl service set chat --health-interval 1s --health-fall 2
      lbctl service set chat --forward ipip --dry-run
    """
    values = _document(options)
    require(values, click.get_current_context())
    change(env, Order("service.set", name, values=values), dry_run=dry_run)


@service.command("remove")
@click.argument("name", type=SERVICE, metavar="SERVICE")
@dry_run_option
@yes_option
@agent_options
@pass_environment
def remove_service(env: Environment, name: str, dry_run: bool, yes: bool) -> None:
    """Remove a service and its backends; asks first.

    \b
    Examples:
      lbctl service remove chat --dry-run
      lbctl service remove chat --yes
    """
    remove(env, Order("service.remove", name), dry_run=dry_run, yes=yes)
