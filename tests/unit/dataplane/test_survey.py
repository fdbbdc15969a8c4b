"""What the flow table says, on plain arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane import abi, survey
from agent.dataplane.abi import FlowState
from tests.unit.dataplane.fakes import word

TIMEOUTS = [0, 8, 225, 8, 0, 15, 225, 8]
NOW = 5000


def table(*present: int) -> np.ndarray:
    backends = np.zeros(16, dtype=abi.BACKEND)
    for ident in present:
        backends["service"][ident] = 1
        backends["timeout_ticks"][ident] = TIMEOUTS
    return backends


def slots(*words: int) -> np.ndarray:
    return np.array(words, dtype=np.uint64)


def test_an_empty_table_says_nothing():
    found = survey.survey(slots(0, 0, 0), table(1), NOW)
    assert (found.by_state.sum(), found.live.sum(), len(found.expired)) == (0, 0, 0)


def test_states_and_live_flows_are_counted_by_backend():
    found = survey.survey(
        slots(
            word(1, FlowState.EMBRYONIC, NOW),
            word(1, FlowState.ACKED, NOW),
            word(1, FlowState.ESTABLISHED, NOW),
            0,
            word(2, 6, NOW),
            word(2, FlowState.CLOSING, NOW),
            word(2, 7, NOW),
        ),
        table(1, 2),
        NOW,
    )
    assert list(found.live[:3]) == [0, 2, 1]
    counts = {state: found.state_count(state) for state in FlowState if state}
    assert counts == {
        FlowState.EMBRYONIC: 1,
        FlowState.ESTABLISHED: 2,
        FlowState.CLOSING: 2,
        FlowState.ACKED: 1,
    }
    assert len(found.expired) == 0


@pytest.mark.parametrize("state", [s for s in range(8) if TIMEOUTS[s]])
def test_a_slot_expires_after_its_states_timeout_not_at_it(state: int):
    at, past = (word(1, state, NOW - TIMEOUTS[state] - late) for late in (0, 1))
    found = survey.survey(slots(at, past), table(1), NOW)
    assert list(found.expired) == [1]
    assert list(found.words) == [past]


def test_flows_of_a_backend_that_is_gone_are_over():
    found = survey.survey(slots(word(3, FlowState.ESTABLISHED, NOW)), table(1), NOW)
    assert list(found.expired) == [0]
    assert found.live.sum() == 0


def test_a_backend_id_outside_the_table_is_no_crash():
    found = survey.survey(slots(word(60_000, FlowState.ESTABLISHED, NOW)), table(1), NOW)
    assert list(found.expired) == [0]


@given(st.integers(0, 2**22), st.integers(0, 8191))
def test_idle_ticks_go_round(now: int, idle: int):
    words = slots(word(1, FlowState.ESTABLISHED, (now - idle) & abi.FLOW_STAMP_MASK))
    assert int(survey.idle_ticks(words, now)[0]) == idle


def test_a_sweep_frees_what_expired_and_counts_what_was_open():
    flows = slots(
        word(1, FlowState.ESTABLISHED, NOW - 1000),
        word(1, FlowState.EMBRYONIC, NOW - 1000),
        word(1, FlowState.CLOSING, NOW - 1000),
        word(2, FlowState.ACKED, NOW - 1000),
        word(2, 6, NOW - 1000),
        word(2, FlowState.ESTABLISHED, NOW),
    )
    counts = np.zeros(16, dtype=abi.BACKEND_COUNTERS)
    found = survey.survey(flows, table(1, 2), NOW)
    assert survey.sweep(flows, found, counts) == 5
    assert list(np.flatnonzero(flows)) == [5]
    assert list(counts["closed"][:3]) == [0, 2, 2]


def test_a_sweep_leaves_what_came_back_to_life():
    flows = slots(word(1, FlowState.ESTABLISHED, NOW - 1000))
    found = survey.survey(flows, table(1), NOW)
    flows[0] = word(1, FlowState.ESTABLISHED, NOW)
    counts = np.zeros(16, dtype=abi.BACKEND_COUNTERS)
    assert survey.sweep(flows, found, counts) == 0
    assert flows[0] == word(1, FlowState.ESTABLISHED, NOW)
    assert counts["closed"].sum() == 0


def test_a_second_sweep_of_one_survey_does_nothing():
    flows = slots(word(1, FlowState.ESTABLISHED, NOW - 1000))
    found = survey.survey(flows, table(1), NOW)
    counts = np.zeros(16, dtype=abi.BACKEND_COUNTERS)
    assert survey.sweep(flows, found, counts) == 1
    assert survey.sweep(flows, found, counts) == 0


def test_named_backends_are_those_in_any_slot():
    flows = slots(0, word(7, FlowState.CLOSING, 0), word(3, 1, 0), word(7, 2, 0))
    assert survey.named_backends(flows) == {3, 7}
    assert survey.named_backends(slots(0)) == frozenset()
