"""The command line of Steelyard: the list of commands, and the options that they share."""

from __future__ import annotations

import click

from agent import __version__
from lbctl.environment import Environment
from lbctl.groups import LazyCommand, LazyGroup
from lbctl.options import output_option, remote_options, socket_option

SEE = "See"
CHANGE = "Change"
HOST = "This host"

COMMANDS = (
    LazyCommand(
        "status",
        "lbctl.commands.status",
        "status",
        "Show the balancer on one screen: what is wrong, agent, data plane, rates, services.",
        SEE,
    ),
    LazyCommand(
        "service",
        "lbctl.commands.service",
        "service",
        "Services: list, show, add, set, remove.",
        SEE,
    ),
    LazyCommand(
        "backend",
        "lbctl.commands.backend",
        "backend",
        "Backends: list, show, add, set, drain, enable, disable, remove.",
        SEE,
    ),
    LazyCommand(
        "server",
        "lbctl.commands.server",
        "server",
        "Servers, over all services: list, show, drain, enable, disable, weight.",
        SEE,
    ),
    LazyCommand(
        "discovery",
        "lbctl.commands.discovery",
        "discovery",
        "Sources of backends: list, show, accept, test.",
        SEE,
    ),
    LazyCommand(
        "failover",
        "lbctl.commands.failover",
        "failover",
        "Failover: status, handover, promote, release.",
        SEE,
    ),
    LazyCommand(
        "scale",
        "lbctl.commands.scale",
        "scale",
        "Show how much load services have, and how many backends they want.",
        SEE,
    ),
    LazyCommand(
        "flows",
        "lbctl.commands.flows",
        "flows",
        "List recorded flows, by service, backend, client or state.",
        SEE,
    ),
    LazyCommand(
        "explain",
        "lbctl.commands.explain",
        "explain",
        "Show which backend a connection would get, and why.",
        SEE,
    ),
    LazyCommand(
        "trace",
        "lbctl.commands.trace",
        "trace",
        "Show what the data plane decides, as it happens.",
        SEE,
    ),
    LazyCommand(
        "top",
        "lbctl.commands.top",
        "top",
        "Show services, backends and flows on a full screen, as they change.",
        SEE,
    ),
    LazyCommand(
        "events",
        "lbctl.commands.events",
        "events",
        "Show what has happened, and why.",
        SEE,
    ),
    LazyCommand(
        "threats",
        "lbctl.commands.guard",
        "threats",
        "Show the sources that behave unlike all others, and the alerts of Suricata.",
        SEE,
    ),
    LazyCommand(
        "guard",
        "lbctl.commands.guard",
        "guard",
        "Blocked sources, lists and limits: status, list, block, unblock, test, top.",
        CHANGE,
    ),
    LazyCommand(
        "apply",
        "lbctl.commands.apply",
        "apply",
        "Make the running services equal to a file.",
        CHANGE,
    ),
    LazyCommand(
        "reload",
        "lbctl.commands.reload",
        "reload",
        "Have the agent read its configuration file again.",
        CHANGE,
    ),
    LazyCommand(
        "history",
        "lbctl.commands.history",
        "history",
        "Versions of the running configuration: show, diff, rollback.",
        CHANGE,
    ),
    LazyCommand(
        "fleet",
        "lbctl.commands.fleet",
        "fleet",
        "The fleet: balancers that run the same services.",
        CHANGE,
    ),
    LazyCommand(
        "rollout",
        "lbctl.commands.fleet",
        "rollout",
        "A version of the fleet that some balancers try first: status, promote, abort.",
        CHANGE,
    ),
    LazyCommand(
        "import",
        "lbctl.commands.import_",
        "import_",
        "Convert another balancer's configuration: keepalived's or HAProxy's.",
        CHANGE,
    ),
    LazyCommand(
        "diff",
        "lbctl.commands.diff",
        "diff",
        "Show what differs between running and written configuration.",
        CHANGE,
    ),
    LazyCommand(
        "export",
        "lbctl.commands.export",
        "export",
        "Print the running configuration as a configuration file.",
        CHANGE,
    ),
    LazyCommand(
        "doctor",
        "lbctl.commands.doctor",
        "doctor",
        "Check this host, and name the command that fixes what is wrong.",
        HOST,
    ),
    LazyCommand(
        "audit",
        "lbctl.commands.audit",
        "audit",
        "Compare the running balancer with good practice, and show who changed what: log, verify.",
        HOST,
    ),
    LazyCommand(
        "auth",
        "lbctl.commands.auth",
        "auth",
        "Roles: whoami.",
        HOST,
    ),
    LazyCommand(
        "context",
        "lbctl.commands.context",
        "context",
        "Agents on other hosts, by name: list, add, use, remove.",
        HOST,
    ),
    LazyCommand(
        "tier",
        "lbctl.commands.tier",
        "tier",
        "TLS and keys in front of engines: status, certs, keys, limits, reload.",
        HOST,
    ),
    LazyCommand(
        "support-bundle",
        "lbctl.commands.support_bundle",
        "support_bundle",
        "Write one file with everything that a helper needs to see.",
        HOST,
    ),
    LazyCommand(
        "lab",
        "lbctl.lab.cli",
        "lab",
        "A whole load-balanced network on this machine, to try things on.",
        HOST,
    ),
    LazyCommand(
        "completion",
        "lbctl.commands.completion",
        "completion",
        "Print the completion script for bash, zsh or fish.",
        HOST,
    ),
)


class Root(LazyGroup):
    """``lbctl`` itself."""

    table = COMMANDS


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@socket_option
@remote_options
@output_option
@click.version_option(__version__, prog_name="lbctl", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Control the Steelyard load balancer.

    Nouns show, verbs change. Data goes to standard output, messages to standard error.
    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 agent unreachable.

    \b
    Examples:
      lbctl status
      lbctl backend list --watch
      lbctl backend drain chat/gpu-1
    """
    ctx.ensure_object(Environment)


def main() -> None:
    """The ``lbctl`` command."""
    cli(prog_name="lbctl")


if __name__ == "__main__":
    main()
