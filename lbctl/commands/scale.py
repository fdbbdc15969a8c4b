"""``lbctl scale``: how much load services have, and how many backends they want."""

from __future__ import annotations

import click

from lbctl.environment import Environment, pass_environment
from lbctl.options import SERVICE, agent_options, watch_option
from lbctl.output import render, watch


@click.command()
@click.argument("service", type=SERVICE, required=False)
@watch_option
@agent_options
@pass_environment
def scale(env: Environment, service: str | None, watch_s: float | None) -> None:
    """Show how much load services have, and how many backends they want.

    WANTED is the load over what one backend should have, which `lbctl service set NAME --scale`
    sets; without a target it is unknown. The agent starts and stops no servers: a scaler asks for
    this number (docs/scaling.md). Loads with a target are shown as LOAD / TARGET.

    \b
    Examples:
      lbctl scale
      lbctl scale chat -o json
    """
    from urllib.parse import quote

    from lbctl import scaleviews

    path = "/v1/scale" if service is None else f"/v1/scale/{quote(service, safe='')}"
    agent = env.agent()

    def once() -> str:
        data = agent.get(path)
        return render(env, data, lambda found: [scaleviews.table(found.get("services", [found]))])

    watch(env, watch_s, once)
