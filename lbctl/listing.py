"""Options that all lists share: which rows, in which order, and how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from agent.humanise import exact
from lbctl.options import Decorator, WordType

type Sorts = Mapping[str, Callable[[Any], Any]]


def list_options(sorts: Sorts, states: Iterable[str]) -> Decorator:
    """Add ``--state``, ``--sort`` and ``--limit``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows."
            ),
            click.option(
                "--sort",
                type=WordType(sorts),
                help="Largest first; names in alphabetical order, states with the worst first.",
            ),
            click.option(
                "--state",
                "states",
                multiple=True,
                type=WordType(states),
                help="Only in this state; may be repeated.",
            ),
        ):
            function = option(function)
        return function

    return decorate


def listed[T](rows: Sequence[T], sorts: Sorts, sort: str | None, limit: int | None) -> list[T]:
    """Return the rows to show."""
    ordered = sorted(rows, key=sorts[sort]) if sort else list(rows)
    return ordered[:limit]


def left_out(shown: int, total: int) -> list[str]:
    """Return a line that says that there are more rows, if there are."""
    return (
        [f"{exact(shown)} of {exact(total)} shown; omit --limit to see all"]
        if shown < total
        else []
    )
