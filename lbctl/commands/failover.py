"""``lbctl failover``: which balancer has the VIPs and why, and moving them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from agent.failover.times import LBCTL_MOVE_S
from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import (
    Decorator,
    agent_options,
    dry_run_option,
    message_option,
    watch_option,
)
from lbctl.output import emit, render, watch

_instance_argument: Decorator = click.argument("instance", required=False)
_force_option: Decorator = click.option(
    "--force", is_flag=True, help="Hand over even if the other balancer does not have the flows."
)


@click.group(cls=SuggestingGroup)
def failover() -> None:
    """Failover: status, handover, promote, release.

    Without INSTANCE, a verb applies to all instances of this node.

    \b
    Examples:
      lbctl failover status
      lbctl failover handover
    """


@failover.command("status")
@watch_option
@agent_options
@pass_environment
def failover_status(env: Environment, watch_s: float | None) -> None:
    """Show who is master of what, since when and why; mismatches; the exchange of flows.

    PRIORITY is the configured priority, followed by an arrow and the effective one if they differ.
    Without an agent, it shows the answer of the failover process, and the exit code is 3.

    \b
    Examples:
      lbctl failover status
      lbctl failover status -o json | jq '.instances[] | {name, role, why}'
    """
    from agent.errors import AgentUnreachableError

    try:
        watch(env, watch_s, lambda: render(env, env.agent().get("/v1/failover"), _view))
    except AgentUnreachableError as error:
        answer = None if env.server() else _without_agent(env)
        if answer is None:
            raise
        emit(env, answer, _view)
        raise AgentUnreachableError(
            f"{error.message}; this is the answer of the failover process",
            where=error.where,
            remedy=error.remedy,
        ) from error


def _without_agent(env: Environment) -> dict[str, Any] | None:
    """Return the answer of the failover process at its usual socket; None: it does not answer."""
    from agent.api import failoverviews
    from agent.errors import SteelyardError
    from agent.failover.client import ask
    from agent.failover.model import Failover, socket_of
    from agent.failover.status import from_json
    from agent.state.snapshot import FailoverView

    try:
        process = from_json(ask(socket_of(Failover(), env.socket), {"do": "status"}))
    except SteelyardError:
        return None
    view = FailoverView(configured=True, process=process, sync_problem="the agent is away")
    return failoverviews.failover(view, time.time())


def _view(data: Mapping[str, Any]) -> list[object]:
    from lbctl import failoverviews as views

    if not data["configured"]:
        return ["no instance of failover is configured (docs/failover.md says how)"]
    rows = data["instances"]
    pieces: list[object] = [views.instance_table(rows)] if rows else []
    return [
        *pieces,
        *views.problem_lines(rows),
        views.process_line(data),
        *views.sync_lines(data["flow_sync"]),
    ]


@failover.command("handover")
@_instance_argument
@_force_option
@dry_run_option
@message_option
@agent_options
@pass_environment
def handover(env: Environment, instance: str | None, force: bool, dry_run: bool) -> None:
    """Give the VIPs to the other balancer; no connection is lost.

    Use it before work on this node. The node stays backup until `lbctl failover release`, but
    still takes over if there is no other balancer.

    \b
    Examples:
      lbctl failover handover
      lbctl failover handover web --dry-run
    """
    _move(env, "handover", instance, force=force, dry_run=dry_run)


@failover.command("promote")
@_instance_argument
@dry_run_option
@message_option
@agent_options
@pass_environment
def promote(env: Environment, instance: str | None, dry_run: bool) -> None:
    """Take the VIPs to this node, whatever the priorities, until `lbctl failover release`.

    \b
    Example:
      lbctl failover promote
    """
    _move(env, "promote", instance, force=False, dry_run=dry_run)


@failover.command("release")
@_instance_argument
@dry_run_option
@message_option
@agent_options
@pass_environment
def release(env: Environment, instance: str | None, dry_run: bool) -> None:
    """End a handover or a promotion: priorities decide again.

    \b
    Example:
      lbctl failover release
    """
    _move(env, "release", instance, force=False, dry_run=dry_run)


def _move(env: Environment, verb: str, instance: str | None, *, force: bool, dry_run: bool) -> None:
    body = {"instance": instance, "force": force, "dry_run": dry_run}
    if env.message:
        body["message"] = env.message
    answer = env.agent(LBCTL_MOVE_S).post(f"/v1/failover/{verb}", body)
    emit(env, answer, lambda data: [data["text"]])
