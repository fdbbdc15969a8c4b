"""The benchmark of the scrapes scrapes."""

from __future__ import annotations

from agent.model import TelemetryKind
from agent.telemetry.engines import read_engine
from agent.telemetry.report import EngineReport
from bench.scrapes import vllm_page


def test_its_page_is_as_long_as_wanted_and_read_as_vllms() -> None:
    page = vllm_page(60_000)
    assert 60_000 <= len(page) < 65_000
    assert read_engine(TelemetryKind.VLLM, page) == EngineReport(0, 0, 0, None, 0, 0)
