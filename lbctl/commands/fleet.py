"""``lbctl fleet`` and ``lbctl rollout``: the balancers that run the same services, from etcd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lbctl.changes import ask, carry_out, change_lines, message_of, report
from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import SERVICE, agent_options, dry_run_option, message_option, yes_option
from lbctl.output import emit

TIMEOUT_S = 60.0  # enough to read and check thousands of backends

type Json = Mapping[str, Any]

_number_argument = click.argument("number", type=click.IntRange(min=1), metavar="N")


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@agent_options
@click.pass_context
def fleet(ctx: click.Context) -> None:
    """The fleet: balancers that run the same services.

    Their services are in etcd, as numbered versions. On a balancer of a fleet, every change that
    lbctl makes becomes a new version, which all balancers take. Without a subcommand, it shows
    the balancers.

    \b
    Examples:
      lbctl fleet
      lbctl fleet history
      lbctl fleet rollback 41 --dry-run
    """
    if ctx.invoked_subcommand is None:
        _status(ctx.ensure_object(Environment))


@fleet.command("status")
@agent_options
@pass_environment
def status(env: Environment) -> None:
    """Show every balancer of the fleet, and its version.

    It ends with exit status 1 if a balancer does not run what it should: it is behind, frozen,
    does not report, has refused a version, runs other services than its version has, or the
    store is away.

    \b
    Example:
      lbctl fleet status -o json
    """
    _status(env)


def _status(env: Environment) -> None:
    data = env.agent().get("/v1/fleet")
    emit(env, data, lambda shown: _overview(env, shown))
    if _problems(data):
        click.get_current_context().exit(1)


def _overview(env: Environment, data: Json) -> list[object]:
    from agent.humanise import age
    from lbctl.layout import Cell, Column, Table
    from lbctl.output import facts

    own, rollout, last = data["fleet"], data["rollout"], data["last_rollout"]
    stable = own["stable_version"]
    about: list[tuple[str, object]] = [("fleet", own["name"])]
    unknown = "none yet: lbctl fleet import"
    if own["store_away_s"] is not None:
        unknown = "not known while the store is away"
    about.append(("version", unknown if stable is None else stable))
    if own["frozen"] is not None and own["store_away_s"] is not None:
        about.append(("frozen", f"at version {own['version']}: {own['frozen']}"))
    if rollout is not None:
        tried = f"version {rollout['version']} on {', '.join(rollout['nodes'])}"
        bake = f", for {age(rollout['bake_s'])}" if rollout["bake_s"] else ""
        about.append(("rollout", f"{tried}{bake}: lbctl rollout status"))
    elif last is not None and last["outcome"] == "aborted":
        about.append(("last rollout", f"version {last['version']} was aborted: {last['why']}"))
    columns = (
        Column("BALANCER"),
        Column("ROLE"),
        Column("VERSION", right=True),
        Column("SINCE", drop=1),
        Column("RELEASE", drop=2),
        Column("RINGS", drop=3),
        Column("STATE", prose=True),
    )
    from lbctl.commands.events import local_time

    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            Cell(each["node"]),
            Cell(each["role"]),
            Cell(str(each["version"])),
            Cell(local_time(each["since"])),
            Cell(each["release"]),
            Cell(each["rings_digest"][:8]),
            Cell(*_state(each)),
        )
        for each in data["balancers"]
    )
    rows += tuple(
        (Cell(each["node"]), *(Cell("-") for _ in range(len(columns) - 2)), Cell(*_missing(each)))
        for each in data["missing"]
    )
    problem = [("PROBLEM", own["problem"])] if own["problem"] else []
    shown: list[object] = [*facts(env, [*problem, *about]), ""]
    if not rows:
        return [*shown, "no balancer reports" + (" while the store is away" if problem else "")]
    return [*shown, Table(columns, rows, prose_under="ROLE")]


def _missing(balancer: Json) -> tuple[str, str]:
    """Return what is to be said about a balancer that does not report, and its colour."""
    from lbctl.commands.events import local_time

    seen = local_time(balancer["last_seen"])
    return f"does not report: its agent is down, or cannot reach the store (seen {seen})", "red"


def _state(balancer: Json) -> tuple[str, str]:
    """Return what is to be said about a balancer, and its colour."""
    if balancer["refused_version"] is not None:
        why = f"refuses version {balancer['refused_version']}: {balancer['refused_why']}"
        return why, "red"
    if balancer["drift"]:
        frozen = f" (frozen: {balancer['frozen']})" if balancer["frozen"] is not None else ""
        see = f"`lbctl fleet diff {balancer['version']}` there shows them"
        return f"runs other services than its version has{frozen}: {see}", "red"
    if balancer["frozen"] is not None:
        return f"frozen: {balancer['frozen']}", "yellow"
    if balancer["behind_by"]:
        return f"behind by {balancer['behind_by']}", "yellow"
    if balancer["problem"]:
        return balancer["problem"], "red"
    if balancer["services_down"]:
        return f"no usable backend: {', '.join(balancer['services_down'])}", "yellow"
    return "in step", "green"


def _problems(data: Json) -> bool:
    """Return whether a balancer does not run what it should."""
    return bool(data["fleet"]["problem"]) or bool(data["missing"]) or any(
        each["drift"] or each["behind_by"] or each["frozen"] is not None
        or each["refused_version"] is not None or each["problem"]
        for each in data["balancers"]
    )  # fmt: skip


@fleet.command("history")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=20,
    show_default=True,
    help="The newest N.",
)
@agent_options
@pass_environment
def history(env: Environment, count: int) -> None:
    """List the newest versions of the fleet's services, the newest last.

    \b
    Example:
      lbctl fleet history -n 50
    """
    answer = env.agent(TIMEOUT_S).get("/v1/fleet/history", {"limit": count})
    data = {"versions": list(reversed(answer["versions"]))}
    emit(env, data, lambda shown: _versions(shown["versions"]))


def _versions(versions: list[Json]) -> list[object]:
    from lbctl.commands.events import local_time
    from lbctl.commands.history import in_short
    from lbctl.layout import Cell, Column, Table

    if not versions:
        return ["no versions yet: lbctl fleet import"]
    columns = (
        Column("VERSION", right=True),
        Column("TIME"),
        Column("BY"),
        Column("AT", drop=1),
        Column("HOW", drop=2),
        Column("STATE"),
        Column("CHANGES", prose=True),
    )
    colours = {"stable": "green", "trying": "yellow", "aborted": "red"}
    rows = tuple(
        (
            Cell(str(each["number"])),
            Cell(local_time(each["at"])),
            Cell(each["who"]),
            Cell(each["node"]),
            Cell(each["how"]),
            Cell(each["state"], colours.get(each["state"], "")),
            Cell(in_short(each)),
        )
        for each in versions
    )
    return [Table(columns, rows, prose_under="TIME")]


@fleet.command("show")
@_number_argument
@agent_options
@pass_environment
def show(env: Environment, number: int) -> None:
    """Show who made a version, on which balancer, when and why, and what it changed.

    \b
    Example:
      lbctl fleet show 42
    """
    from lbctl.commands.events import local_time
    from lbctl.output import facts

    def view(data: Json) -> list[object]:
        more = data["changes_count"] - len(data["changes"])
        shown = [*data["changes"], *([f"and {more} more"] if more else [])]
        return facts(
            env,
            [
                ("version", data["number"]),
                ("made from", data["base"] or "nothing"),
                ("time", local_time(data["at"])),
                ("by", f"{data['who']}, on {data['node']}"),
                ("how", data["how"]),
                ("message", data["message"] or "-"),
                ("state", data["state"] or "-"),
                ("services", len(data["services"])),
                ("changes", "\n".join(shown) or "-"),
            ],
        )

    emit(env, env.agent(TIMEOUT_S).get(f"/v1/fleet/versions/{number}"), view)


@fleet.command("diff")
@click.argument("old", type=click.IntRange(min=1))
@click.argument("new", type=click.IntRange(min=1), required=False, metavar="[NEW]")
@agent_options
@pass_environment
def diff(env: Environment, old: int, new: int | None) -> None:
    """Show what differs between version OLD and version NEW, or what runs here.

    \b
    Examples:
      lbctl fleet diff 41
      lbctl fleet diff 41 43
    """
    answer = env.agent(TIMEOUT_S).get("/v1/fleet/diff", {"old": old, "new": new})
    emit(
        env,
        answer,
        lambda data: change_lines(data["changes"], effects=False) or ["no difference"],
    )


@fleet.command("compare")
@click.argument("one", metavar="BALANCER")
@click.argument("other", metavar="BALANCER")
@agent_options
@pass_environment
def compare(env: Environment, one: str, other: str) -> None:
    """Show which services two balancers do not treat alike: settings, backends, or rings.

    Rings differ where the balancers see other backends up or have learned other weights. It ends
    with exit status 1 if there is a difference.

    \b
    Example:
      lbctl fleet compare lb1 lb2
    """
    data = env.agent().get("/v1/fleet/compare", {"one": one, "other": other})

    def view(shown: Json) -> list[object]:
        found = [f"{each['service']}: {each['what']}" for each in shown["differences"]]
        return list(found) or ["no difference"]

    emit(env, data, view)
    if data["differences"]:
        click.get_current_context().exit(1)


@fleet.command("rollback")
@_number_argument
@click.option("--service", type=SERVICE, help="Only this service; the others stay as they are.")
@dry_run_option
@yes_option
@message_option
@agent_options
@pass_environment
def rollback(env: Environment, number: int, service: str | None, dry_run: bool, yes: bool) -> None:
    """Make a new version with the services of version N, or with one of them.

    Shows the plan, and asks on a terminal.

    \b
    Examples:
      lbctl fleet rollback 41 --dry-run
      lbctl fleet rollback 41 --service chat -m "v2 of the model is too slow"
    """
    agent = env.agent_to_change()
    body: dict[str, object] = {"version": number, "service": service}
    path = "/v1/fleet/rollback"
    plan = agent.post(path, body | {"dry_run": True})
    if dry_run:
        report(env, plan)
        return
    carry_out(env, agent, path, body | message_of(env), plan=plan, what="Roll back", yes=yes)


@fleet.command("import")
@yes_option
@message_option
@agent_options
@pass_environment
def import_(env: Environment, yes: bool) -> None:
    """Write the services that run on this balancer as the fleet's first version.

    All other balancers of the fleet take them, instead of those of their files. If the store has
    lost its content, or this balancer was frozen and changed, it writes the next version.

    \b
    Example:
      lbctl fleet import -m "from the configuration file of lb1"
    """
    agent = env.agent_to_change()
    if not yes and env.interactive:
        count = len(agent.get("/v1/config")["config"]["services"])
        ask(env, f"Write the {count} services of this balancer for the whole fleet?")
    data = agent.post("/v1/fleet/import", message_of(env))
    emit(env, data, lambda shown: [f"version {shown['fleet']['version']} is the fleet's"])


@fleet.command("export")
@click.argument("number", type=click.IntRange(min=1), metavar="[N]", required=False)
@agent_options
@pass_environment
def export(env: Environment, number: int | None) -> None:
    """Print the services of version N, or of the stable one, as "lbctl apply -f" reads them.

    \b
    Example:
      lbctl fleet export 41 > services.yaml
    """
    from agent.config.document import write_yaml
    from agent.errors import ApiError

    agent = env.agent(TIMEOUT_S)
    if number is None:
        own = agent.get("/v1/fleet")["fleet"]
        number = own["stable_version"]
        if number is None and own["problem"]:
            raise ApiError(own["problem"], remedy="lbctl fleet status")
    if number is None:
        raise ApiError("the fleet has no version yet", remedy="lbctl fleet import")
    data = {"services": agent.get(f"/v1/fleet/versions/{number}")["services"]}
    emit(env, data, lambda shown: [write_yaml(shown).rstrip()])


@fleet.command("forget")
@click.argument("balancer", metavar="BALANCER")
@agent_options
@pass_environment
def forget(env: Environment, balancer: str) -> None:
    """Forget a balancer that is gone for good, so that it is not missed any more.

    It must not report any more. If it ever does, it is shown again.

    \b
    Example:
      lbctl fleet forget lb3
    """
    data = env.agent_to_change().post("/v1/fleet/forget", {"node": balancer})
    emit(env, data, lambda _: [f"{balancer} is forgotten"])


@fleet.command("freeze")
@message_option
@agent_options
@pass_environment
def freeze(env: Environment) -> None:
    """Keep this balancer at its version, and change it here alone, until it is thawed.

    This is for an emergency, such as a server that must be drained while the store is away. The
    other balancers go on without it.

    \b
    Example:
      lbctl fleet freeze -m "etcd is being moved"
    """
    data = env.agent_to_change().post("/v1/fleet/freeze", message_of(env))
    emit(env, data, lambda shown: [f"frozen at version {shown['fleet']['version']}"])


@fleet.command("thaw")
@yes_option
@agent_options
@pass_environment
def thaw(env: Environment, yes: bool) -> None:
    """Follow the fleet again. What was changed while frozen is undone.

    "lbctl fleet import", before this, keeps it: it writes it for the whole fleet.

    \b
    Example:
      lbctl fleet thaw
    """
    agent = env.agent_to_change()
    if not yes and env.interactive:
        ask(env, "Take the fleet's version again, and undo what was changed here alone?")
    data = agent.post("/v1/fleet/thaw", {})
    emit(env, data, lambda shown: [f"runs version {shown['fleet']['version']}"])


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@agent_options
@click.pass_context
def rollout(ctx: click.Context) -> None:
    """A version of the fleet that some balancers try first: status, promote, abort.

    Begin one by "lbctl apply -f FILE --canary BALANCER". It is given up by itself when a balancer
    that tries it refuses it, reports a problem or vanishes, when a service loses its last backend
    there, or when its failures, drops or first bytes become much worse than those of the others.

    \b
    Examples:
      lbctl rollout
      lbctl rollout promote
      lbctl rollout abort -m "wrong weights"
    """
    if ctx.invoked_subcommand is None:
        _rollout(ctx.ensure_object(Environment))


@rollout.command("status")
@agent_options
@pass_environment
def rollout_status(env: Environment) -> None:
    """Show the version that is being tried, where, and how it does.

    \b
    Example:
      lbctl rollout status
    """
    _rollout(env)


def _rollout(env: Environment) -> None:
    emit(env, env.agent().get("/v1/fleet"), lambda shown: _rollout_view(env, shown))


def _rollout_view(env: Environment, data: Json) -> list[object]:
    from agent.humanise import age
    from lbctl.commands.events import local_time
    from lbctl.layout import Cell, Column, Table
    from lbctl.output import facts

    now, last = data["rollout"], data["last_rollout"]
    if now is None:
        if last is None:
            return ["no version is being tried"]
        pairs = [
            ("last rollout", f"version {last['version']}, {last['outcome']}"),
            ("why", last["why"]),
            ("by", last["who"]),
            ("time", local_time(last["at"])),
        ]
        return ["no version is being tried", "", *facts(env, pairs)]
    ends = f"promoted after {age(now['bake_s'])}" if now["bake_s"] else "when an operator decides"
    columns = (
        Column("BALANCER"),
        Column("VERSION", right=True),
        Column("CONN", right=True),
        Column("ESTABLISHED", right=True),
        Column("ANSWERS", right=True),
        Column("FAILED", right=True),
        Column("DROPS", right=True),
        Column("STATE", prose=True),
    )
    keys = ("opened", "established", "answers", "failed", "drops")
    rows = [
        (
            Cell(each["node"]),
            Cell(str(each["version"])),
            *(Cell(str(each["last_minute"][key])) for key in keys),
            Cell(*_rollout_state(each, now)),
        )
        for each in data["balancers"]
    ]
    reporting = {each["node"] for each in data["balancers"]}
    rows += [
        (Cell(node), *(Cell("-") for _ in range(len(keys) + 1)), Cell("does not report", "red"))
        for node in now["nodes"]
        if node not in reporting
    ]
    pairs = [
        ("rollout", f"version {now['version']} on {', '.join(now['nodes'])}"),
        ("since", local_time(now["since"])),
        ("ends", ends),
    ]
    under = "the figures are of about the last minute"
    return [*facts(env, pairs), "", Table(columns, tuple(rows), prose_under="VERSION"), "", under]


def _rollout_state(balancer: Json, rollout: Json) -> tuple[str, str]:
    """Return what is to be said about a balancer during a rollout, and its colour."""
    state = _state(balancer)
    tries = balancer["node"] in rollout["nodes"] and balancer["version"] == rollout["version"]
    return ("tries it", "yellow") if tries and state[1] == "green" else state


@rollout.command("promote")
@message_option
@agent_options
@pass_environment
def promote(env: Environment) -> None:
    """Let all balancers take the version that is being tried.

    \b
    Example:
      lbctl rollout promote
    """
    _end(env, "promote")


@rollout.command("abort")
@message_option
@agent_options
@pass_environment
def abort(env: Environment) -> None:
    """Let the balancers that try a version go back to the stable one.

    \b
    Example:
      lbctl rollout abort -m "wrong weights"
    """
    _end(env, "abort")


def _end(env: Environment, verb: str) -> None:
    data = env.agent_to_change().post(f"/v1/fleet/{verb}", message_of(env))

    def view(shown: Json) -> list[object]:
        last, stable = shown["last_rollout"], shown["fleet"]["stable_version"]
        return [f"version {last['version']} is {last['outcome']}; {stable} is the stable one"]

    emit(env, data, view)
