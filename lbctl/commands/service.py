"""``lbctl service``: the services of the balancer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from agent.api.client import ApiNotFoundError
from agent.model import ServiceState
from lbctl.changes import Order, change, guess, remove, require
from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.listing import Sorts, left_out, list_options, listed
from lbctl.options import (
    SERVICE,
    agent_options,
    dry_run_option,
    message_option,
    watch_option,
    yes_option,
)
from lbctl.output import facts, render, watch
from lbctl.servers import STATES
from lbctl.settings import backends_option, document, service_settings

_SORTS: Sorts = {
    "name": lambda row: row["name"],
    "state": lambda row: STATES.index(row["state"]),
    "flows": lambda row: -row["flows_established"],
    "new": lambda row: -row["rates"]["new_flows_per_s"],
    "drops": lambda row: -row["rates"]["drops_per_s"],
    "waiting": lambda row: -(row["waiting_bytes"] or 0),
}


@click.group(cls=SuggestingGroup)
def service() -> None:
    """Services: list, show, add, set, remove.

    \b
    Examples:
      lbctl service list
      lbctl service add chat --vip 10.0.0.10 --port 80 --backend gpu-1=10.0.0.21
    """


@service.command("list")
@list_options(_SORTS, (state.value for state in ServiceState))
@watch_option
@agent_options
@pass_environment
def list_services(
    env: Environment,
    states: tuple[str, ...],
    sort: str | None,
    limit: int | None,
    watch_s: float | None,
) -> None:
    """List all services: state, reason, since when, and traffic.

    \b
    Examples:
      lbctl service list --watch
      lbctl service list --state down --state degraded
    """

    def once() -> str:
        found = env.agent().get("/v1/services")["services"]
        wanted = [entry for entry in found if not states or entry["state"] in states]
        shown = listed(wanted, _SORTS, sort, limit)
        return render(
            env, {"services": shown}, lambda data: _list_view(data, len(wanted), len(found))
        )

    watch(env, watch_s, once)


def _list_view(data: Mapping[str, Any], wanted: int, total: int) -> list[object]:
    from lbctl.views import service_table

    if not total:
        return ["no services yet: lbctl service add --help, or lbctl apply -f FILE"]
    rows = data["services"]
    return [service_table(rows), *left_out(len(rows), wanted)] if rows else ["no services"]


@service.command("show")
@click.argument("name", type=SERVICE, metavar="SERVICE")
@click.option(
    "--origin",
    is_flag=True,
    help="Instead, list the settings with where each comes from: the agent's file, a change at run "
    "time, a source of backends, or an operator's override of what that says.",
)
@watch_option
@agent_options
@pass_environment
def show_service(env: Environment, name: str, origin: bool, watch_s: float | None) -> None:
    """Show one service in full, with its backends.

    \b
    Examples:
      lbctl service show chat
      lbctl service show chat --origin
    """
    if origin:
        _show_origins(env, name)
        return

    from lbctl.loadviews import SHOWN_SKEW

    def once() -> str:
        data = get_service(env, name) | {"hottest_flows": []}
        if data["skew"] is not None and data["skew"]["ratio"] >= SHOWN_SKEW:
            data["hottest_flows"] = _hottest(env, name, data["skew"]["backend"])
        return render(env, data, lambda data: _show_view(env, data))

    watch(env, watch_s, once)


def _show_origins(env: Environment, name: str) -> None:
    from urllib.parse import quote

    from lbctl.layout import Cell, Column, Table
    from lbctl.output import emit

    get_service(env, name)  # its error suggests a similar name
    columns = Column("BACKEND"), Column("SETTING"), Column("VALUE", prose=True), Column("FROM")

    def table(data: Mapping[str, Any]) -> list[object]:
        rows = tuple(
            (
                Cell(each["backend"] or "-"),
                Cell(each["field"]),
                Cell(_shown_value(each["value"])),
                Cell(each["origin"], _ORIGIN_STYLES.get(each["origin"], "")),
            )
            for each in data["settings"]
        )
        return [Table(columns, rows)]

    emit(env, env.agent().get(f"/v1/services/{quote(name, safe='')}/origins"), table)


_ORIGIN_STYLES = {"runtime": "yellow", "override": "yellow", "source": "cyan"}


def _shown_value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _hottest(env: Environment, service: str, backend: str) -> list[dict[str, Any]]:
    """Return the flows that keep the backend with most busy connections busiest."""
    wanted: dict[str, str | int | None] = {
        "service": service,
        "backend": backend,
        "hottest": "true",
        "limit": HOTTEST,
    }
    found: list[dict[str, Any]] = env.agent().get("/v1/flows", wanted)["flows"]
    return found


def get_service(env: Environment, name: str) -> dict[str, Any]:
    """Return one service of the agent. The error for an unknown name suggests a similar one."""
    from urllib.parse import quote

    agent = env.agent()
    try:
        return agent.get(f"/v1/services/{quote(name, safe='')}")
    except ApiNotFoundError as error:
        error.remedy = guess(agent, name, None)
        raise


def _show_view(env: Environment, data: Mapping[str, Any]) -> list[object]:
    from agent.humanise import duration
    from lbctl import loadviews, views

    timeouts = data["timeouts_s"]
    pairs: list[tuple[str, object]] = [
        ("service", data["name"]),
        ("vip", views.service_key(data)),
        ("state", views.state_text(data)),
        ("forward", data["forward"]),
        ("scheduler", views.scheduler(data)),
        ("health check", _check(data["health_check"])),
        ("timeouts", ", ".join(f"{name} {duration(timeouts[name])}" for name in timeouts)),
        ("down flows", _DOWN_FLOWS.get(data["down_flows"], data["down_flows"])),
        ("no backend", _no_backend(data)),
        ("load", views.load(data)),
        ("telemetry", loadviews.telemetry(data)),
        ("weights", loadviews.weights(data)),
        ("busy", loadviews.skew(data)),
        ("traffic", views.rates_line(data["rates"])),
        ("totals", views.totals(data)),
        ("drops", views.reasons(data["drops_total"])),
    ]
    if data["discover"]:
        pairs.append(("discovers", f"{data['discover']}: lbctl discovery show {data['name']}"))
    pairs += _optional_facts(data)
    pieces = facts(env, pairs)
    if not data["backends"]:
        return [*pieces, "", f"no backends: lbctl backend add {data['name']}/NAME --address …"]
    return [*pieces, "", views.backend_table(data["backends"], with_service=False)]


def _failure_settings(data: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the settings by which backends get fewer or no new flows although they are up."""
    from agent.humanise import duration
    from lbctl import loadviews

    if data["outlier"]:
        yield "outliers", loadviews.outlier(data["outlier"])
    if data["panic"]:
        share = f"{data['panic']:.0%}"
        yield "panic", f"while fewer than {share} of the backends are up, all get new flows"
    if data["slow_start_s"]:
        yield "slow start", f"a backend that comes up: {duration(data['slow_start_s'])}"


def _optional_facts(data: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the lines for features that only some services use."""
    from agent.humanise import exact, plural
    from lbctl import loadviews

    if data["spill_over"]:
        yield "spill-over", "; ".join(data["spill_over"])
    if data["hottest_flows"]:
        yield "hottest", loadviews.hottest(data["hottest_flows"])
    if data["affinity"]:
        yield "affinity", loadviews.affinity(data["affinity"])
    yield from _failure_settings(data)
    if data["model"]:
        yield "model", f"only backends that have loaded {data['model']}"
    if data["quic_id_bytes"]:
        yield "QUIC", f"server ids of {plural(data['quic_id_bytes'], 'byte')}"
    yield from _goals(data)
    if data["syn_protection"] != "off":
        yield "SYN protection", _syn_protection(data)
    limits = [f"{name} {most}" for name, most in data["limits"].items() if most is not None]
    if limits:
        yield "limits", ", ".join(limits)
    if data["allow"] or data["deny"] or data["guard"] != "enforce":
        yield "guard", _guard(data)
    if data["detect"] != "log" or data["trusted"]:
        yield "detection", _detection(data)
    if data["flows_not_recorded_total"]:
        text = f"{exact(data['flows_not_recorded_total'])} flows found no room in the flow table"
        yield "not recorded", text


def _goals(data: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the lines for what is promised and wanted."""
    from lbctl import loadviews, scaleviews

    if data["first_byte_is"]:
        yield "first byte", _FIRST_BYTE[data["first_byte_is"]]
    if data["slo"]:
        yield "objectives", loadviews.objectives(data["slo"])
    if any(target is not None for target in data["scale"]["target_per_backend"].values()):
        yield "scale", scaleviews.sentence(data["scale"])


HOTTEST = 3  # flows shown

_DOWN_FLOWS = {
    "auto": "auto (reset if nothing comes back from the server, else kept)",
    "keep": "keep (established flows stay with a backend that goes down)",
    "reset": "reset (established flows of a backend that goes down are reset)",
    "reroute": "reroute (established flows of a backend that goes down move)",
}


_FIRST_BYTE = {
    "token": "token (the times of answers are those of their first tokens)",
    "head": "head (heads cannot be told from tokens: the times of answers may be those of heads,"
    " and no speed is learned from them)",
    "unknown": "unknown (too few answers so far to tell heads from tokens where they cannot be"
    " read; no speed is learned from those)",
}

_NO_BACKEND = {
    "drop": "drop (without a usable backend, packets are dropped)",
    "reset": "reset (without a usable backend, clients get a RST or ICMP unreachable)",
    "any": "any (without a usable backend, all that can be reached get new flows)",
    "hold": "hold (without a usable backend, clients wait for one)",
}


def _no_backend(data: Mapping[str, Any]) -> str:
    text = _NO_BACKEND.get(data["no_backend"], data["no_backend"])
    held = data.get("held_clients")
    return f"{text}; waiting now: {held}" if held else text


def _syn_protection(data: Mapping[str, Any]) -> str:
    now = "nobody is challenged now"
    if data["challenges_clients"]:
        now = (
            "new clients get SYN cookies" if data["gives_cookies"] else "new clients are challenged"
        )
    if data["cookies_problem"]:
        now += f" (no SYN cookies: {data['cookies_problem']})"
    if data["cookies_keys"]:
        signs, *others = data["cookies_keys"]
        now += f"; cookies are signed with key {signs}"
        now += "".join(f", {other} is ready" for other in others)
    return f"{data['syn_protection']}: {now}"


_DETECTION = {
    "off": "off (nobody looks for sources that behave unlike all others)",
    "log": "log",
    "block": "block (sources that behave unlike all others, for ten minutes)",
}


def _detection(data: Mapping[str, Any]) -> str:
    text = _DETECTION[data["detect"]]
    return f"{text}; trusted: {', '.join(data['trusted'])}" if data["trusted"] else text


def _guard(data: Mapping[str, Any]) -> str:
    who = f"allow {', '.join(data['allow']) or 'all'}, deny {', '.join(data['deny']) or 'nobody'}"
    return f"{data['guard']}: {who}"


def _check(check: Mapping[str, Any]) -> str:
    """Return a health check on one line, with all its keys."""
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
    from agent.humanise import duration
    from lbctl.changes import value as plain

    return (
        duration(value) if key.endswith("_s") and isinstance(value, int | float) else plain(value)
    )


@service.command("add")
@click.argument("name", metavar="SERVICE")
@service_settings
@backends_option
@dry_run_option
@message_option
@agent_options
@pass_environment
def add_service(env: Environment, /, name: str, dry_run: bool, **options: object) -> None:
    """Add a service, optionally with its backends.

    \b
    Examples:
      lbctl service add chat --vip 10.0.0.10 --port 80 \\
          --health http --health-path /health \\
          --backend gpu-1=10.0.0.21 --backend gpu-2=10.0.0.22,weight=50
      lbctl service add dns --vip 10.0.0.53 --port 53 --protocol udp --dry-run
      lbctl service add api --vip 10.0.0.11 --port 443 --forward fullnat \\
          --backend a=10.0.1.21,port=8443 --backend b=10.0.1.22,port=8443,backup
      lbctl service add edge --vip 192.0.2.0/24 --port 8000-8100 --forward gue \\
          --scheduler source --source-prefix 24
      lbctl service add llm --vip 10.0.0.12 --port 8000 --telemetry vllm --node node-agent \\
          --model meta-llama/Llama-3.1-8B-Instruct \\
          --backend a=10.0.1.21,zone=east --backend b=10.0.2.21,zone=west
    """
    missing = [f"--{key}" for key in ("vip", "port") if options[key] is None]
    if missing:
        raise click.UsageError(
            f"a service needs {' and '.join(missing)}", click.get_current_context()
        )
    values = document({"protocol": "tcp"} | {k: v for k, v in options.items() if v is not None})
    if not values.get("backends"):
        values.pop("backends", None)
    change(env, Order("service.add", name, values=values), dry_run=dry_run)


@service.command("set")
@click.argument("name", type=SERVICE, metavar="SERVICE")
@service_settings
@dry_run_option
@message_option
@agent_options
@pass_environment
def set_service(env: Environment, /, name: str, dry_run: bool, **options: object) -> None:
    """Change settings of a service; other settings stay.

    \b
    Examples:
      lbctl service set chat --health-interval 1s --health-fall 2
      lbctl service set chat --forward ipip --dry-run
      lbctl service set chat --scheduler least-load --draws 2 --slow-start 30s
      lbctl service set chat --telemetry vllm --telemetry-interval 100ms
      lbctl service set chat --no-learn-speed --rebalance-rate 5
      lbctl service set chat --scheduler least-load --affinity source

    A service with open flows cannot change its forwarding mode into, out of, or between nat and
    fullnat, because the flows could not go on.
    """
    values = document(options)
    require(values, click.get_current_context())
    change(env, Order("service.set", name, values=values), dry_run=dry_run)


@service.command("remove")
@click.argument("name", type=SERVICE, metavar="SERVICE")
@dry_run_option
@yes_option
@message_option
@agent_options
@pass_environment
def remove_service(env: Environment, name: str, dry_run: bool, yes: bool) -> None:
    """Remove a service and its backends, after asking.

    \b
    Examples:
      lbctl service remove chat --dry-run
      lbctl service remove chat --yes
    """
    remove(env, Order("service.remove", name), dry_run=dry_run, yes=yes)
