"""``lbctl auth``: who you are to the agent, and what you may do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from lbctl.environment import Environment, pass_environment
from lbctl.groups import SuggestingGroup
from lbctl.options import agent_options
from lbctl.output import emit, facts

_MAY = {
    "viewer": "read, and see what a change would do",
    "operator": "read; drain, enable and disable backends and change weights; move VIPs; block and "
    "unblock sources; trace",
    "admin": "everything",
}


@click.group(cls=SuggestingGroup)
def auth() -> None:
    """Roles: whoami.

    `socket_roles` in the agent's configuration gives groups of this host a role, and `api.roles`
    gives one to client certificates, for other hosts.

    \b
    Example:
      lbctl auth whoami
    """


@auth.command("whoami")
@agent_options
@pass_environment
def whoami(env: Environment) -> None:
    """Show who you are to the agent, your role, and what it allows.

    \b
    Example:
      lbctl auth whoami
    """
    emit(env, env.agent().get("/v1/whoami"), lambda data: _view(env, data))


def _view(env: Environment, data: Mapping[str, Any]) -> list[object]:
    roles = {name: groups for name, groups in data["roles"].items() if groups}
    address = data.get("address")  # older agents do not serve other hosts
    user = f"{data['user']}, from {address}" if address else f"{data['user']} (uid {data['uid']})"
    shown = [("user", user), ("role", data["role"])]
    if not address:
        shown.append(("by group", ", ".join(data["groups"]) or "-"))
    shown.append(("may", _MAY[data["role"]]))
    given = "\n".join(f"{name}: {', '.join(groups)}" for name, groups in roles.items())
    shown.append(("roles", given or "none: whoever can open the socket may do everything"))
    return facts(env, shown)
