"""Writes the manual pages into a folder: ``python -m manual FOLDER``, as deploy/setup.sh does."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

from manual.pages import pages


def main(arguments: list[str]) -> int:
    """Write all pages; other files in the folder stay."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m manual FOLDER\n")
        return 2
    for page in pages(date.today().isoformat()):
        path = Path(arguments[0], page.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
