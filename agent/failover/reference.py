"""Writes docs/times.md from ``times``; ``--check`` tells whether it is up to date.

``python -m agent.failover.reference``
"""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from agent.failover import times

PAGE = Path(__file__).resolve().parents[2] / "docs" / "times.md"
HEAD = """\
<!-- Made by `python -m agent.failover.reference`; do not edit. -->
# Times of failover and flow sync

What waits for what in [failover](failover.md) and [flow sync](flow-sync.md), and how long. None of
these can be configured; what can, `advert_interval` for one, is in
[configuration.md](configuration.md#failover). That they fit together with every legal configuration
is tested (`tests/property/failover/test_times.py`).

An interval is the `advert_interval` of a virtual router. A master-down time is what a backup waits
for its master: three intervals, and the lower its priority, the more of a fourth one.
"""
_UNITS = {"_S": "s", "_INTERVALS": "intervals", "_DOWNS": "master-down times"}


def rows() -> Iterator[tuple[str, str, str]]:
    """Of each time: the event it belongs to, its name, what waits for what."""
    source = inspect.getsource(times)
    lines = source.splitlines()
    body = ast.parse(source).body
    for made, told in itertools.pairwise(body):
        match made, told:
            case (
                ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                above = lines[: made.lineno]
                events = [line[len("# -- ") :] for line in above if line.startswith("# -- ")]
                yield events[-1], name, " ".join(text.split())


def value(name: str) -> str:
    """A time with its unit."""
    number = getattr(times, name)
    unit = next(unit for end, unit in _UNITS.items() if name.endswith(end))
    return f"{number:g} {unit}"


def page() -> str:
    """The whole page."""
    parts, event = [HEAD], ""
    for group, name, text in rows():
        if group != event:
            parts.append(f"\n## {group}\n\n| name | value | meaning |\n|-|-|-|\n")
            event = group
        parts.append(f"| `{name}` | {value(name)} | {text} |\n")
    return "".join(parts)


def main() -> int:
    """Write or check the page; 1 when it differs."""
    wanted = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
        sys.stderr.write(f"{PAGE} is outdated: run python -m agent.failover.reference\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
