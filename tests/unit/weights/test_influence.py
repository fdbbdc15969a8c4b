"""What reports and learned speed do to weights and eligibility."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import BackendState, ModelLoaded
from agent.telemetry.report import AgentCheck, AgentState, GpuReport, Models, NodeReport
from agent.weights.influence import (
    AGENT_CHECK,
    FIRST_ANSWER_S,
    LEARNED,
    LEAST_SHARE,
    MOST_WEIGHT,
    NOTHING,
    STALE,
    THROTTLED,
    Influence,
    clock_share,
    factors,
    of_agent_check,
    of_gpus,
    of_models,
)

WELL = GpuReport("0", clock_share=1.0)


def test_nothing_changes_nothing():
    assert [NOTHING.weight(weight) for weight in (0, 1, 100, 1000)] == [0, 1, 100, 1000]
    assert (NOTHING.out, NOTHING.reasons) == ("", ())


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.just(LEARNED), st.floats(0, 1000)), max_size=3).map(tuple),
)
def test_a_weight_stays_in_its_range_and_never_becomes_0(configured: int, given_factors: tuple):
    weight = Influence(factors=given_factors).weight(configured)
    assert weight == 0 if configured == 0 else 1 <= weight <= MOST_WEIGHT


def test_factors_multiply_and_those_that_do_something_are_told():
    found = Influence(factors=((LEARNED, 1.5), (THROTTLED, 0.5), (AGENT_CHECK, 1.0)))
    assert found.weight(100) == 75
    assert found.reasons == (LEARNED, THROTTLED)
    noted = Influence(factors=((LEARNED, 1.0),), notes=(STALE, STALE))
    assert (noted.weight(100), noted.reasons) == (100, (STALE,))


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (GpuReport("1", lost=True), "GPU 1 is lost"),
        (GpuReport("1", recovery_action="reset"), "GPU 1 wants reset"),
        (GpuReport("1", xid=79), "GPU 1 had XID 79, a hardware error"),
    ],
)
def test_a_gpu_that_fails_keeps_new_flows_away(gpu: GpuReport, words: str):
    verdict = of_gpus(NodeReport((WELL, gpu)))
    assert (verdict.out, verdict.state) == (words, BackendState.DRAIN)


@pytest.mark.parametrize(
    "gpu", [WELL, GpuReport("0", throttled=("hw_slowdown",), clock_share=0.2), GpuReport("0")]
)
def test_a_slow_gpu_is_no_reason_to_drain(gpu: GpuReport):
    assert of_gpus(NodeReport((gpu,))).out == ""
    assert of_gpus(NodeReport()).out == ""


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (AgentState.UP, None),
        (AgentState.READY, None),
        (None, None),
        (AgentState.DRAIN, BackendState.DRAIN),
        (AgentState.MAINT, BackendState.DRAIN),
        (AgentState.DOWN, BackendState.DOWN),
    ],
)
def test_agent_check_says_who_is_out(state: AgentState | None, expected: BackendState | None):
    verdict = of_agent_check(AgentCheck(state=state, reason="too hot"))
    assert bool(verdict.out) is (expected is not None)
    if expected and state:
        assert verdict.state is expected
        assert verdict.out == f"agent-check says {state.value}: too hot"


def test_a_model_must_be_loaded():
    wanted = ModelLoaded("m")
    assert of_models(wanted, Models(frozenset({"m", "n"})), 0).out == ""
    assert of_models(wanted, Models(frozenset("edcba")), 0).out == (
        "model m is not loaded (loaded: a, b, c)"
    )
    assert of_models(wanted, Models(), 0).out == "model m is not loaded (loaded: none)"


def test_before_the_first_answer_a_model_is_taken_to_be_loaded():
    wanted = ModelLoaded("m", interval_s=5.0)
    patience_s = 5.0 + FIRST_ANSWER_S
    assert of_models(wanted, None, patience_s).out == ""
    assert (
        of_models(wanted, None, patience_s + 0.1).out == "it does not say whether model m is loaded"
    )


def test_the_slowest_throttled_clock_counts():
    slow = GpuReport("1", throttled=("hw_thermal_slowdown",), clock_share=0.6)
    slower = GpuReport("2", throttled=("hw_slowdown",), clock_share=0.4)
    assert clock_share(NodeReport((WELL, slow, slower))) == 0.4
    crawling = GpuReport("3", throttled=("hw_slowdown",), clock_share=0.01)
    assert clock_share(NodeReport((crawling,))) == LEAST_SHARE


@pytest.mark.parametrize(
    "gpu",
    [
        GpuReport("0", clock_share=0.2),  # idle
        GpuReport("0", clock_share=0.5, power_capped=True),  # its owner wants it
        GpuReport("0", throttled=("hw_slowdown",)),  # nobody knows by how much
    ],
)
def test_clocks_that_are_slow_for_another_reason_do_not(gpu: GpuReport):
    assert clock_share(NodeReport((gpu,))) == 1.0
    assert clock_share(NodeReport()) == 1.0


def test_learned_speed_is_believed_instead_of_the_clocks():
    """It has them in it: both would count them twice."""
    unsure, notes = factors(1.2, 0.4, 0.5, 0.8)
    assert dict(unsure) == {LEARNED: 1.2, THROTTLED: 0.5, AGENT_CHECK: 0.8}
    assert notes == ()
    sure, notes = factors(0.6, 0.5, 0.5, 1.0)
    assert dict(sure) == {LEARNED: 0.6}
    assert notes == (THROTTLED,)
    assert factors(0.6, 0.9, 1.0, 1.0)[1] == ()
