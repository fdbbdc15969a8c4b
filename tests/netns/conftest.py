"""What a test in a lab leaves behind when it fails."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from lbctl.lab.topology import RUN_ROOT

_LAST_LINES = 100


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the logs of this process's labs, which are removed with their lab."""
    report = yield
    if report.failed:
        report.sections.extend((f"end of {path}", _end_of(path)) for path in _logs())
    return report


def _logs() -> list[Path]:
    """Return the logs of the labs whose names have the number of this process."""
    return sorted(RUN_ROOT.glob(f"*{os.getpid()}*/*.log"))


def _end_of(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    return "".join(lines[-_LAST_LINES:])
