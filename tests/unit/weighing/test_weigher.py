"""Reports and learned speed as passes and people get them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from agent.model import (
    BackendRef,
    BackendState,
    ModelLoaded,
    NodeKind,
    NodeTelemetry,
    Outlier,
    Scheduler,
    Telemetry,
    TelemetryKind,
)
from agent.state.eligibility import Eligibility, influenced
from agent.state.outliers import Tally
from agent.state.snapshot import Reported
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
from agent.weighing.outliers import Outcomes
from agent.weighing.weigher import CAPACITY_EVERY_S, CONDEMNED_S, Weigher
from agent.weights.influence import NOTHING, Influence
from agent.weights.speeds import Learned
from tests.unit.state.world import A, B, web
from tests.unit.weighing.world import A_REF, B_REF, FakeMonitor, World

VLLM = Telemetry(TelemetryKind.VLLM, interval_s=0.2)
AGENT = Telemetry(TelemetryKind.AGENT_CHECK, interval_s=1.0)
NODE = NodeTelemetry(NodeKind.NODE_AGENT, interval_s=2.0)
T = 1000.0
UP = Eligibility(
    BackendState.UP, "", usable=True, alive=True, weight=100, weight_reason="as configured"
)
HOT_GPU = GpuReport("0", throttled=("hw_thermal_slowdown",), clock_share=0.5)


class Here(World):
    """With a weigher, and how often it asked for a pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wakes = 0
        self.tallies: dict[BackendRef, Tally] = {}
        self.before: dict[BackendRef, Tally] = {}
        self.at = 0.0
        self.weigher = Weigher(self.plane, self._wake)
        self.monitor = FakeMonitor.last
        self.weigher.aim(self.config, T)
        self.weigher.place(self.config, self.ids)

    def _wake(self, _services: Iterable[str]) -> None:
        self.wakes += 1

    def sample(self, at: float, *usable: BackendRef) -> None:
        tallies = dict(self.tallies)
        moved = frozenset(r for r, one in tallies.items() if one != self.before.get(r, one))
        outcomes = Outcomes(tallies, self.before, moved, self.at, at)
        self.before, self.at = tallies, at
        self.weigher.sample(
            self.config, frozenset(usable or (A_REF, B_REF)), lambda _ref: None, outcomes,
            frozenset(), at,
        )  # fmt: skip

    def influence(self, at: float, ref: BackendRef = A_REF) -> Influence:
        self.weigher.refresh(self.config.services, at)
        return self.weigher.influences.get(ref, NOTHING)

    def verdict(self, at: float) -> Eligibility:
        return influenced(self.service, UP, self.influence(at))


def here(**fields: object) -> Here:
    return Here(web(A, B, **({"scheduler": Scheduler.LEAST_LOAD} | fields)))


def learned(world: Here, monkeypatch: pytest.MonkeyPatch, of_a: Learned) -> None:
    monkeypatch.setattr(world.weigher._learning, "learned", lambda _ref: of_a)


def test_asking_and_standing_in_are_its_tasks():
    world = here()
    world.put_load("a", open=3)

    async def start() -> None:
        tasks = {name: asyncio.create_task(run) for name, run in world.weigher.tasks().items()}
        assert set(tasks) == {"telemetry", "scores"}
        await tasks["telemetry"]
        assert not tasks["scores"].done()
        tasks["scores"].cancel()

    asyncio.run(start())
    assert world.load("a")["report_open"] == 3


def test_where_nothing_is_known_nothing_changes():
    world = here()
    assert world.verdict(T) == UP
    assert world.weigher.reported(world.service, A_REF, T) is None


# -- stale


def test_a_report_that_grows_old_is_told_and_asks_for_a_pass():
    world = here(telemetry=VLLM)
    assert world.influence(T).notes == ("stale",)
    world.monitor.hears(A_REF, EngineReport(running=3), T)
    assert world.influence(T + 0.5).notes == ()
    world.sample(T + 0.5)
    before = world.wakes
    world.sample(T + 0.55)
    assert world.wakes == before, "nothing is new"
    world.sample(T + 0.7)
    assert world.wakes == before + 1
    stale = world.verdict(T + 0.7)
    assert (stale.usable, stale.weight, stale.weight_reason) == (True, 100, "stale")


# -- GPUs


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (GpuReport("0", recovery_action="reset"), "GPU 0 wants reset"),
        (GpuReport("0", lost=True), "GPU 0 is lost"),
        (GpuReport("0", xid=79), "GPU 0 had XID 79, a hardware error"),
    ],
)
def test_a_gpu_that_fails_drains_its_backend(gpu: GpuReport, words: str):
    world = here(node=NODE)
    world.monitor.hears(A_REF, NodeReport((gpu,)), T, Topic.NODE)
    assert world.wakes == 1, "at once"
    verdict = world.verdict(T)
    assert (verdict.state, verdict.reason) == (BackendState.DRAIN, words)
    assert (verdict.usable, verdict.alive, verdict.weight) == (False, True, 0)
    assert world.influence(T, B_REF).out == ""
    world.monitor.hears(A_REF, NodeReport((GpuReport("0"),)), T + 5, Topic.NODE)
    assert world.wakes == 2
    assert world.verdict(T + 5) == UP


def test_a_host_that_fell_silent_keeps_its_last_word_for_some_minutes():
    world = here(node=NODE)
    world.monitor.hears(A_REF, NodeReport((GpuReport("0", lost=True),)), T, Topic.NODE)
    world.monitor.hears(A_REF, Failure("no answer"), T + 2, Topic.NODE)
    assert not world.verdict(T + CONDEMNED_S - 1).usable
    assert world.verdict(T + CONDEMNED_S).usable


def clock_weights(world: Here, start: float, count: int, report: NodeReport) -> list[int]:
    """Effective weights, one each ten seconds."""
    found = []
    for n in range(count):
        at = start + n * CAPACITY_EVERY_S
        world.monitor.hears(A_REF, report, at, Topic.NODE)
        world.sample(at)
        found.append(world.verdict(at).weight)
    return found


def test_a_throttled_gpu_lowers_the_weight_in_small_steps_and_comes_back():
    world = here(node=NODE)
    down = clock_weights(world, T, 6, NodeReport((HOT_GPU,)))
    assert down[-1] == 50
    assert down == sorted(down, reverse=True)
    assert all(after >= before / 1.26 for before, after in zip([100, *down], down, strict=False))
    assert world.verdict(T + 50).weight_reason == "throttled"
    up = clock_weights(world, T + 60, 6, NodeReport((GpuReport("0", clock_share=1.0),)))
    assert up[0] < 100
    assert up[-1] == 100
    assert world.verdict(T + 110) == UP


def test_throttling_changes_weights_every_ten_seconds_only():
    world = here(node=NODE)
    world.sample(T)
    world.monitor.hears(A_REF, NodeReport((HOT_GPU,)), T + 1, Topic.NODE)
    before = world.wakes
    for second in range(1, 10):
        world.sample(T + second)
    assert (world.verdict(T + 9).weight, world.wakes) == (100, before)
    world.monitor.hears(A_REF, NodeReport((HOT_GPU,)), T + 9, Topic.NODE)
    world.sample(T + CAPACITY_EVERY_S)
    assert world.verdict(T + 10).weight < 100
    assert world.wakes == before + 1


def test_old_words_on_clocks_do_not_count():
    world = here(node=NODE)
    world.monitor.hears(A_REF, NodeReport((HOT_GPU,)), T, Topic.NODE)
    world.sample(T + 7)
    assert world.verdict(T + 7).weight == 100


def test_learned_speed_is_believed_instead_of_clocks(monkeypatch: pytest.MonkeyPatch):
    world = here(node=NODE)
    clock_weights(world, T, 6, NodeReport((HOT_GPU,)))
    learned(world, monkeypatch, Learned(0.6, 1500, 0.9))
    verdict = world.verdict(T + 50)
    assert (verdict.weight, verdict.weight_reason) == (60, "learned, throttled")
    assert verdict.bytes_per_connection == 1500


# -- agent-check


@pytest.mark.parametrize(
    ("report", "state", "weight", "reason"),
    [
        (AgentCheck(0.5), BackendState.UP, 50, "agent-check"),
        (AgentCheck(0.001), BackendState.UP, 1, "agent-check"),
        (AgentCheck(1.0, AgentState.UP), BackendState.UP, 100, "as configured"),
        (AgentCheck(0.0), BackendState.DRAIN, 0, "drain"),
        (AgentCheck(None, AgentState.DRAIN), BackendState.DRAIN, 0, "drain"),
        (AgentCheck(0.5, AgentState.DOWN, "broken"), BackendState.DOWN, 0, "down"),
    ],
)
def test_agent_check_gives_a_share_or_takes_out(report, state, weight, reason):
    world = here(telemetry=AGENT)
    world.monitor.hears(A_REF, report, T)
    verdict = world.verdict(T)
    assert (verdict.state, verdict.weight, verdict.weight_reason) == (state, weight, reason)
    assert world.wakes == 1


def test_agent_check_says_why():
    world = here(telemetry=AGENT)
    world.monitor.hears(A_REF, AgentCheck(0.0, None, "full"), T)
    assert world.influence(T).out == "agent-check says weight 0 %: full"
    world.monitor.hears(A_REF, AgentCheck(None, AgentState.DOWN, "broken"), T)
    assert world.influence(T).out == "agent-check says down: broken"


# -- models


def test_the_model_must_be_loaded():
    world = here(model=ModelLoaded("m", interval_s=5.0))
    assert world.influence(T + 1).out == "", "asked just now"
    assert world.influence(T + 60).out == "it does not say whether model m is loaded"
    world.monitor.hears(A_REF, Models(frozenset({"n"})), T + 60, Topic.MODELS)
    assert world.influence(T + 60).out == "model m is not loaded (loaded: n)"
    world.monitor.hears(A_REF, Models(frozenset({"m"})), T + 65, Topic.MODELS)
    assert world.influence(T + 65).out == ""
    world.monitor.hears(A_REF, Failure("no answer"), T + 70, Topic.MODELS)
    assert world.influence(T + 700).out == "", "what it said last holds"
    assert world.influence(T + 700, B_REF).out != ""


def test_silence_about_models_asks_for_a_pass():
    world = here(model=ModelLoaded("m", interval_s=5.0))
    world.sample(T + 1)
    before = world.wakes
    world.sample(T + 6)
    assert world.wakes == before
    world.sample(T + 60)
    assert world.wakes == before + 1


# -- how many are compared


def test_a_service_that_sees_little_goes_by_the_weights():
    """Most telemetry is lost, and no bytes are seen."""
    world = here(telemetry=VLLM, count_waiting=False, draws=4)
    world.sample(T)
    assert world.weigher.draws == {"web": 1}
    world.monitor.hears(A_REF, EngineReport(running=1), T)
    world.sample(T)
    assert world.weigher.draws == {"web": 4}, "half is enough"
    world.sample(T + 1)
    assert world.weigher.draws == {"web": 1}
    world.monitor.hears(A_REF, EngineReport(running=1), T + 1)
    world.sample(T + 1, A_REF)
    assert world.weigher.draws == {"web": 4}, "who is out is not missed"


@pytest.mark.parametrize(
    "fields",
    [
        {"telemetry": VLLM},  # its bytes are seen
        {"count_waiting": False},  # nobody is asked
        {"telemetry": AGENT, "count_waiting": False},  # no queues
    ],
)
def test_others_compare_as_configured(fields: dict):
    world = here(draws=3, **fields)
    world.sample(T)
    assert world.weigher.draws == {"web": 3}
    other = here(scheduler=Scheduler.MAGLEV)
    other.sample(T)
    assert other.weigher.draws == {}


def test_who_is_not_alone_compares_fewer():
    world = here(telemetry=VLLM)
    world.put_load("a", open=9)
    world.monitor.hears(A_REF, EngineReport(running=39), T)
    world.sample(T + 0.1)
    assert world.weigher.draws == {"web": 2}


# -- for people


def test_what_is_reported_is_told_with_its_age():
    world = here(telemetry=VLLM, node=NODE)
    told = world.weigher.reported(world.service, A_REF, T)
    assert told == Reported()
    world.monitor.hears(A_REF, EngineReport(3, 1, 0.5), T)
    world.monitor.hears(A_REF, NodeReport((HOT_GPU,)), T - 1, Topic.NODE)
    world.monitor.hears(A_REF, Failure("no"), T, Topic.NODE)
    told = world.weigher.reported(world.service, A_REF, T + 0.5)
    assert told == Reported(
        fresh=True, age_s=0.5, every_s=0.2, running=3, waiting=1, kv_usage=0.5, gpus=(HOT_GPU,),
        gpus_age_s=1.5, gpus_problem="no",
    )  # fmt: skip
    assert not world.weigher.reported(world.service, A_REF, T + 5).fresh


def test_who_asks_about_gpus_alone_does_not_wait_for_the_engine():
    world = here(node=NODE)
    assert not world.weigher.reported(world.service, A_REF, T).asked
    assert world.influence(T).notes == ()


def test_what_is_learned_is_told_where_it_is():
    assert here(learn_speed=False).weigher.learned(A_REF) is None
    told = here().weigher.learned(A_REF)
    assert (told.weight_share, told.bytes_per_connection, told.confidence) == (1.0, None, 0.0)


def test_a_backend_that_is_out_for_another_reason_stays_out():
    world = here(telemetry=AGENT)
    world.monitor.hears(A_REF, AgentCheck(0.5), T)
    down = replace(UP, state=BackendState.DOWN, usable=False, weight=0)
    assert influenced(world.service, down, world.influence(T)) == down


def test_a_backend_whose_clients_fail_is_ejected_and_put_back(caplog: pytest.LogCaptureFixture):
    world = here()
    begun = Tally(100, 100, 100)
    world.tallies = {A_REF: begun, B_REF: begun}
    world.sample(T)
    world.tallies = {A_REF: begun + Tally(50, 50, 50, errors=50), B_REF: begun + begun}
    wakes = world.wakes
    world.sample(T + 1)
    assert world.wakes == wakes + 1
    out = world.verdict(T + 1)
    assert (out.state, out.usable, out.alive) == (BackendState.EJECTED, False, True)
    assert out.reason == "50 of 50 requests failed with status 429 or 5xx; no new flows for 30s"
    assert world.influence(T + 1, B_REF).out == ""
    assert (world.weigher.ejections(A_REF), world.weigher.ejections(B_REF)) == (1, 0)
    world.sample(T + 30, B_REF)
    assert world.verdict(T + 30).state is BackendState.EJECTED
    world.sample(T + 31, B_REF)
    assert world.verdict(T + 31).usable
    assert world.weigher.ejections(A_REF) == 1


def test_one_that_is_no_longer_judged_is_put_back():
    world = here()
    world.tallies = dict.fromkeys((A_REF, B_REF), Tally(100, 100, 100))
    world.sample(T)
    world.tallies = {A_REF: Tally(150, 150, 150, errors=50), B_REF: Tally(200, 200, 200)}
    world.sample(T + 1)
    assert not world.verdict(T + 1).usable
    off = replace(world.service, outlier=Outlier(eject_s=0.0))
    world.config = replace(world.config, services=(off,))
    world.sample(T + 2, B_REF)
    assert world.verdict(T + 2).usable
    assert world.weigher.ejections(A_REF) == 0


def test_a_backend_that_is_done_too_fast_says_so_and_is_passed_over():
    world = here()

    def seconds(count: int, at: float, ends: int, stay_open: int) -> float:
        for _ in range(count):
            for ref, (more, still) in ((A_REF, (ends, stay_open)), (B_REF, (10, 5))):
                closed = world.tallies.get(ref, Tally()).closed + more
                world.tallies[ref] = Tally(opened=closed + still, closed=closed)
                world.put_load(ref.backend, open=still)
            for _ in range(5):
                world.weigher._scores.stand_in(at)
            world.sample(at)
            at += 1
        return at

    at = seconds(30, T, 10, 5)
    assert world.influence(at).notes == ()
    wakes = world.wakes
    at = seconds(4, at, 70, 0)
    assert world.influence(at).notes == ("hasty",)
    assert world.influence(at, B_REF).notes == ()
    assert world.wakes == wakes + 1
    assert world.verdict(at).weight == 100
    world.weigher._scores.stand_in(at)
    assert world.load("a")["is_hot"] == 1
    at = seconds(10, at, 2, 1)
    assert world.influence(at).notes == ()
