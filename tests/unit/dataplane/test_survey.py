"""What the flow table says, on plain arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane import abi, survey
from agent.dataplane.abi import FlowState
from agent.model import Tables
from tests.unit.dataplane.fakes import FakeTables, word

TIMEOUTS = [0, 8, 225, 8, 0, 15, 225, 8]
NOW = 5000


def tables_with(*words: int, present: tuple[int, ...] = (1, 2)) -> FakeTables:
    """Backends of service 1, and a flow table that begins with these slots."""
    tables = FakeTables()
    for ident in present:
        tables.backends["service"][ident] = 1
        tables.backends["timeout_ticks"][ident] = TIMEOUTS
    tables.flows[: len(words)] = words
    return tables


def test_an_empty_table_says_nothing():
    found = survey.survey(tables_with(), NOW)
    assert (found.by_state.sum(), found.live.sum(), found.open.sum(), len(found.expired)) == (
        0, 0, 0, 0,
    )  # fmt: skip


def test_flows_are_counted_by_state_and_by_backend():
    found = survey.survey(
        tables_with(
            word(1, FlowState.EMBRYONIC, NOW),
            word(1, FlowState.ACKED, NOW),
            word(1, FlowState.ESTABLISHED, NOW),
            0,
            word(2, FlowState.ESTABLISHED_AWAITING, NOW),
            word(2, FlowState.CLOSING, NOW),
            word(2, FlowState.CLOSING_AWAITING, NOW),
        ),
        NOW,
    )
    assert list(found.live[:3]) == [0, 2, 1]
    assert list(found.open[:3]) == [0, 3, 1]
    assert list(found.awaiting[:3]) == [0, 0, 2]
    counts = {state: found.state_count(state) for state in list(FlowState)[1:5]}
    assert counts == {
        FlowState.EMBRYONIC: 1,
        FlowState.ESTABLISHED: 2,
        FlowState.CLOSING: 2,
        FlowState.ACKED: 1,
    }
    assert len(found.expired) == 0


@pytest.mark.parametrize("now", [NOW, 0, 1, abi.FLOW_STAMP_MASK])
def test_busy_are_flows_that_await_an_answer_or_had_a_packet_lately(now: int):
    lately, before = survey.BUSY_TICKS, survey.BUSY_TICKS + 1
    tables = tables_with(
        word(1, FlowState.ESTABLISHED, now),
        word(1, FlowState.ESTABLISHED, now - lately),
        word(1, FlowState.ESTABLISHED, now - before),
        word(1, FlowState.ESTABLISHED_AWAITING, now - 100),
        word(2, FlowState.CLOSING_AWAITING, now - before),
        word(2, FlowState.ACKED, now),
        word(2, FlowState.EMBRYONIC, now),
        word(2, FlowState.CLOSING, now),
        word(2, FlowState.ESTABLISHED, now),
        word(9, FlowState.ESTABLISHED, now),
    )
    found = survey.survey(tables, now)
    assert list(found.busy[:3]) == [0, 3, 2]
    assert found.busy[9] == 0, "nobody's"
    assert found.state_count(FlowState.ESTABLISHED) == 6, "busy ones are established"
    assert (found.live[1], found.open[1]) == (4, 4)


def test_busy_flows_expire_as_established_ones_do():
    tables = tables_with(word(1, FlowState.ESTABLISHED, NOW - 1))
    tables.backends["timeout_ticks"][1][FlowState.ESTABLISHED] = 0
    assert list(survey.survey(tables, NOW).expired) == [0]


def test_waiting_bytes_are_those_of_slots_in_which_a_request_waits():
    tables = tables_with(
        word(1, FlowState.ESTABLISHED_AWAITING, NOW),
        word(1, FlowState.CLOSING_AWAITING, NOW),
        word(1, FlowState.ESTABLISHED, NOW),
        word(2, FlowState.ESTABLISHED_AWAITING, NOW),
        word(9, FlowState.ESTABLISHED_AWAITING, NOW),
        word(1, FlowState.ACKED, NOW),
    )
    tables.flows_warm["waiting"][:7] = [2**32 - 1, 20, 300, 4000, 50_000, 600_000, 7_000_000]
    found = survey.survey(tables, NOW)
    assert list(found.waiting[:3]) == [0, 2**32 + 19, 4000]
    assert found.waiting[9] == 0, "nobody's"


def test_a_request_whose_answer_was_a_head_long_ago_counts_as_answered():
    """In either state that awaits; without a head it waits, however long."""
    tables = tables_with(
        *[word(1, FlowState.ESTABLISHED_AWAITING, NOW)] * 4,
        word(1, FlowState.CLOSING_AWAITING, NOW),
        word(2, FlowState.ESTABLISHED_AWAITING, NOW),
    )
    now_ns = 10**12
    tables.flows_warm["waiting"][:6] = [1, 20, 300, 4000, 50_000, 600_000]
    tables.flows_warm["interim"][:6] = [149, 149, 149, 0, 149, 149]
    ages = [survey.ANSWERED_NS, survey.ANSWERED_NS + 1, -5, 10**12, 10**12, 10**12]
    tables.flows_warm["request"][:6] = [now_ns - age for age in ages]
    found = survey.survey(tables, NOW, now_ns)
    assert list(found.waiting[:3]) == [0, 54_321, 600_000]
    assert list(found.awaiting[:3]) == [0, 3, 0]
    assert sorted(found.over_long) == [1, 4, 5]
    assert list(found.open[:3]) == [0, 4, 1], "they are connections still"


def test_a_request_that_has_waited_for_too_long_weighs_nothing_and_is_told():
    tables = tables_with(
        *[word(1, FlowState.ESTABLISHED_AWAITING, NOW)] * 3,
        *[word(2, FlowState.ESTABLISHED_AWAITING, NOW)] * 2,
        word(9, FlowState.ESTABLISHED_AWAITING, NOW),
    )
    now_ns = 10**12
    tables.flows_warm["waiting"][:6] = [1, 20, 300, 4000, 50_000, 600_000]
    tables.flows_warm["interim"][4] = 149  # it counts as answered, not as unanswered
    ages = [100, 101, 10**11, 10**11, 10**11, 10**11]
    tables.flows_warm["request"][:6] = [now_ns - age for age in ages]
    patience_ns = np.full(len(tables.backends), 10**12)
    patience_ns[1] = 100
    found = survey.survey(tables, NOW, now_ns, patience_ns)
    assert (found.waiting[1], found.unanswered[1], found.awaiting[1]) == (321, 320, 1)
    assert (found.waiting[2], found.unanswered[2], found.awaiting[2]) == (54_000, 0, 1)
    assert sorted(found.over_long) == [1, 2, 4]
    survey.forget(tables, found)
    again = survey.survey(tables, NOW, now_ns, patience_ns)
    assert list(tables.backend_load["waiting_fix"][:3]) == [0, -320, -50_000]
    assert (again.waiting[1], again.unanswered[1], again.awaiting[1]) == (1, 320, 1)
    assert (again.waiting[2], again.unanswered[2], again.awaiting[2]) == (4000, 0, 1)
    assert not len(again.over_long)
    survey.forget(tables, found)
    assert list(tables.backend_load["waiting_fix"][:3]) == [0, -320, -50_000], "once"
    assert found.unanswered[9] == 0, "nobody's"
    assert list(found.busy[1:3]) == [1, 1]
    assert found.open[1] == 3, "they are connections still"


def test_a_survey_has_the_sums_of_the_packet_path_beside_it():
    tables = tables_with(word(1, FlowState.ESTABLISHED, NOW))
    tables.backend_load["open"][1], tables.backend_load["open_fix"][1] = 5, -2
    tables.backend_load["waiting"][1], tables.backend_load["waiting_fix"][1] = 1000, 1
    tables.backend_count["opened"][:, 1] = [3, 4, 1]
    tables.backend_count["closed"][:, 1] = [2, 0, 2]
    tables.service_load["open"][1], tables.service_load["open_fix"][1] = 9, -1
    for sums in (survey.survey(tables, NOW).before, survey.survey(tables, NOW).after):
        assert (sums.open[1], sums.waiting[1], sums.service_open[1]) == (3, 1001, 8)
        assert (sums.opened[1], sums.closed[1]) == (8, 4)


@pytest.mark.parametrize("state", [s for s in range(8) if TIMEOUTS[s]])
def test_a_slot_expires_after_its_states_timeout_not_at_it(state: int):
    at, past = (word(1, state, NOW - TIMEOUTS[state] - late) for late in (0, 1))
    found = survey.survey(tables_with(at, past), NOW)
    assert list(found.expired) == [1]
    assert list(found.words) == [past]


def test_flows_of_a_backend_that_is_gone_are_over():
    found = survey.survey(tables_with(word(3, FlowState.ESTABLISHED, NOW)), NOW)
    assert list(found.expired) == [0]
    assert (found.live.sum(), found.open.sum()) == (0, 0)


def test_a_backend_id_outside_the_table_is_nobodys():
    tables = tables_with(word(60_000, FlowState.ESTABLISHED, NOW), present=(31,))
    found = survey.survey(tables, NOW)
    assert list(found.expired) == [0]
    assert found.open.sum() == 0
    assert survey.sweep(tables, found) == 1
    assert tables.backend_count["closed"][:, 1:].sum() == 0


def test_every_chunk_of_a_large_table_is_read():
    tables = FakeTables(Tables(flows=1 << 17, services=8, backends=32, ring_slots=101))
    tables.backends["service"][1] = 1
    tables.backends["timeout_ticks"][1] = TIMEOUTS
    places = [0, (1 << 15) - 1, 1 << 15, (1 << 17) - 1]
    for place in places:
        tables.flows[place] = word(1, FlowState.ESTABLISHED, NOW)
    used, words = survey.used_slots(tables.flows)
    assert list(used) == places
    assert set(survey.backend_of(words)) == {1}
    assert survey.survey(tables, NOW).live[1] == 4


@given(st.integers(0, 2**22), st.integers(0, 8000))
def test_idle_ticks_go_round(now: int, idle: int):
    words = np.array(
        [word(1, FlowState.ESTABLISHED, (now - idle) & abi.FLOW_STAMP_MASK)], dtype=np.uint64
    )
    assert int(survey.idle_ticks(words, now)[0]) == idle


@pytest.mark.parametrize("now", [0, 5, 1_000_000, 2**32 - 3])
@pytest.mark.parametrize(
    ("passed", "age"), [(0, 0), (1, 1), (2**31 + 7, 2**31 + 7), (-1, 0), (-2500, 0)]
)
def test_a_flow_that_began_after_the_jiffies_were_read_is_new(now: int, passed: int, age: int):
    start = np.array([(now - passed) % 2**32], dtype=np.uint32)
    assert survey.age_jiffies(start, now).tolist() == [age]


def test_a_flow_with_a_packet_in_the_tick_that_has_just_begun_is_not_idle():
    """Else it was freed, and its next packets went elsewhere."""
    tables = tables_with(word(1, FlowState.ESTABLISHED, NOW + 1))
    found = survey.survey(tables, NOW)
    assert (len(found.expired), found.busy[1]) == (0, 1)
    assert survey.sweep(tables, found) == 0


def test_a_sweep_frees_what_expired_and_counts_what_was_open():
    tables = tables_with(
        word(1, FlowState.ESTABLISHED, NOW - 1000),
        word(1, FlowState.EMBRYONIC, NOW - 1000),
        word(1, FlowState.CLOSING, NOW - 1000),
        word(2, FlowState.ACKED, NOW - 1000),
        word(2, FlowState.ESTABLISHED_AWAITING, NOW - 1000),
        word(2, FlowState.CLOSING_AWAITING, NOW - 1000),
        word(2, FlowState.ESTABLISHED, NOW),
    )
    assert survey.sweep(tables, survey.survey(tables, NOW)) == 6
    assert list(np.flatnonzero(tables.flows)) == [6]
    assert list(tables.backend_count["closed"][-1, :3]) == [0, 2, 2]
    assert list(tables.backend_load["open_fix"][:3]) == [0, -2, -2]
    assert list(tables.service_load["open_fix"][:2]) == [0, -4]
    assert tables.backend_load["open"].sum() == 0, "the packet path's own"


def test_a_sweep_leaves_what_came_back_to_life():
    tables = tables_with(word(1, FlowState.ESTABLISHED, NOW - 1000))
    found = survey.survey(tables, NOW)
    tables.flows[0] = word(1, FlowState.ESTABLISHED, NOW)
    assert survey.sweep(tables, found) == 0
    assert tables.flows[0] == word(1, FlowState.ESTABLISHED, NOW)
    assert tables.backend_count["closed"].sum() == 0


def test_a_second_sweep_of_one_survey_does_nothing():
    tables = tables_with(word(1, FlowState.ESTABLISHED, NOW - 1000))
    found = survey.survey(tables, NOW)
    assert survey.sweep(tables, found) == 1
    assert survey.sweep(tables, found) == 0


def test_named_backends_are_those_in_any_slot():
    flows = np.array(
        [0, word(7, FlowState.CLOSING, 0), word(3, 1, 0), word(7, 2, 0)], dtype=np.uint64
    )
    assert survey.named_backends(flows) == {3, 7}
    assert survey.named_backends(flows[:1]) == frozenset()
