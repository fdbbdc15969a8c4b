"""``lbctl audit``: compares a running balancer with the practices of load balancing for AI, and
shows and checks the audit log.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from agent.errors import SteelyardError
from lbctl.commands.auditlog import log, verify
from lbctl.environment import Environment
from lbctl.groups import SuggestingGroup
from lbctl.options import agent_options
from lbctl.output import emit

if TYPE_CHECKING:
    from rich.text import Text

    from lbctl.audit.rules import Seen

_MARKS = {
    "kept": ("✔", "green"),
    "broken": ("✘", "bold red"),
    "not-applicable": ("·", "dim"),
    "unknown": ("?", "yellow"),
}
_PRACTICES = (
    "resources", "scalability", "redundancy", "configuration", "security", "monitoring", "latency",
    "ai",
)  # fmt: skip


@click.group(cls=SuggestingGroup, invoke_without_command=True)
@click.option("--strict", is_flag=True, help="Exit with 1 if a rule is broken.")
@click.option(
    "--practice",
    "practices",
    type=click.Choice(_PRACTICES),
    multiple=True,
    help="Only this practice; may be repeated.",
)
@click.option("--broken", "only_broken", is_flag=True, help="Show only broken rules.")
@agent_options
@click.pass_context
def audit(ctx: click.Context, strict: bool, practices: tuple[str, ...], only_broken: bool) -> None:
    """Compare the running balancer with good practice, and show who changed what: log, verify.

    Without a subcommand, it shows each rule of load balancing for AI with the evidence from the
    running system and, if it is broken, the risk and how to fix it. docs/audit.md explains every
    rule. Changes nothing.

    \b
    Examples:
      sudo lbctl audit
      sudo lbctl audit --broken --practice security
      sudo lbctl audit --strict -o json
    """
    if ctx.invoked_subcommand is None:
        _compare(ctx.ensure_object(Environment), strict, practices, only_broken)


audit.add_command(log)
audit.add_command(verify)


def _compare(env: Environment, strict: bool, practices: tuple[str, ...], only_broken: bool) -> None:
    """Show the rules that are kept and broken."""
    from lbctl.audit.checks import audit as audited

    rows = [
        {
            "practice": rule.practice.name.lower(),
            "rule": rule.name,
            "verdict": finding.verdict.value,
            "holds": rule.holds,
            "evidence": finding.evidence,
            "risk": rule.risk,
            "fix": finding.fix,
        }
        for rule, finding in audited(_seen(env))
        if not practices or rule.practice.name.lower() in practices
    ]
    counts = {verdict: sum(1 for row in rows if row["verdict"] == verdict) for verdict in _MARKS}
    shown = [row for row in rows if not (only_broken and row["verdict"] != "broken")]
    data = {"counts": counts, "findings": shown}
    emit(env, data, lambda shown: _view(env, shown))
    if strict and counts["broken"]:
        raise click.exceptions.Exit(1)


def _seen(env: Environment) -> Seen:
    """Return the present state of the agent and this host."""
    from lbctl.audit.rules import Seen

    env.need_this_host("audit")
    agent = env.agent()
    status = agent.get("/v1/status")
    try:
        socket_mode = env.socket.stat().st_mode
    except OSError:
        socket_mode = None
    return Seen(
        status=status,
        services=agent.get("/v1/services")["services"],
        config=agent.get("/v1/config")["config"],
        failover=agent.get("/v1/failover"),
        guard=agent.get("/v1/guard"),
        host=_host(env),
        socket_mode=socket_mode,
    )


def _host(env: Environment) -> list[dict[str, Any]] | None:
    """Return the findings of the doctor; None: it cannot look."""
    from lbctl.commands.doctor import examined

    try:
        found: list[dict[str, Any]] = examined(env)["findings"]
    except (OSError, SteelyardError):
        return None
    return found


def _view(env: Environment, data: Mapping[str, Any]) -> list[object]:
    from rich.text import Text

    from agent.humanise import plural
    from lbctl.audit.rules import Practice

    result: list[object] = []
    for practice in Practice:
        of_it = [row for row in data["findings"] if row["practice"] == practice.name.lower()]
        if of_it:
            result += (
                ["", Text(practice.value, "bold")] if result else [Text(practice.value, "bold")]
            )
        for row in of_it:
            result += _lines(env, row)
    counts = data["counts"]
    text = (
        f"{plural(counts['kept'], 'rule')} kept, {counts['broken']} broken, "
        f"{counts['not-applicable']} not applicable, {counts['unknown']} unknown"
    )
    return [*result, "", Text(text, "bold red" if counts["broken"] else "green")]


def _lines(env: Environment, row: Mapping[str, Any]) -> list[Text]:
    """Return the rule and its evidence; if it is broken, also the risk and the fix."""
    from rich.text import Text

    mark, style = _MARKS[row["verdict"]]
    room = max((env.width or 10_000) - 4, 24)
    shown_parts = [(row["holds"], ""), (row["evidence"], "dim")]
    if row["verdict"] == "broken":
        shown_parts = [(row["holds"], "bold"), (row["evidence"], "red"), (row["risk"], "")]
    lines = [(part, how) for text, how in shown_parts for part in textwrap.wrap(text, room)]
    fix = textwrap.wrap(row["fix"], room - 5, break_on_hyphens=False)
    first, *rest = lines
    return [
        Text.assemble((f"  {mark} ", style), first),
        *(Text.assemble("    ", line) for line in rest),
        *(
            Text.assemble("    ", ("fix: " if number == 0 else "     ", "bold"), (line, "cyan"))
            for number, line in enumerate(fix)
        ),
    ]
