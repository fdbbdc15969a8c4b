"""Nobody is asked in these tests."""

from __future__ import annotations

import pytest

from agent.weighing import reports
from tests.unit.weighing.world import FakeMonitor


@pytest.fixture(autouse=True)
def _no_scrapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "TelemetryMonitor", FakeMonitor)
