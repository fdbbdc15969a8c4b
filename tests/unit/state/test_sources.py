"""What an answer of a source of backends changes, and what looks like a mistake."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import AdminState, Discover, Target
from agent.state.sources import (
    SETTLE_S,
    Placed,
    SourceState,
    accept,
    departed,
    failed,
    follow,
    from_json,
    to_json,
)

RULES = Discover(dns="gpu.example.org", min=1, max=10, most_removed=0.5, drain_s=600)


def target(number: int, **more: object) -> Target:
    return Target(ip_address(f"10.0.0.{number}"), 8000, **more)


def some(*numbers: int) -> tuple[Target, ...]:
    return tuple(target(number) for number in numbers)


def numbers(placed: tuple[Placed, ...]) -> list[int]:
    return [int(str(each.target.address).rpartition(".")[2]) for each in placed]


FOUR = follow(SourceState(), RULES, some(1, 2, 3, 4), 100.0)


def test_the_first_answer_is_used():
    assert numbers(FOUR.named) == [1, 2, 3, 4]
    assert (FOUR.problem, FOUR.answered, FOUR.source) == ("", 100.0, "dns gpu.example.org")


def test_a_target_that_is_missing_drains_and_is_forgotten_when_its_flows_have_ended():
    state = follow(FOUR, RULES, some(1, 2, 3), 200.0)
    assert numbers(state.named) == [1, 2, 3]
    assert [each.left for each in state.placed] == [None, None, None, 200.0]
    busy = departed(state, RULES, 200.0 + SETTLE_S, lambda each: each == target(4))
    assert busy is state
    assert departed(state, RULES, 200.0 + SETTLE_S / 2, lambda _: 0) is state, "it may get more"
    assert numbers(departed(state, RULES, 200.0 + SETTLE_S, lambda _: 0).placed) == [1, 2, 3]
    assert numbers(departed(state, RULES, 200.0 + RULES.drain_s, lambda _: 9).placed) == [1, 2, 3]
    again = follow(state, RULES, some(1, 2, 3), 300.0)
    assert again.placed[3].left == 200.0, "it has not begun to drain anew"


def test_a_target_that_comes_back_no_longer_drains():
    state = follow(FOUR, RULES, some(1, 2, 3), 200.0)
    assert numbers(follow(state, RULES, some(1, 2, 3, 4), 201.0).named) == [1, 2, 3, 4]


def test_a_clock_that_was_set_back_removes_nothing_early():
    state = follow(FOUR, RULES, some(1, 2, 3), 200.0)
    assert departed(state, RULES, 50.0, lambda _: 0) is state


@pytest.mark.parametrize(
    ("targets", "problem", "is_held"),
    [
        ((), "the answer names 0 targets, and min is 1", False),
        (some(*range(1, 12)), "the answer names 11 targets, and max is 10", False),
        (some(1), "the answer lacks 3 of the 4 targets, and most_removed is 50%", True),
        (some(5, 6, 7, 8), "the answer lacks 4 of the 4 targets, and most_removed is 50%", True),
    ],
)
def test_what_looks_like_a_mistake_changes_nothing(targets, problem: str, is_held: bool):
    state = follow(FOUR, RULES, targets, 200.0)
    assert state.placed == FOUR.placed
    assert (state.problem, state.since, state.answered) == (problem, 200.0, 100.0)
    assert state.held == (targets if is_held else None)


def test_a_held_answer_can_be_accepted():
    state = follow(FOUR, RULES, some(1), 200.0)
    assert state.held is not None
    after = accept(state, RULES, state.held, 250.0)
    assert numbers(after.named) == [1]
    assert [each.left for each in after.placed] == [None, 250.0, 250.0, 250.0]
    assert (after.problem, after.held) == ("", None)


def test_one_target_may_always_be_missing():
    pair = follow(SourceState(), RULES, some(1, 2), 100.0)
    none = Discover(dns=RULES.dns, most_removed=0.0)
    assert numbers(follow(pair, none, some(1), 200.0).named) == [1]


def test_another_source_has_other_servers():
    moved = Discover(dns="new.example.org")
    assert numbers(follow(FOUR, moved, some(7, 8), 200.0).named) == [7, 8]


def test_a_failure_keeps_the_targets_and_the_time_since_when_it_fails():
    state = failed(failed(FOUR, "no answer", 200.0), "no answer", 300.0)
    assert (state.placed, state.problem, state.since) == (FOUR.placed, "no answer", 200.0)
    assert follow(state, RULES, some(1, 2, 3, 4), 400.0).problem == ""


@given(st.lists(st.lists(st.integers(1, 9), unique=True, max_size=9), max_size=6), st.randoms())
def test_the_order_of_an_answer_does_not_matter_and_nothing_is_lost_at_once(answers, random):
    state = other = SourceState()
    for now, answer in enumerate(answers):
        before = {each.key for each in state.placed}
        state = follow(state, RULES, some(*answer), float(now))
        random.shuffle(answer)
        other = follow(other, RULES, some(*answer), float(now))
        assert before <= {each.key for each in state.placed}, "they drain first"
    assert state.placed == other.placed
    assert (state.problem, state.since) == (other.problem, other.since)


@given(
    st.lists(
        st.builds(
            Placed,
            st.builds(
                Target,
                st.ip_addresses(),
                st.none() | st.integers(1, 65535),
                st.none() | st.sampled_from(["gpu-1", "a"]),
                st.integers(0, 1000),
                st.sampled_from(AdminState),
                st.booleans(),
                st.integers(0, 7),
                st.none() | st.just("eu-1"),
            ),
            st.none() | st.floats(0, 2e9),
        ),
        max_size=5,
    )
)
def test_what_is_kept_is_read_as_it_was(placed):
    states = {"chat": SourceState("dns x", tuple(placed), 5.0)}
    assert from_json(json.loads(json.dumps(to_json(states)))) == states
