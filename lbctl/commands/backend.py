"""``lbctl backend``: the backends of the services."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.config.durations import parse_duration
from agent.errors import ApiError
from agent.humanise import age, plural
from agent.model import AdminState, BackendRef, BackendState
from lbctl.changes import Order, RefusedError, change, change_silently, remove, require
from lbctl.commands.service import get_service
from lbctl.draining import Draining
from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.listing import Sorts, left_out, list_options, listed
from lbctl.options import (
    ADDRESS,
    BACKEND,
    DURATION,
    SERVICE,
    WordType,
    agent_options,
    dry_run_option,
    message_option,
    watch_option,
    yes_option,
)
from lbctl.output import aligned, render, watch
from lbctl.servers import STATES
from lbctl.settings import (
    backup_option,
    priority_option,
    server_id_option,
    weight_option,
    zone_option,
)
from lbctl.suggest import did_you_mean

if TYPE_CHECKING:
    from rich.text import Text

SHOWN_EVENTS = 10
_SORTS: Sorts = {
    "name": lambda row: (row["service"], row["name"]),
    "state": lambda row: STATES.index(row["state"]),
    "flows": lambda row: -row["flows_established"],
    "new": lambda row: -row["rates"]["new_flows_per_s"],
    "waiting": lambda row: -(row["waiting_bytes"] or 0),
    "first-byte": lambda row: -(_first_byte(row) or 0.0),
}
COUNTED_EVERY_S = 4.0  # the agent counts flows once a second, more rarely in huge tables
WAIT_POLL_S = 1.0


@click.group(cls=SuggestingGroup)
def backend() -> None:
    """Backends: list, show, add, set, drain, enable, disable, remove.

    A backend is named SERVICE/BACKEND.

    \b
    Examples:
      lbctl backend list
      lbctl backend drain chat/gpu-1
    """


@backend.command("list")
@click.argument("service_name", type=SERVICE, metavar="[SERVICE]", required=False)
@list_options(_SORTS, (state.value for state in BackendState))
@watch_option
@agent_options
@pass_environment
def list_backends(
    env: Environment,
    service_name: str | None,
    states: tuple[str, ...],
    sort: str | None,
    limit: int | None,
    watch_s: float | None,
) -> None:
    """List all backends, or those of a service: state, reason, rates, share.

    WEIGHT is the configured weight, followed by an arrow and the effective one if they differ.
    SHARE is the share of new flows: expected from the weights / actual in the last minute.

    \b
    Examples:
      lbctl backend list --watch
      lbctl backend list chat --state down -o json
      lbctl backend list --sort waiting --limit 10
    """

    def once() -> str:
        if service_name is None:
            services = env.agent().get("/v1/services")["services"]
        else:
            services = [get_service(env, service_name)]
        found = [entry for service in services for entry in service["backends"]]
        wanted = [entry for entry in found if not states or entry["state"] in states]
        shown = listed(wanted, _SORTS, sort, limit)
        return render(env, {"backends": shown}, lambda data: _list_view(data, len(wanted)))

    watch(env, watch_s, once)


def _list_view(data: Mapping[str, Any], total: int) -> list[object]:
    from lbctl.views import backend_table

    rows = data["backends"]
    return [backend_table(rows), *left_out(len(rows), total)] if rows else ["no backends"]


@backend.command("show")
@click.argument("ref", type=BACKEND, metavar="SERVICE/BACKEND")
@watch_option
@agent_options
@pass_environment
def show_backend(env: Environment, ref: BackendRef, watch_s: float | None) -> None:
    """Show one backend in full.

    \b
    Example:
      lbctl backend show chat/gpu-1
    """

    def once() -> str:
        found = get_backend(env, ref) | {"events": _last_events(env, ref)}
        found["reverts"] = [
            each
            for each in env.agent().get("/v1/reverts")["reverts"]
            if (each["service"], each["backend"]) == ref
        ]
        return render(env, found, lambda data: facts_of(env.width, data, data["events"]))

    watch(env, watch_s, once)


def _first_byte(row: Mapping[str, Any]) -> float | None:
    """Return the 99th percentile of the last minute, in milliseconds."""
    found: float | None = (row["first_byte"] or {}).get("last_minute", {}).get("p99_ms")
    return found


def _last_events(env: Environment, ref: BackendRef) -> list[dict[str, Any]]:
    query: dict[str, str | int | None] = {"backend": str(ref), "limit": SHOWN_EVENTS}
    found: list[dict[str, Any]] = env.agent().get("/v1/events", query)["events"]
    return found


def get_backend(env: Environment, ref: BackendRef) -> dict[str, Any]:
    """Return one backend of the agent. The error for an unknown name suggests a similar one."""
    service = get_service(env, ref.service)
    found: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in service["backends"]}
    if ref.backend not in found:
        names = [f"{ref.service}/{name}" for name in found]
        raise ApiError(
            f"there is no backend {ref}",
            remedy=did_you_mean(str(ref), names, what="backends in it"),
        )
    return found[ref.backend]


def facts_of(
    width: int | None, data: Mapping[str, Any], happened: Sequence[Mapping[str, Any]]
) -> list[Text]:
    """Return everything that is known about a backend, and its events."""
    from rich.text import Text

    from agent.humanise import age, exact
    from lbctl import loadviews, views
    from lbctl.commands.events import lines as event_lines

    latency = data["health_latency_ms"]
    checked = f" ({latency:.1f} ms)" if latency is not None else ""
    weight = views.weight(data)
    weight += f" ({data['weight_reason']})" if data["weight_reason"] else ""
    lines = Text("\n").join(event_lines(happened, about=False))
    return aligned(
        width,
        [
            ("backend", f"{data['service']}/{data['name']}"),
            ("address", views.server(data)),
            ("state", views.state_text(data)),
            ("wanted", _wanted(data)),
            *(("until", _until(each)) for each in data.get("reverts", ())),
            (
                "health",
                f"{data['health']}: {data['health_reason']}{checked}, since {data['health_since']}",
            ),
            ("next hop", _next_hop(data["next_hop"])),
            ("weight", weight),
            ("share", views.shares(data)),
            ("flows", f"{exact(data['flows_established'])} established"),
            ("load", views.load(data)),
            ("engine", loadviews.engine(data)),
            ("GPUs", loadviews.gpus(data)),
            ("learned", loadviews.learned(data)),
            ("failures", loadviews.failures(data)),
            ("first byte", views.times(data["first_byte"])),
            ("handshake", views.times(data["handshake"])),
            ("traffic", views.rates_line(data["rates"])),
            ("totals", views.totals(data)),
            ("since", f"{data['since']} ({age(data['since_s'])} ago)"),
            ("events", lines if happened else "none yet"),
        ],
    )


def _until(revert: Mapping[str, Any]) -> str:
    back = "what its source says" if revert["back"] is None else revert["back"]
    return f"{revert['at']} (in {age(revert['in_s'])}): then {revert['field']} {back} again"


def _wanted(data: Mapping[str, Any]) -> str:
    parts = [str(data["admin_state"])]
    if data["backup"]:
        parts.append("as a backup")
    if data["priority"]:
        parts.append(f"priority {data['priority']}")
    if data["zone"]:
        parts.append(f"in zone {data['zone']}")
    return ", ".join(parts)


def _next_hop(hop: Mapping[str, Any] | None) -> str:
    if hop is None or not hop["mac"]:
        return "not resolved"
    where = "on the same segment" if hop["on_link"] else "through a router"
    return f"{hop['mac']}, {where}, interface {hop['ifindex']}, MTU {hop['mtu']}"


_refs_argument = click.argument(
    "refs", type=BACKEND, nargs=-1, required=True, metavar="SERVICE/BACKEND..."
)
_state_option = click.option(
    "--state",
    type=WordType(AdminState),
    help="The wanted state.",
)


@backend.command("add")
@click.argument("ref", type=BACKEND, metavar="SERVICE/BACKEND")
@click.option("--address", type=ADDRESS, required=True, help="Its IPv4 or IPv6 address.")
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    help="nat, fullnat: its own port.  [default: the packet's]",
)
@weight_option
@backup_option
@priority_option
@zone_option
@server_id_option
@_state_option
@dry_run_option
@message_option
@agent_options
@pass_environment
def add_backend(env: Environment, /, ref: BackendRef, dry_run: bool, **options: object) -> None:
    """Add a backend to a service.

    \b
    Examples:
      lbctl backend add chat/gpu-3 --address 10.0.0.23 --weight 50
      lbctl backend add api/b --address 10.0.1.22 --port 8443 --backup
      lbctl backend add chat/west-1 --address 10.2.0.21 --zone west --priority 1
    """
    change(env, _order("backend.add", ref, _given(**options)), dry_run=dry_run)


for_option = click.option(
    "--for",
    "for_s",
    type=DURATION,
    metavar="DURATION",
    help="How long, as in 1h; then weight and state go back to what they were.",
)


@backend.command("set")
@click.argument("ref", type=BACKEND, metavar="SERVICE/BACKEND")
@weight_option
@backup_option
@priority_option
@zone_option
@click.option("--no-zone", is_flag=True, help="Remove the backend from its zone.")
@click.option(
    "--as-discovered",
    is_flag=True,
    help="Of a discovered backend: weight and state are as its source says again.",
)
@server_id_option
@_state_option
@for_option
@dry_run_option
@message_option
@agent_options
@pass_environment
def set_backend(
    env: Environment,
    /,
    ref: BackendRef,
    no_zone: bool,
    as_discovered: bool,
    for_s: float | None,
    dry_run: bool,
    **options: object,
) -> None:
    """Change settings of a backend; other settings stay.

    A backend is identified by its address and port: to change these, add another backend.
    Weight and state of a discovered backend hold whatever its source says.

    \b
    Examples:
      lbctl backend set chat/gpu-1 --weight 50 --for 2h
      lbctl backend set chat/gpu-2 --backup
      lbctl backend set chat/gpu-3 --zone east --priority 0
    """
    values = _given(**options)
    if no_zone:
        if "zone" in values:
            raise click.UsageError(
                "--zone and --no-zone contradict each other", click.get_current_context()
            )
        values["zone"] = None
    if as_discovered:
        values = {"weight": None, "state": None} | values
    require(values, click.get_current_context())
    change(env, _order("backend.set", ref, values), dry_run=dry_run, for_s=for_s)


wait_option = click.option(
    "--wait",
    is_flag=True,
    help="Return when its last flow has ended; say how many are left and about how long the last "
    "one takes.",
)
wait_limit_option = click.option(
    "--wait-limit",
    type=click.FloatRange(min=0),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="With --wait: give up after this long (exit 1).",
)


@backend.command("drain")
@_refs_argument
@for_option
@wait_option
@wait_limit_option
@dry_run_option
@message_option
@agent_options
@pass_environment
def drain_backend(
    env: Environment,
    refs: tuple[BackendRef, ...],
    for_s: float | None,
    wait: bool,
    wait_limit: float,
    dry_run: bool,
) -> None:
    """Send no new flows to backends; their open flows go on.

    If one of several backends does not exist, none is drained.

    \b
    Examples:
      lbctl backend drain chat/gpu-1 embed/gpu-1
      lbctl backend drain chat/gpu-1 --wait && ssh gpu-1 reboot
      lbctl backend drain chat/gpu-1 --for 30m
    """
    _set_state(env, refs, AdminState.DRAIN, dry_run=dry_run, for_s=for_s)
    if wait and not dry_run:
        await_empty(env, refs, wait_limit)


def await_empty(env: Environment, refs: Iterable[BackendRef], limit_s: float) -> None:
    """Wait until draining backends have no established flows."""
    env.sleep(COUNTED_EVERY_S)
    for ref in refs:
        _wait_until_empty(env, ref, limit_s)


def _wait_until_empty(env: Environment, ref: BackendRef, limit_s: float) -> None:
    waited_s, shown, draining = 0.0, -1, Draining()
    while flows := int(get_backend(env, ref)["flows_established"]):
        draining.saw(waited_s, flows)
        if waited_s >= limit_s:
            raise RefusedError(
                f"{ref} still has {plural(flows, 'established flow')} after {limit_s:g} s",
                remedy=f"lbctl flows --backend {ref} shows them; --wait-limit waits longer",
            )
        if flows != shown:
            left_s = draining.left_s()
            about = ""
            if left_s is not None:
                about = f"; the last one ends in about {age(max(10, round(left_s, -1)))}"
            env.note(f"waiting: {plural(flows, 'established flow')}{about}")
            shown = flows
        env.sleep(WAIT_POLL_S)
        waited_s += WAIT_POLL_S
    env.note(f"{ref} has no established flows")


@backend.command("enable")
@_refs_argument
@dry_run_option
@message_option
@agent_options
@pass_environment
def enable_backend(env: Environment, refs: tuple[BackendRef, ...], dry_run: bool) -> None:
    """Let drained or disabled backends serve again.

    \b
    Example:
      lbctl backend enable chat/gpu-1
    """
    _set_state(env, refs, AdminState.ACTIVE, dry_run=dry_run)


@backend.command("disable")
@_refs_argument
@for_option
@dry_run_option
@message_option
@agent_options
@pass_environment
def disable_backend(
    env: Environment, refs: tuple[BackendRef, ...], for_s: float | None, dry_run: bool
) -> None:
    """Maintenance: send nothing to backends, not even packets of open flows.

    \b
    Examples:
      lbctl backend disable chat/gpu-1 --dry-run
      lbctl backend disable chat/gpu-1
    """
    _set_state(env, refs, AdminState.MAINTENANCE, dry_run=dry_run, for_s=for_s)


def _seconds(ctx: click.Context, param: click.Parameter, given: str | None) -> float | None:
    if given is None:
        return None
    found = parse_duration(given)
    if found is None:
        raise click.BadParameter(f"{given!r} is not a duration such as 90s or 5m", ctx, param)
    return found


@backend.command("remove")
@click.argument("ref", type=BACKEND, metavar="SERVICE/BACKEND")
@click.option(
    "--drain",
    "drain_s",
    metavar="DURATION",
    callback=_seconds,
    help="First send it no new flows, and wait this long, as in 5m, for the last one to end.",
)
@dry_run_option
@yes_option
@message_option
@agent_options
@pass_environment
def remove_backend(
    env: Environment, ref: BackendRef, drain_s: float | None, dry_run: bool, yes: bool
) -> None:
    """Remove a backend, after asking. In nat and fullnat, its open connections are reset.

    \b
    Examples:
      lbctl backend remove chat/gpu-1 --dry-run
      lbctl backend remove chat/gpu-1 --drain 5m
    """

    def drain_it() -> None:
        if drain_s is not None:
            _drain_for(env, ref, drain_s)

    order = _order("backend.remove", ref, {})
    remove(env, order, dry_run=dry_run, yes=yes, first=drain_it)


def _drain_for(env: Environment, ref: BackendRef, limit_s: float) -> None:
    """Send the backend no new flows, and wait for its last one, at most ``limit_s``."""
    get_backend(env, ref)
    change_silently(env, _order("backend.set", ref, {"state": AdminState.DRAIN.value}))
    counted_s = min(COUNTED_EVERY_S, limit_s)
    env.sleep(counted_s)
    try:
        _wait_until_empty(env, ref, limit_s - counted_s)
    except RefusedError as error:
        env.note(error.message)


def _set_state(
    env: Environment,
    refs: tuple[BackendRef, ...],
    state: AdminState,
    *,
    dry_run: bool,
    for_s: float | None = None,
) -> None:
    orders = [_order("backend.set", ref, {"state": state.value}) for ref in dict.fromkeys(refs)]
    change(env, *orders, dry_run=dry_run, for_s=for_s)


def _order(op: str, ref: BackendRef, values: Mapping[str, object]) -> Order:
    return Order(op, ref.service, ref.backend, values)


def _given(**values: object) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}
