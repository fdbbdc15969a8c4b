# SPDX-License-Identifier: Apache-2.0
"""Writes the files of this repository that are made from others, for ``make docs``.

``python -m deploy.generated`` writes those that differ. With ``--check`` it only names them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

import agent.api.reference
import agent.config.reference
import agent.failover.reference
import agent.metrics.reference
import agent.tier.reference
import bench.quoted
import deploy.grafana.generate
import lbctl.audit.reference
import lbctl.reference

# What a file should say; None: it should not exist.
type Files = Mapping[Path, str | None]

MAKERS: tuple[Callable[[], Files], ...] = (
    agent.api.reference.files,
    agent.config.reference.files,
    agent.failover.reference.files,
    agent.metrics.reference.files,
    agent.tier.reference.files,
    bench.quoted.files,
    deploy.grafana.generate.files,
    lbctl.audit.reference.files,
    lbctl.reference.files,
)


def differing(wanted: Files) -> dict[Path, str | None]:
    """Return the files that do not say what they should."""
    return {
        path: text
        for path, text in wanted.items()
        if text != (path.read_text(encoding="utf-8") if path.exists() else None)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or check them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.generated")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if one differs")
    check = parser.parse_args(arguments).check
    status = 0
    for maker in MAKERS:
        for path, text in differing(maker()).items():
            name = os.path.relpath(path)
            if check:
                problem = "is left over" if text is None else "is outdated"
                click.echo(f"{name} {problem}\n  remedy: make docs", err=True)
                status = 1
            elif text is None:
                path.unlink()
                click.echo(f"{name} removed")
            else:
                path.write_text(text, encoding="utf-8")
                click.echo(f"{name} written")
    return status


if __name__ == "__main__":
    sys.exit(main())
