"""Decides which rules an audit checks, and in which order."""

from __future__ import annotations

from collections.abc import Iterator

from lbctl.audit import exposure, inference, resilience, sizing
from lbctl.audit.rules import Finding, Practice, Rule, Seen

RULES: tuple[Rule, ...] = tuple(
    rule
    for practice in Practice
    for part in (sizing, resilience, exposure, inference)
    for rule in part.RULES
    if rule.practice is practice
)


def audit(seen: Seen) -> Iterator[tuple[Rule, Finding]]:
    """Yield every finding, in the order of the practices."""
    for rule in RULES:
        for finding in rule.judge(seen):
            yield rule, finding
