"""Nobody gets a connection: when that is said, and when not."""

from __future__ import annotations

from agent.state.silence import LEAST, SPAN_S, STEP_S, Watch, follow, follow_all
from agent.state.synflood import Syns


def played(*seconds: tuple[int, int], watch: Watch | None = None, at: float = 0.0) -> Watch:
    """Each second so many connections begin, and so many are established."""
    opened = followed = 0
    if watch is not None:
        opened, followed = watch.readings[-1].began, watch.readings[-1].followed
        at = watch.readings[-1].at_s
    else:
        watch = follow(None, at, Syns())
    for began, established in seconds:
        at += 1.0
        opened, followed = opened + began, followed + established
        watch = follow(watch, at, Syns(opened, followed))
    return watch


def test_when_nobody_is_let_in_it_is_said_within_half_a_minute():
    for second in range(1, 61):
        found = played(*[(1, 0)] * second).begun
        assert bool(found) == (second >= SPAN_S - STEP_S), second
    assert found <= SPAN_S + STEP_S


def test_one_client_that_gets_through_is_enough():
    assert played(*[(10, 0)] * 59, (10, 1)).begun == 0
    silent = played(*[(10, 0)] * 60)
    assert silent.begun
    assert played((0, 1), watch=silent).begun == 0


def test_it_ends_when_nobody_asks_any_more():
    silent = played(*[(1, 0)] * 60)
    assert silent.begun
    assert played(*[(0, 0)] * 60, watch=silent).begun == 0


def test_strangers_who_try_a_port_now_and_then_are_no_clients():
    """Some twenty in an hour."""
    watch = played((1, 0))
    for _ in range(60):
        watch = played(*[(0, 0)] * 179, (1, 0), watch=watch)
        assert watch.begun == 0


def test_too_few_say_nothing():
    each = [(1, 0)] * (LEAST - 1) + [(0, 0)] * 20
    assert played(*each).begun == 0


def test_a_service_that_is_made_anew_begins_anew():
    silent = played(*[(5, 0)] * 60)
    assert follow(silent, 61.0, Syns(3, 0)).begun == 0


def test_few_readings_are_kept_and_services_that_go_are_forgotten():
    watches = {"web": played(*[(1, 1)] * 600)}
    assert len(watches["web"].readings) <= 8
    assert set(follow_all(watches, 700.0, {"other": Syns()})) == {"other"}
