"""The command group ``lbctl lab``: a balancer, its clients and backends on one machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import agent_options

if TYPE_CHECKING:
    from lbctl.lab.build import Owner
    from lbctl.lab.topology import Lab, Node

DEFAULT_NAME = "lab"
# Values of enums in agent.model, whose import would delay --help; a test compares them.
FORWARDS = ("dsr", "ipip", "gue", "nat", "fullnat")
SCHEDULERS = ("maglev", "source", "round-robin", "least-conn", "least-load")
HOOKS = ("auto", "native", "tc", "generic")
_NAME = "lbctl.lab.name"


def _set_name(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_NAME] = value


def _split_engines(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """Return the GPUs; none without the option, which is different from an unset variable."""
    if value is None:
        return ()
    engines = tuple(part.strip() for part in value.split(","))
    if not all(engines):
        from lbctl.lab.engine.model import HARDWARE

        known = ", ".join(sorted(HARDWARE))
        raise click.BadParameter(f"{value!r} leaves a GPU empty; available: {known}")
    return engines


# The group's option may also follow the command, where people look for it.
_late_name_option = click.option("--name", callback=_set_name, expose_value=False, hidden=True)

_forward_option = click.option(
    "--forward",
    type=click.Choice(FORWARDS),
    default="dsr",
    show_default=True,
    help="How packets reach the backends.",
)
_hook_option = click.option(
    "--hook",
    type=click.Choice(HOOKS),
    default="auto",
    show_default=True,
    help="Where the program is attached.",
)


@click.group(cls=SuggestingGroup)
@click.option(
    "--name",
    default=DEFAULT_NAME,
    show_default=True,
    envvar="STEELYARD_LAB",
    callback=_set_name,
    expose_value=False,
    help="The name of the lab; a different name makes a second lab.  [env: STEELYARD_LAB]",
)
def lab() -> None:
    """Try the balancer in network namespaces of this machine.

    \b
    Example:
      sudo lbctl lab up --backends 3
      sudo lbctl lab exec client -- curl -s http://10.99.0.100/
      sudo lbctl lab down
    """


@lab.command()
@click.option(
    "--backends",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="How many HTTP servers.",
)
@click.option(
    "--balancers",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="How many balancers; one is master and has the VIPs, the others take over from it.",
)
@click.option(
    "--clients",
    type=click.IntRange(1, 9),
    default=1,
    show_default=True,
    help="How many clients.",
)
@_forward_option
@click.option(
    "--scheduler",
    type=click.Choice(SCHEDULERS),
    default="least-load",
    show_default=True,
    help="How a backend is chosen for a new connection.",
)
@_hook_option
@click.option(
    "--arms",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    help="nat, fullnat: 2 puts the backends behind a second interface of the balancers.",
)
@click.option(
    "--vlan",
    type=click.IntRange(1, 4094),
    metavar="ID",
    help="All hosts send frames with this VLAN tag.",
)
@click.option(
    "--engines",
    metavar="GPU,…",
    callback=_split_engines,
    help="The servers behave like engines on these GPUs (h100, a100), assigned in turn.",
)
@click.option(
    "--time-scale",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    show_default=True,
    help="How many times faster than real GPUs the engines are.",
)
@click.option("--etcd", is_flag=True, help="One more host runs etcd, for a fleet of balancers.")
@click.option("--replace", is_flag=True, help="Remove an existing lab first.")
@_late_name_option
@pass_environment
def up(env: Environment, /, *, replace: bool, **options: Any) -> None:
    """Build the lab and start its servers and agents.

    \b
    Example:
      sudo lbctl lab up --backends 5 --forward ipip
      sudo lbctl lab up --engines h100,a100 --forward nat
      sudo lbctl lab up --balancers 2
    """
    from agent.model import Forward, Hook, Scheduler
    from lbctl.lab import build, interrupt, topology

    asked = click.get_current_context().get_parameter_source("time_scale")
    if asked is not ParameterSource.DEFAULT and not options["engines"]:
        raise click.UsageError("--time-scale needs --engines")
    wanted = topology.Lab(
        name=_lab_name(),
        backends=options["backends"],
        balancers=options["balancers"],
        clients=options["clients"],
        forward=Forward(options["forward"]),
        scheduler=Scheduler(options["scheduler"]),
        hook=Hook(options["hook"]),
        arms=options["arms"],
        vlan=options["vlan"],
        engines=options["engines"],
        time_scale=options["time_scale"],
        etcd=options["etcd"],
    )
    build.check_machine()
    try:
        if replace:
            build.down(wanted.name, env.note)
        build.up(wanted, build.Owner(), env.note)
    except interrupt.Interrupted as interruption:
        env.note(f"lab {wanted.name}: interrupted by {interruption}; what was built is removed")
        click.get_current_context().exit(interruption.exit_code)
    env.note(_what_next(wanted))


def _what_next(built: Lab) -> str:
    from lbctl.lab.topology import Role, lab_command

    vip4, vip6 = built.vips
    this_lab = lab_command(built.name)
    socket = built.socket(built.nodes(Role.BALANCER)[0])
    return "\n".join(
        [
            f"the lab is up: http://{vip4}/ and http://[{vip6}]/ on {built.backends} backends; try",
            f"  {this_lab} exec client -- curl -s http://{vip4}/ 'http://[{vip6}]/'",
            *([_prompt_command(built)] if built.engines else []),
            f"  lbctl --socket {socket} backend list",
            f"  lbctl --socket {socket} status",
            f"  {this_lab} status",
            f"  {this_lab} down",
        ]
    )


def _prompt_command(built: Lab) -> str:
    from lbctl.lab.topology import ENGINE_PORT, lab_command

    url = f"http://{built.vips[0]}:{ENGINE_PORT}/v1/completions"
    body = """'{"prompt": "Why is the sky blue?", "stream": true}'"""
    return f"  {lab_command(built.name)} exec client -- curl -sN {url} -d {body}"


@lab.command()
@_late_name_option
@pass_environment
def down(env: Environment) -> None:
    """Remove the lab, whatever state it is in.

    \b
    Example:
      sudo lbctl lab down
    """
    from lbctl.lab import build

    build.check_machine()
    name = _lab_name()
    env.note(f"lab {name}: removed" if build.down(name, env.note) else f"lab {name}: there is none")


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(node: str, command: Sequence[str]) -> None:
    """Run a command on a host of the lab: client, lb1, be1, … or switch.

    \b
    Example:
      sudo lbctl lab exec client -- curl -s http://10.99.0.100/
      sudo lbctl lab exec be1 -- ip address
    """
    from lbctl.lab import build, netns

    build.check_machine()
    built, _ = _existing()
    here = built.switch if node in ("switch", built.switch) else built.node(node).namespace
    words = [*netns.entering(here), *command]
    if shutil.which(command[0]) is None:
        raise netns.LabError(
            f"the command {command[0]} is not installed on this machine",
            where=f"lab exec {node}",
            remedy="install it; the hosts of the lab share this machine's files",
        )
    os.execvp(words[0], words)  # noqa: S606 (the command is the user's own)


@lab.command()
@_late_name_option
@agent_options
@pass_environment
def status(env: Environment) -> None:
    """Show the hosts of the lab, their addresses and what runs on them.

    \b
    Example:
      sudo lbctl lab status
    """
    from lbctl.lab import build
    from lbctl.output import emit

    build.check_machine()  # only root can see all processes
    built, owner = _existing()
    data = {
        "lab": {
            "name": built.name,
            "forward": built.forward.value,
            "scheduler": built.scheduler.value,
            "hook": built.hook.value,
            "vlan": built.vlan,
            "time_scale": built.time_scale,
            "run_dir": str(built.run_dir),
            "made_by": "demo" if owner.demo else "lab up",
            "vips": [str(vip) for vip in built.vips],
        },
        "nodes": [
            {
                "name": node.name,
                "role": node.role.value,
                "namespace": node.namespace,
                "ipv4": str(node.ipv4),
                "ipv6": str(node.ipv6),
                "mtu": node.mtu,
                "interfaces": [
                    {"name": link.device, "addresses": [str(a) for a in link.addresses]}
                    for link in node.links
                ],
                "gateways": [str(gateway) for gateway in node.gateways],
                **_running(built, node),
            }
            for node in built.nodes()
        ],
    }
    emit(env, data, _status_page)


def _running(built: Lab, node: Node) -> dict[str, Any]:
    """Return what runs on a host; each of several balancers has a failover process, too."""
    from lbctl.lab import build, failover

    found: dict[str, Any] = {"process": None, "pid": None, "log": None, "failover": None}
    for what, name, pid in build.node_processes(built, node):
        log = str(built.run_dir / f"{name}.log")
        if what == failover.PROCESS:
            role = failover.summary(failover.roles(built, node))
            found["failover"] = {"role": role, "pid": pid, "log": log}
        else:
            found |= {"process": what, "pid": pid, "log": log}
    return found


def _status_page(data: Mapping[str, Any]) -> list[object]:
    from lbctl.layout import Cell, Column, Table

    about = data["lab"]
    rows = []
    for node in data["nodes"]:
        state = f"{node['process']}, pid {node['pid']}" if node["pid"] else "nothing: it ended"
        if other := node["failover"]:
            state += f"; failover, pid {other['pid']}" if other["pid"] else "; no failover process"
            state += f": {other['role']}" if other["role"] else ""
        runs = Cell(state if node["process"] else "-", "" if node["pid"] else "dim")
        texts = (node["name"], node["namespace"], node["ipv4"], node["ipv6"])
        rows.append((*map(Cell, texts), runs))
    headers = ("NODE", "NAMESPACE", "IPV4", "IPV6", "RUNS")
    vips = " and ".join(about["vips"])
    vlan = f", VLAN {about['vlan']}" if about["vlan"] else ""
    how = f"{about['forward']}, {about['scheduler']}{vlan}"
    return [
        f"lab {about['name']}: {how}, VIPs {vips}, files in {about['run_dir']}",
        "",
        Table(tuple(map(Column, headers)), tuple(rows)),
    ]


@lab.command()
@_forward_option
@_hook_option
@_late_name_option
@agent_options
@pass_environment
def demo(env: Environment, forward: str, hook: str) -> None:
    """Show what failures and changes do to traffic.

    In less than a minute: builds a lab of its own, sends real traffic, kills and drains
    backends, adds one, kills the agent, prints the figures, and removes everything.

    \b
    Example:
      sudo lbctl lab demo
    """
    from agent.model import Forward, Hook
    from lbctl.lab import demo as story

    code = story.run(env, _lab_name(), Forward(forward), Hook(hook))
    click.get_current_context().exit(code)


def _lab_name() -> str:
    return str(click.get_current_context().meta[_NAME])


def _existing() -> tuple[Lab, Owner]:
    from lbctl.lab import build, netns
    from lbctl.lab.topology import lab_command

    name = _lab_name()
    found = build.read(name)
    if found is None:
        raise netns.LabError(
            f"there is no lab called {name}",
            where="lab",
            remedy=f"build it: sudo {lab_command(name)} up",
        )
    return found
