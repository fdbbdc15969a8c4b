"""How many backends a service wants: by targets, objectives and bounds, and only if it is known."""

from __future__ import annotations

from typing import Any

import pytest

from agent.model import Scale, Signal
from agent.state.scaling import Cause, Seen, decide, reported

EVERY = Scale(connections=64, waiting_bytes=200_000, requests=32, queued=2)


def seen(
    usable: int = 2,
    *,
    draining: int = 0,
    missed: bool | None = None,
    held: int | None = None,
    **load: Any,
) -> Seen:
    return Seen(
        usable,
        draining,
        {Signal(name): value for name, value in load.items()},
        misses_objective=missed,
        held=held,
    )


def wanted(asked: Scale, found: Seen) -> tuple[int | None, Cause | None]:
    scaling = decide(asked, found)
    return scaling.wanted, scaling.cause


@pytest.mark.parametrize(
    ("load", "number"), [(0, 1), (1, 1), (64, 1), (65, 2), (128, 2), (129, 3), (640, 10)]
)
def test_a_backend_is_wanted_for_each_target_that_is_begun(load: int, number: int):
    assert decide(Scale(connections=64), seen(connections=load)).wanted == number


@pytest.mark.parametrize(
    ("load", "answer"),
    [
        ({"connections": 65}, (2, Cause.CONNECTIONS)),
        ({"waiting_bytes": 900_000}, (5, Cause.WAITING_BYTES)),
        ({"requests": 96.5}, (4, Cause.REQUESTS)),
        ({"queued": 11}, (6, Cause.QUEUED)),
        ({}, (1, Cause.MIN)),
    ],
)
def test_the_target_that_asks_for_most_decides(load: dict[str, float], answer: tuple[int, Cause]):
    idle = {signal.value: 0 for signal in Signal}
    assert wanted(EVERY, seen(**(idle | load))) == answer


def test_each_target_is_shown_by_itself():
    scaling = decide(EVERY, seen(connections=65, waiting_bytes=0, requests=None, queued=3))
    assert scaling.alone == {
        Signal.CONNECTIONS: 2,
        Signal.WAITING_BYTES: 0,
        Signal.REQUESTS: None,
        Signal.QUEUED: 2,
    }


def test_without_a_target_no_number_is_made_up():
    assert wanted(Scale(min=3, max=9), seen(0, connections=500, missed=True)) == (None, None)


def test_without_a_known_load_no_number_is_made_up():
    asked = Scale(requests=32, min=3)
    assert wanted(asked, seen(0, connections=500, requests=None, missed=True)) == (None, None)
    assert wanted(asked, seen(connections=500)) == (None, None)


def test_a_load_that_is_not_known_never_lowers_the_number():
    asked = Scale(connections=64, requests=32)
    assert wanted(asked, seen(5, connections=100, requests=None)) == (5, Cause.UNKNOWN)
    assert wanted(asked, seen(5, connections=500, requests=None)) == (8, Cause.CONNECTIONS)
    assert wanted(asked, seen(5, connections=100, requests=0)) == (2, Cause.CONNECTIONS)


def test_an_objective_that_is_missed_asks_for_one_more_than_are_usable():
    asked = Scale(connections=64)
    assert wanted(asked, seen(4, connections=100, missed=True)) == (5, Cause.OBJECTIVE)
    assert wanted(asked, seen(4, connections=100, missed=False)) == (2, Cause.CONNECTIONS)
    assert wanted(asked, seen(1, connections=300, missed=True)) == (5, Cause.CONNECTIONS)


@pytest.mark.parametrize("load", [{"connections": 0, "queued": 1}, {"connections": 3}])
def test_without_a_usable_backend_clients_that_wait_get_one(load: dict[str, int]):
    asked = Scale(connections=64, min=0)
    assert decide(asked, seen(0, **load)).wanted == 1
    assert decide(asked, seen(0, connections=0, queued=0)).wanted == 0
    assert decide(asked, seen(1, connections=0, queued=1)).wanted == 0


def test_the_number_stays_within_its_bounds():
    asked = Scale(connections=64, min=2, max=4)
    assert wanted(asked, seen(connections=10)) == (2, Cause.MIN)
    assert wanted(asked, seen(connections=200)) == (4, Cause.CONNECTIONS)
    assert wanted(asked, seen(connections=1000)) == (4, Cause.MAX)
    assert wanted(asked, seen(4, connections=10, missed=True)) == (4, Cause.MAX)


def test_load_is_shared_by_the_usable_backends():
    found = seen(4, draining=3, connections=10, requests=None)
    assert found.per_backend(Signal.CONNECTIONS) == 2.5
    assert found.per_backend(Signal.REQUESTS) is None
    assert seen(0, connections=10).per_backend(Signal.CONNECTIONS) is None


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([], 0),  # there is no backend to have any
        ([(True, None)], None),
        ([(True, 4.0), (True, 8.0)], 12.0),
        ([(True, 4.0), (True, 8.0), (True, None)], 18.0),  # it counts as the mean
        ([(True, 4.0), (True, None)], 8.0),
        ([(True, 4.0), (True, None), (True, None)], None),  # more than half are silent
        ([(True, 4.0), (False, 7.0), (False, None)], 11.0),  # one that is gone has no requests
        ([(False, 7.0)], 7.0),
        ([(False, None)], None),
    ],
)
def test_requests_are_known_only_if_most_engines_report(values: Any, total: float | None):
    assert reported(values) == total


@pytest.mark.parametrize(
    ("asked", "usable", "held", "answer"),
    [
        (Scale(requests=32, min=0), 0, 0, (None, None)),
        (Scale(requests=32, min=0), 0, 3, (1, Cause.NO_BACKEND)),
        (Scale(connections=64, min=0), 0, 3, (1, Cause.NO_BACKEND)),
        (Scale(connections=64, min=2), 0, 3, (2, Cause.MIN)),
        (Scale(min=0), 0, 3, (None, None)),
    ],
)
def test_a_client_that_waits_wants_a_first_backend(
    asked: Scale, usable: int, held: int, answer: tuple[int | None, Cause | None]
):
    assert wanted(asked, seen(usable, held=held, connections=0)) == answer
