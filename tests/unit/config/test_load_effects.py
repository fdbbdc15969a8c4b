"""What a change of telemetry, learning, models or rebalancing does, in one sentence each."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from agent.config.load_effects import load_changed
from agent.config.plan import plan
from agent.model import (
    Affinity,
    AffinityBy,
    Config,
    ModelLoaded,
    NodeKind,
    NodeTelemetry,
    Objective,
    Outlier,
    Rebalance,
    Scale,
    Service,
    Telemetry,
    TelemetryKind,
)
from tests.unit.state.world import A, B, web

PLAIN = web(A, B)


HOME = "a client's new flows go to the backend that %s, unless that has more to do than others %s"


def kind(name: str) -> Telemetry:
    return Telemetry(TelemetryKind(name))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"telemetry": kind("vllm")},
         "new flows go by the queues that the engines report (vllm, 200ms)"),
        ({"telemetry": kind("agent-check")},
         "the servers' agents are asked for a share of their weight, and their state"),
        ({"node": NodeTelemetry(NodeKind.DCGM)},
         "throttled GPUs lower the weight of their backend (dcgm every 2s), failing ones drain it"),
        ({"model": ModelLoaded("m")}, "only backends that have loaded m get new flows"),
        ({"learn_speed": False}, "weights are as configured, however fast backends answer"),
        ({"rebalance": Rebalance(2.5)},
         "idle connections of overloaded backends are reset, 2.5 a second at most"),
        ({"affinity": Affinity(AffinityBy.SOURCE)},
         HOME % ("its address names", "by what its cache saves")),
        ({"affinity": Affinity(AffinityBy.SOURCE, 24, 65_536)},
         HOME % ("the first 24 bits of its address name", "by 65536 bytes")),
        ({"outlier": Outlier(60.0, 0.25)},
         "a backend at which 25% of the requests or connections fail gets no new flows for 1m"),
        ({"outlier": Outlier(0.0)}, "no backend is ejected because its clients fail"),
        ({"slo": (Objective(50, 0.5), Objective(95, 2.0))},
         "first bytes are watched: 50 % of them come within 500ms and 95 % of them come within 2s"),
        ({"scale": Scale(connections=64, queued=2)},
         "a backend is wanted for every 64 connections or 2 queued requests, at least 1"),
        ({"scale": Scale(waiting_bytes=200_000, min=0, max=9)},
         "a backend is wanted for every 200000 waiting bytes, at least 0 and at most 9"),
    ],
)  # fmt: skip
def test_one_sentence_each(changes: dict, words: str):
    assert list(load_changed(PLAIN, replace(PLAIN, **changes))) == [words]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"telemetry": kind("vllm")},
         "the engines are no longer asked: open connections count instead"),
        ({"node": NodeTelemetry(NodeKind.DCGM)},
         "throttled and failing GPUs no longer change weights"),
        ({"model": ModelLoaded("m")}, "backends get new flows whatever models they have loaded"),
        ({"learn_speed": False}, "weights follow how fast backends answer"),
        ({"rebalance": Rebalance(2.5)}, "no connection is reset to rebalance"),
        ({"affinity": Affinity(AffinityBy.SOURCE)},
         "new flows go where the load is least, wherever the client's earlier flows went"),
        ({"slo": (Objective(50, 0.5),)}, "no time is promised for first bytes"),
        ({"scale": Scale(requests=4)}, "no number of backends is wanted"),
        ({"outlier": Outlier(0.0)},
         "a backend at which 50% of the requests or connections fail gets no new flows for 30s"),
    ],
)  # fmt: skip
def test_and_back(changes: dict, words: str):
    assert list(load_changed(replace(PLAIN, **changes), PLAIN)) == [words]


def test_nothing_is_said_of_what_stays():
    assert list(load_changed(PLAIN, PLAIN)) == []


@pytest.mark.parametrize(
    "changes",
    [{"rtt_per_connection_s": 0.002}, {"telemetry": kind("tgi")}, {"learn_speed": False}],
)
def test_a_plan_has_an_effect_for_each(changes: dict):
    assert set(changes) <= {field.name for field in fields(Service)}
    before = Config("test", "eth0", services=(PLAIN,))
    (change,) = plan(before, replace(before, services=(replace(PLAIN, **changes),)))
    assert change.effect
    assert len(change.fields) == 1


def test_priorities_and_zones_say_where_new_flows_go():
    before = Config("test", "eth0", services=(PLAIN,))
    last = replace(before, services=(web(A, replace(B, priority=2)),))
    (change,) = plan(before, last)
    idle = "its priority is 2, and there are backends with a lower one"
    assert f"its priority is 2: it gets no new flow: {idle}" in change.effect
    (change,) = plan(last, before)
    assert "its priority is 0: about 75 % of new flows go to it" in change.effect
    (change,) = plan(before, replace(before, services=(web(A, replace(B, zone="east")),)))
    assert "clients of zone east are sent there first" in change.effect
