"""How far the kernel's times are from the server's log, for the table in docs/prompt.md (root):

.venv/bin/python -m tests.netns.prompt [how many times]
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict

from tests.netns.prompt.cases import Case, Server
from tests.netns.prompt.judge import errors_ms
from tests.netns.prompt.stage import perform
from tests.netns.prompt.test_prompt import CASES, MODES, answered, is_undecided

type Errors = dict[str, dict[str, list[float]]]  # by kind of connection, by mode
ALL = "**all**"


def kind(case: Case) -> str:
    """What is spoken on the connections of a case, and how they fare."""
    if case.relayed:
        return "TLS 1.3, lost and reordered" if case.front.tls else "HTTP/1.1, lost and reordered"
    if case.server in (Server.RPC, Server.RPC_TLS):
        return "gRPC over TLS 1.3" if case.server is Server.RPC_TLS else "gRPC"
    version = "HTTP/2" if case.front.http2 else "HTTP/1.1"
    return f"{version} over {case.front.tls.replace('v', ' ')}" if case.front.tls else version


def measure(times: int) -> Errors:
    """Play everything so many times."""
    errors: Errors = defaultdict(lambda: defaultdict(list))
    for forward in MODES * times:
        for played in perform(forward, CASES).values():
            if played.trouble or is_undecided(played, forward):
                print(f"{forward.value} {played.case.name}: {played.trouble}", file=sys.stderr)
            elif not played.case.loose:
                for row in (kind(played.case), ALL):
                    errors[row][forward.value] += errors_ms(played.times_us, answered(played))
    return errors


def _cell(errors: list[float]) -> str:
    if not errors:
        return "–"  # noqa: RUF001 (as in the page)
    worst = max(errors, key=abs)
    return f"{statistics.median(errors):.1f}, {worst:.1f} ({len(errors)})"


def main() -> None:
    """Print the table."""
    errors = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    modes = [mode.value for mode in MODES]
    print("| connection |", " | ".join(f"`{mode}`" for mode in modes), "|")
    print("|-" * (1 + len(modes)) + "|")
    for row in (*sorted(errors.keys() - {ALL}), ALL):
        print(f"| {row} |", " | ".join(_cell(errors[row][mode]) for mode in modes), "|")


if __name__ == "__main__":
    main()
