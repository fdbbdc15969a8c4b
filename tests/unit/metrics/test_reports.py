"""What servers report and what is learned of them, as metrics: absent where nothing is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.metrics.reports import REPORT_FAMILIES
from agent.state.snapshot import LearnedSpeed, Load, Reported, Snapshot
from agent.telemetry.report import GpuReport

GPUS = (
    GpuReport("0", "GPU-a", clock_share=0.5, throttled=("hw_slowdown",)),
    GpuReport("1", "GPU-b", xid=79),
)
TOLD = Reported(
    fresh=True, age_s=0.25, running=3, waiting=2, kv_usage=0.4, gpus=GPUS, gpus_age_s=1.0
)
LEARNED = LearnedSpeed(1.5, 400, 0.75, 4e-5, 2e-3, 0.05, 30.0)
GPU1 = ('odd"name', "gpu-1")


def values(snapshot: Snapshot, load: Load) -> dict[str, dict[tuple[str, ...], float]]:
    """Of the first backend: samples by metric and labels."""
    (service,) = snapshot.services
    first = replace(service.backends[0], load=load)
    snapshot = replace(snapshot, services=(replace(service, backends=(first,)),))
    return {
        family.name.removeprefix("steelyard_"): {
            tuple(labels): value for labels, value in family.samples(snapshot)
        }
        for family in REPORT_FAMILIES
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("telemetry_fresh", 1),
        ("telemetry_age_seconds", 0.25),
        ("engine_running_requests", 3),
        ("engine_waiting_requests", 2),
        ("engine_kv_usage_ratio", 0.4),
        ("hot", 1),
        ("learned_weight_ratio", 1.5),
        ("learned_seconds_per_byte", 4e-5),
        ("learned_confidence_ratio", 0.75),
    ],
)
def test_every_figure_has_its_metric(snapshot: Snapshot, name: str, value: float):
    found = values(snapshot, Load(hot=True, reported=TOLD, learned=LEARNED))
    assert found[name] == {GPU1: value}


def test_gpus_have_their_names(snapshot: Snapshot):
    found = values(snapshot, Load(reported=TOLD))
    first, second = (*GPU1, "0", "GPU-a"), (*GPU1, "1", "GPU-b")
    assert found["gpu_clock_ratio"] == {first: 0.5}, "the other one does not say"
    assert found["gpu_throttled"] == {first: 1, second: 0}
    assert found["gpu_failing"] == {first: 0, second: 1}


def test_what_is_old_is_told_as_such_and_its_figures_are_not(snapshot: Snapshot):
    found = values(snapshot, Load(reported=replace(TOLD, fresh=False, age_s=9.0)))
    assert found["telemetry_fresh"] == {GPU1: 0}
    assert found["telemetry_age_seconds"] == {GPU1: 9.0}
    assert found["engine_running_requests"] == {}


def test_what_is_not_told_is_absent(snapshot: Snapshot):
    found = values(snapshot, Load(reported=Reported(fresh=True, age_s=0.1, waiting=0)))
    assert found["engine_waiting_requests"] == {GPU1: 0}
    assert found["engine_running_requests"] == {}
    assert found["engine_kv_usage_ratio"] == {}


@pytest.mark.parametrize("load", [Load(), Load(reported=Reported(asked=False))])
def test_who_is_not_asked_has_no_freshness(snapshot: Snapshot, load: Load):
    found = values(snapshot, load)
    assert {name for name, samples in found.items() if samples} == {"hot"}
