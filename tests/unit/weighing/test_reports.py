"""Servers are asked, their newest words are kept, and scores get the queues."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest
from structlog.testing import capture_logs

from agent.model import (
    BackendRef,
    ModelLoaded,
    ModelSource,
    NodeKind,
    NodeTelemetry,
    Scheduler,
    Telemetry,
    TelemetryKind,
)
from agent.telemetry.asks import Topic
from agent.telemetry.report import (
    AgentCheck,
    AgentState,
    EngineReport,
    Failure,
    GpuReport,
    Models,
    NodeReport,
)
from agent.weighing.reports import Reports
from tests.unit.state.world import A, B, web
from tests.unit.weighing.world import A_REF, B_REF, FakeMonitor, World

VLLM = Telemetry(TelemetryKind.VLLM, interval_s=0.2)
NODE = NodeTelemetry(NodeKind.DCGM)


@dataclass
class FakeScores:
    """Remembers what it was told."""

    asks: list[BackendRef] = field(default_factory=list)
    reports: list[tuple[BackendRef, EngineReport, float]] = field(default_factory=list)

    def asked(self, ref: BackendRef) -> None:
        self.asks.append(ref)

    def reported(
        self, ref: BackendRef, report: EngineReport, asked_at: float, fresh_s: float
    ) -> None:
        self.reports.append((ref, report, asked_at))
        self.fresh_s = fresh_s


class Here(World):
    """With reports, and how often they asked for a pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.words = 0
        self.scores = FakeScores()
        self.reports = Reports(self.scores, self._word)
        self.monitor = FakeMonitor.last
        self.aim()

    def _word(self, _ref: BackendRef) -> None:
        self.words += 1

    def aim(self) -> None:
        self.reports.aim(self.config, 10.0)


def here(**fields: object) -> Here:
    return Here(web(A, B, **({"telemetry": VLLM, "scheduler": Scheduler.LEAST_LOAD} | fields)))


# -- who is asked what


def test_each_backend_is_asked_about_all_that_its_service_wants():
    model = ModelLoaded("m")
    world = here(node=NODE, model=model)
    targets = world.monitor.targets
    assert len(targets) == 6
    assert targets[A_REF, Topic.ENGINE].question == VLLM
    assert (targets[A_REF, Topic.ENGINE].port, targets[A_REF, Topic.ENGINE].address) == (
        80,
        A.address,
    )
    assert (targets[B_REF, Topic.NODE].port, targets[B_REF, Topic.NODE].question) == (9400, NODE)
    assert (targets[B_REF, Topic.MODELS].port, targets[B_REF, Topic.MODELS].question) == (80, model)


def test_a_port_that_is_given_is_asked():
    ports = {"telemetry": replace(VLLM, port=1), "node": replace(NODE, port=2)}
    targets = here(**ports, model=ModelLoaded("m", port=3)).monitor.targets
    assert [targets[A_REF, topic].port for topic in (Topic.ENGINE, Topic.NODE, Topic.MODELS)] == [
        1,
        2,
        3,
    ]


def test_nobody_is_asked_where_nothing_is_wanted():
    assert here(telemetry=Telemetry()).monitor.targets == {}


# -- what scores get


def test_scores_get_the_queues_and_when_they_were_asked_for():
    world = here(node=NODE)
    world.monitor.asks(A_REF, Topic.NODE)
    assert world.scores.asks == []
    world.monitor.asks(A_REF)
    assert world.scores.asks == [A_REF]
    report = EngineReport(running=3.5)
    world.monitor.hears(A_REF, report, 10.0)
    assert world.scores.reports == [(A_REF, report, 10.0)]
    assert world.words == 0, "queues ask for no pass"


def test_a_report_of_a_server_that_is_asked_less_often_counts_for_longer():
    world = here()
    world.monitor.hears(A_REF, EngineReport(running=3.5), 10.0, pace=0.35)
    assert world.scores.fresh_s == pytest.approx(1.05)
    assert world.reports.heard(A_REF, Topic.ENGINE).is_fresh(11.0)
    assert not world.reports.heard(A_REF, Topic.ENGINE).is_fresh(11.1)
    world.aim()
    assert world.reports.heard(A_REF, Topic.ENGINE).is_fresh(11.0)


@pytest.mark.parametrize(
    ("report", "topic"),
    [
        (Failure("no answer"), Topic.ENGINE),
        (AgentCheck(0.5), Topic.ENGINE),
        (NodeReport((GpuReport("0"),)), Topic.NODE),
    ],
)
def test_scores_get_nothing_but_queues(report, topic: Topic):
    world = here(node=NODE)
    world.monitor.hears(A_REF, report, 10.0, topic)
    assert world.scores.reports == []


# -- freshness


def test_a_report_counts_for_three_intervals_from_the_asking():
    world = here()
    assert not world.reports.heard(A_REF, Topic.ENGINE).is_fresh(0.0)
    world.monitor.hears(A_REF, EngineReport(running=3), 10.0)
    heard = world.reports.heard(A_REF, Topic.ENGINE)
    assert heard.is_fresh(10.6 - 1e-6)
    assert not heard.is_fresh(10.61)


def test_a_failure_keeps_the_last_word_and_is_logged_once():
    world = here()
    report = EngineReport(running=3)
    world.monitor.hears(A_REF, report, 10.0)
    with capture_logs() as logs:
        for at in (10.2, 10.4):
            world.monitor.hears(A_REF, Failure("connection refused"), at)
        heard = world.reports.heard(A_REF, Topic.ENGINE)
        assert (heard.report, heard.asked_at) == (report, 10.0)
        assert heard.failure == "connection refused"
        world.monitor.hears(A_REF, report, 10.8)
    assert [(log["event"], log["log_level"]) for log in logs] == [
        ("no report", "warning"),
        ("reports again", "info"),
    ]
    assert world.reports.heard(A_REF, Topic.ENGINE).failure == ""


def test_other_words_ask_for_a_pass_when_they_change():
    world = here(node=NODE)
    well, lost = NodeReport((GpuReport("0"),)), NodeReport((GpuReport("0", lost=True),))
    warm = NodeReport((GpuReport("0", temperature_c=71.0, utilization=0.9),))
    for report, expected in (
        (well, 1), (well, 1), (warm, 1), (lost, 2), (Failure("gone"), 2), (lost, 2)
    ):  # fmt: skip
        world.monitor.hears(A_REF, report, 10.0, Topic.NODE)
        assert world.words == expected


def test_what_is_no_longer_asked_is_forgotten():
    world = here()
    world.monitor.hears(A_REF, EngineReport(running=3), 10.0)
    world.config = replace(world.config, services=(web(A, B),))
    world.aim()
    assert world.reports.heard(A_REF, Topic.ENGINE).report is None


@pytest.mark.parametrize("fields", [{"address": ip_address("10.0.0.99")}, {}])
def test_what_another_server_said_is_forgotten(fields: dict):
    world = here(node=NODE)
    world.monitor.hears(A_REF, NodeReport((GpuReport("0", lost=True),)), 10.0, Topic.NODE)
    backends = (replace(A, **fields), B)
    world.config = replace(world.config, services=(replace(world.service, backends=backends),))
    world.reports.aim(world.config, 20.0)
    kept = world.reports.heard(A_REF, Topic.NODE).report is not None
    assert kept is not bool(fields)
    assert world.reports.asked_since(A_REF, Topic.NODE) == (20.0 if fields else 10.0)


def test_what_another_list_of_models_said_is_forgotten():
    world = here(model=ModelLoaded("m"))
    world.monitor.hears(A_REF, Models(frozenset({"m"})), 10.0, Topic.MODELS)
    for source, kept in ((ModelSource.OPENAI, True), (ModelSource.OLLAMA, False)):
        service = replace(world.service, model=ModelLoaded("m", source))
        world.reports.aim(replace(world.config, services=(service,)), 20.0)
        assert (world.reports.heard(A_REF, Topic.MODELS).report is not None) is kept


def test_what_another_kind_said_is_forgotten():
    world = here(telemetry=replace(VLLM, kind=TelemetryKind.AGENT_CHECK))
    world.monitor.hears(A_REF, AgentCheck(state=AgentState.DRAIN), 10.0)
    world.service = replace(world.service, telemetry=VLLM)
    world.config = replace(world.config, services=(world.service,))
    world.aim()
    assert world.reports.heard(A_REF, Topic.ENGINE).report is None
    world.monitor.hears(A_REF, EngineReport(running=3), 10.0)
    slower = replace(world.service, telemetry=replace(VLLM, interval_s=1.0))
    world.config = replace(world.config, services=(slower,))
    world.aim()
    assert world.reports.heard(A_REF, Topic.ENGINE).is_fresh(12.9), "the same one, asked less often"


# -- what came from prefix caches


def tokens(prompt: float, cached: float) -> EngineReport:
    return EngineReport(1, 0, prompt_tokens=prompt, cached_tokens=cached)


def test_the_share_from_the_cache_is_that_of_the_last_minute():
    world = here(telemetry=VLLM)
    monitor = FakeMonitor.last
    assert world.reports.cached_share(A_REF) is None
    for second in range(2000):
        # First nothing is in the cache, from the 500th second on three quarters are.
        monitor.hears(A_REF, tokens(100 * second, 75 * max(0, second - 500)), second / 5)
    assert world.reports.cached_share(A_REF) == pytest.approx(0.75)
    assert world.reports.cached_share(B_REF) is None
    assert len(world.reports._tokens[A_REF]) <= 15


def test_an_engine_that_begins_anew_counts_anew():
    world = here(telemetry=VLLM)
    monitor = FakeMonitor.last
    monitor.hears(A_REF, tokens(1000, 900), 1.0)
    monitor.hears(A_REF, tokens(2000, 1800), 9.0)
    assert world.reports.cached_share(A_REF) == pytest.approx(0.9)
    monitor.hears(A_REF, tokens(50, 0), 17.0)
    assert world.reports.cached_share(A_REF) is None, "nothing was asked since"
    monitor.hears(A_REF, tokens(150, 10), 25.0)
    assert world.reports.cached_share(A_REF) == pytest.approx(0.1)
    monitor.hears(A_REF, EngineReport(1, 0), 33.0)
    assert world.reports.cached_share(A_REF) is None


def test_tokens_of_who_is_no_longer_asked_are_forgotten():
    world = here(telemetry=VLLM)
    FakeMonitor.last.hears(A_REF, tokens(1000, 900), 1.0)
    FakeMonitor.last.hears(A_REF, tokens(2000, 1800), 9.0)
    world.service = replace(world.service, telemetry=Telemetry())
    world.config = replace(world.config, services=(world.service,))
    world.reports.aim(world.config, 10.0)
    assert world.reports.cached_share(A_REF) is None
