"""``lbctl export``: the running configuration as a file."""

from __future__ import annotations

import json

import click

from agent.config.redact import hides
from lbctl.environment import Environment, Output, pass_environment
from lbctl.options import agent_options
from lbctl.output import to_yaml


@click.command()
@click.option("--services-only", is_flag=True, help="Leave out the settings of this balancer.")
@agent_options
@pass_environment
def export(env: Environment, services_only: bool) -> None:
    """Print the running configuration as a configuration file.

    It includes what was changed at run time, so that it can become the agent's file. It also
    includes the password of VRRP, if there is one, so protect it. Secrets in separate files are
    named, not shown.

    \b
    Examples:
      lbctl export > agent.yaml
      lbctl export --services-only | ssh edge-2 lbctl apply -f - --yes
    """
    config = env.agent().get("/v1/config")["config"]
    if services_only:
        config = {"services": config.get("services", [])}
    if hides(config):
        env.note("secrets are hidden, because you are no admin: lbctl auth whoami")
    if env.output is Output.JSON:
        env.write(json.dumps(config, indent=2, ensure_ascii=False))
    else:  # people read configurations as YAML, too
        env.write(to_yaml(config))
