"""Makes docs/audit.md from the rules."""

from __future__ import annotations

from pathlib import Path

from lbctl.audit.checks import RULES
from lbctl.audit.rules import Practice

PAGE = Path(__file__).resolve().parents[2] / "docs" / "audit.md"
HEAD = """\
<!-- Made from lbctl/audit/ by `make docs`; do not edit. -->
# Audit

`sudo lbctl audit` compares a running balancer with the practices of load balancing for AI. Each
rule below is kept (✔), broken (✘, with the risk and the fix), not applicable (·), or
unknown (?) if there is no evidence. The evidence comes from the agent, the kernel's tables
and this host as they are now; the configuration file alone is no evidence.

`--strict` exits with 1 if a rule is broken, for a timer or a pipeline. `--practice security` checks
one practice. `-o json` has everything.

A broken rule need not be wrong for you: a balancer in a laboratory needs no second one.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for practice in Practice:
        parts.append(f"## {practice.value}\n\n| Rule | What should hold | Otherwise |\n|-|-|-|")
        parts[-1] += "".join(
            f"\n| `{rule.name}` | {rule.holds} | {rule.risk} |"
            for rule in RULES
            if rule.practice is practice
        )
        parts[-1] += "\n"
    return "\n".join(parts)


def files() -> dict[Path, str]:
    """Return the text of each file."""
    return {PAGE: page()}
