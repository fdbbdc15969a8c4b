"""``lbctl doctor``: what is wrong with this host, and the command that fixes it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from agent.model import Forward
from lbctl.environment import Environment, pass_environment
from lbctl.options import ADDRESS, agent_options
from lbctl.output import emit

DEFAULT_CONFIG = Path("/etc/steelyard/agent.yaml")
MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "problem": ("FAIL", "bold red")}


@click.command()
@click.option(
    "--role",
    type=click.Choice(["balancer", "backend"]),
    default="balancer",
    show_default=True,
    help="The role of this host.",
)
@click.option(
    "-i",
    "--interface",
    metavar="NAME",
    help="The interface on which packets come in.  [default: the agent's, else the default route's,"
    " else the only one]",
)
@click.option(
    "--vip", "vips", multiple=True, type=ADDRESS, help="A VIP to look for; may be repeated."
)
@click.option(
    "--forward",
    type=click.Choice([forward.value for forward in Forward]),
    help="How packets reach the backends.  [default: that of the agent's services, else dsr]",
)
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The agent's file, which is read if no agent answers.",
)
@click.option("--problems", "only_bad", is_flag=True, help="Show only what is not OK.")
@agent_options
@pass_environment
def doctor(
    env: Environment,
    role: str,
    interface: str | None,
    vips: tuple[str, ...],
    forward: str | None,
    file: Path,
    only_bad: bool,
) -> None:
    """Check this host, and name the command that fixes what is wrong.

    Changes nothing, and works without an agent: before the agent's first start, it reads the
    configuration file. Exits with 1 if there is a problem.

    \b
    Examples:
      sudo lbctl doctor --interface eth0
      sudo lbctl doctor --role backend --vip 10.0.0.10 --forward ipip
    """
    env.need_this_host("doctor")
    data = examined(env, role, interface, vips, forward, file, only_bad=only_bad)
    emit(env, data, lambda shown: _view(env, shown))
    if data["problems"]:
        raise click.exceptions.Exit(1)


def examined(
    env: Environment,
    role: str = "balancer",
    interface: str | None = None,
    vips: Sequence[str] = (),
    forward: str | None = None,
    file: Path = DEFAULT_CONFIG,
    *,
    only_bad: bool = False,
) -> dict[str, Any]:
    """Return the findings of the doctor, with their counts."""
    from lbctl.doctor.checks import count, examine
    from lbctl.doctor.facts import Question, Role, Verdict
    from lbctl.doctor.gather import gather

    facts, names = gather(env, interface, file if role == "balancer" else None)
    question = Question(
        Role(role),
        names[0],
        tuple(ip_address(vip) for vip in vips),
        Forward(forward) if forward else None,
        names[1:],
    )
    findings = examine(facts, question)
    return {
        "role": role,
        "interface": names[0],
        "problems": count(findings, Verdict.PROBLEM),
        "warnings": count(findings, Verdict.WARNING),
        "unknown": count(findings, Verdict.UNKNOWN),
        "findings": [
            {
                "check": finding.check,
                "verdict": finding.verdict.value,
                "message": finding.message,
                "fix": finding.fix,
            }
            for finding in findings
            if not (only_bad and finding.verdict is Verdict.OK)
        ],
    }


def _view(env: Environment, data: Mapping[str, Any]) -> list[object]:
    from rich.text import Text

    from agent.humanise import plural

    result: list[object] = []
    left = max((len(finding["check"]) for finding in data["findings"]), default=0) + 2
    indent = 6 + left
    room = max((env.width or 10_000) - indent, 24)
    for finding in data["findings"]:
        mark, style = MARKS.get(finding["verdict"], ("?", "blue"))
        wrapped = textwrap.wrap(finding["message"], room)
        head = Text.assemble((f"{mark:<6}", style), f"{finding['check']:<{left}}", wrapped[0])
        result += [head, *(Text(" " * indent + line) for line in wrapped[1:])]
        # People copy commands, so these wrap only if necessary.
        fix = textwrap.wrap(finding["fix"], room - 5, break_on_hyphens=False)
        for number, line in enumerate(fix):
            label = "fix: " if number == 0 else "     "
            result.append(Text.assemble(" " * indent, (label, "bold"), (line, "cyan")))
    parts = [
        plural(data["problems"], "problem"),
        plural(data["warnings"], "warning"),
        f"{data['unknown']} unknown",
    ]
    style = "bold red" if data["problems"] else "green"
    summary = f"{data['role']} on {data['interface'] or '(no interface)'}: {', '.join(parts)}"
    return [*result, Text(summary, style)]
