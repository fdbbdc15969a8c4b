"""Decides what a PromQL expression asks for: its selectors, and these narrowed by variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from agent.metrics.families import FAMILIES
from agent.metrics.family import Family, Kind

# Series that are not of the agent, with their labels: Prometheus' own, of which `ALERTS` has those
# of each alert, too; and those of a tier (agent/tier/traffic.py).
OWN = {
    "up": ("job",),
    "ALERTS": ("alertname", "alertstate", "severity", "service", "backend"),
    "steelyard_tier_problems": ("job",),
    "steelyard_tier_certificate_expires_timestamp_seconds": ("job", "certificate"),
}

_SELECTOR = re.compile(r"\b(steelyard_\w+|up|ALERTS)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
_PARTS = {"_bucket", "_sum", "_count"}  # of a histogram
_FAMILIES = {family.name: family for family in FAMILIES}


def family_of(series: str) -> Family | None:
    """The metric that a series belongs to; None: there is none of that name."""
    if series in _FAMILIES:
        found = _FAMILIES[series]
        return None if found.kind is Kind.HISTOGRAM else found
    name, _, part = series.rpartition("_")
    found_parts = _FAMILIES.get(name)
    is_part = f"_{part}" in _PARTS and found_parts and found_parts.kind is Kind.HISTOGRAM
    return found_parts if is_part else None


def labels_of(series: str) -> frozenset[str]:
    """The labels by which a series can be selected; those that Prometheus adds included."""
    if series in OWN:
        return frozenset({*OWN[series], "instance"})
    family = family_of(series)
    if family is None:
        raise KeyError(f"no metric has the series {series}")
    buckets = {"le"} if family.kind is Kind.HISTOGRAM else set()
    return frozenset({*family.labels, *buckets, "instance", "job"})


class Selector(NamedTuple):
    """A series that an expression names, the labels that select it, and how that is written."""

    series: str
    labels: tuple[str, ...]
    text: str


def selectors(expression: str) -> Iterator[Selector]:
    """What an expression asks for."""
    for found in _SELECTOR.finditer(expression):
        yield Selector(found[1], tuple(_MATCHER.findall(found[2] or "")), found[0])


def narrowed(expression: str, variables: tuple[str, ...]) -> str:
    """The expression with every selector limited to what is chosen in the dashboard's variables,
    as far as the series has such a label. An alert may have no instance, so all are shown.
    """

    def limit(found: re.Match[str]) -> str:
        series, given = found[1], found[2]
        if series == "ALERTS":
            return found[0]
        chosen = (f'{name}=~"${name}"' for name in variables if name in labels_of(series))
        return f"{series}{{{', '.join((*([given] if given else []), *chosen))}}}"

    return _SELECTOR.sub(limit, expression)
