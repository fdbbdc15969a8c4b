"""Writes the dashboards from what ``boards`` says: ``python -m deploy.grafana.generate``.

With ``--check`` it only says whether they are as they should be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.grafana.boards import DASHBOARDS

FOLDER = Path(__file__).parent / "dashboards"


def documents() -> dict[str, str]:
    """Each file's name and text."""
    return {
        f"{dashboard.name}.json": json.dumps(dashboard.document(), indent=1) + "\n"
        for dashboard in DASHBOARDS
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the dashboards; 1 when one differs."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.generate")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if outdated")
    wanted = documents()
    if parser.parse_args(arguments).check:
        found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
        if found != wanted:
            sys.stderr.write(f"{FOLDER} is outdated: run python -m deploy.grafana.generate\n")
            return 1
        return 0
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
