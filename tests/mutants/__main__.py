"""Breaks the code on purpose, one breakage at a time in a copy, and says which tests noticed it:
``make mutants`` (root, half an hour). A breakage that no test notices is a test that lacks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900.0
_PARTS = (
    "agent",
    "bpf",
    "lbctl",
    "steelyard",
    "tests",
    "bench",
    "deploy",
    "docs",
    "manual",
    "vagrant",
)
_FILES = ("pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", ".ci")


def copied(to: Path) -> None:
    """What the tests need of this checkout."""
    skipped = shutil.ignore_patterns("__pycache__", "results")
    for part in _PARTS:
        shutil.copytree(ROOT / part, to / part, ignore=skipped, symlinks=True)
    for name in _FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name)
        elif source.exists():
            shutil.copy2(source, to / name)


def is_noticed(mutant: Mutant, folder: Path) -> tuple[bool, str]:
    """Whether the tests of a breakage fail with it, and the first that does."""
    path = folder / mutant.path
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.path}: {mutant.old!r}"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        # The copy comes first on the path, before what is installed.
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *(f"tests/{each}" for each in mutant.tests)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return True, "the tests did not end"
    finally:
        path.write_text(text, encoding="utf-8")
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return False, ""
    assert found, done.stdout + done.stderr
    return True, found[1]


def main() -> int:
    """Exit with 1 if a breakage was not noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="breakages of these names")
    chosen = [m for m in MUTANTS if re.search(parser.parse_args().only, m.name)]
    if not chosen:
        parser.error("no breakage has such a name")
    survived = 0
    with tempfile.TemporaryDirectory(prefix="steelyard-mutants-") as folder:
        copied(Path(folder))
        for mutant in chosen:
            began = time.monotonic()
            noticed, by = is_noticed(mutant, Path(folder))
            survived += not noticed
            took_s = time.monotonic() - began
            word = "noticed " if noticed else "SURVIVED"
            print(f"{word} {mutant.path}: {mutant.name} ({took_s:.0f} s) {by}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} breakages were noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
