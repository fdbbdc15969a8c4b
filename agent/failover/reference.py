"""Makes docs/times.md from ``times``."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

from agent.failover import times

PAGE = Path(__file__).resolve().parents[2] / "docs" / "times.md"
HEAD = """\
<!-- Made from agent/failover/times.py by `make docs`; do not edit. -->
# Times of failover and flow sync

This page lists how long things wait for each other in [failover](failover.md) and
[flow sync](flow-sync.md). None of these times can be configured. Those that can, such as
`advert_interval`, are in [configuration.md](configuration.md#failover). Tests check that the times
fit together with every legal configuration (`tests/property/failover/test_times.py`).

An interval is the `advert_interval` of a virtual router. A master-down time is how long a backup
waits for its master: three intervals plus a part of a fourth, which is longer the lower its
priority is.
"""
_UNITS = {"_S": "s", "_INTERVALS": "intervals", "_DOWNS": "master-down times"}


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield the section, the name and the meaning of each time, in the order of the source."""
    source = inspect.getsource(times)
    lines = source.splitlines()
    body = ast.parse(source).body
    for made, doc in itertools.pairwise(body):
        match made, doc:
            case (
                ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                above = lines[: made.lineno]
                events = [line[len("# -- ") :] for line in above if line.startswith("# -- ")]
                yield events[-1], name, " ".join(text.split())


def value(name: str) -> str:
    """Return a time with its unit, as text."""
    number = getattr(times, name)
    unit = next(unit for end, unit in _UNITS.items() if name.endswith(end))
    return f"{number:g} {unit}"


def page() -> str:
    """Return the whole page."""
    parts, event = [HEAD], ""
    for group, name, text in rows():
        if group != event:
            parts.append(f"\n## {group}\n\n| name | value | meaning |\n|-|-|-|\n")
            event = group
        parts.append(f"| `{name}` | {value(name)} | {text} |\n")
    return "".join(parts)


def files() -> dict[Path, str]:
    """Return the text of each file."""
    return {PAGE: page()}
