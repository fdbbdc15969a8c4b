"""What a report makes of the load score, and who is hot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Protocol, Scheduler, Service, Telemetry, TelemetryKind
from agent.telemetry.report import EngineReport
from agent.weights.score import (
    LEAST_DRAWS,
    draws,
    fixed,
    hidden_connections,
    is_hot,
    is_scored,
    kappa,
    reports_queues,
    requests_each,
    rtt_connections,
    smoothed,
)
from tests.unit.state.world import A, web

VLLM = Telemetry(TelemetryKind.VLLM)
AGENT = Telemetry(TelemetryKind.AGENT_CHECK)


def least_load(protocol: Protocol = Protocol.TCP, **fields: object) -> Service:
    service = web(A, **({"scheduler": Scheduler.LEAST_LOAD} | fields))
    return replace(service, key=replace(service.key, protocol=protocol))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"count_waiting": False}, False),
        ({"protocol": Protocol.UDP}, False),
        ({"count_waiting": False, "telemetry": VLLM}, True),
        ({"protocol": Protocol.UDP, "telemetry": VLLM}, True),
        ({"count_waiting": False, "telemetry": AGENT}, False),
        ({"count_waiting": False, "rtt_per_connection_s": 0.001}, True),
        ({"telemetry": VLLM, "scheduler": Scheduler.LEAST_CONN}, False),
        ({"rtt_per_connection_s": 0.001, "scheduler": Scheduler.MAGLEV}, False),
    ],
)
def test_who_has_more_in_its_scores_than_the_packet_path_counts(fields: dict, expected: bool):
    assert is_scored(least_load(**fields)) is expected


@pytest.mark.parametrize("kind", TelemetryKind)
def test_engines_tell_queues_and_an_agent_check_does_not(kind: TelemetryKind):
    silent = (TelemetryKind.NONE, TelemetryKind.AGENT_CHECK)
    assert reports_queues(least_load(telemetry=Telemetry(kind))) is (kind not in silent)


def test_queues_are_256ths_of_a_request():
    assert fixed(3.75) == 960
    assert fixed(1e12) == 2**32 - 1


def test_a_way_weighs_as_connections():
    assert rtt_connections(0.004, 0.002) == 2
    assert rtt_connections(None, 0.002) == 0
    assert rtt_connections(0.004, 0) == 0


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (EngineReport(waiting=5), True),
        (EngineReport(waiting=4.9, running=99), False),
        (EngineReport(kv_usage=0.8), True),
        (EngineReport(kv_usage=0.79, running=1), False),
        (EngineReport(), False),
    ],
)
def test_hot_is_who_has_more_than_it_can_take(report: EngineReport, expected: bool):
    assert is_hot(report) is expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(None, 1), (1.0, 1), (2.5, 2.5), (0.5, 0.5), (9.0, 4), (0.0, 0.25)],
)
def test_a_connection_of_the_silent_is_what_requests_there_are_for_one_elsewhere(ratio, expected):
    assert requests_each(ratio) == expected


@pytest.mark.parametrize(
    ("request_bytes", "worth", "expected"),
    [
        (5000.0, 0, 256),  # bytes do not weigh
        (0.0, 1000, 256),
        (1000.0, 1000, 512),
        (5000.0, 2000, 896),
        (1e9, 1, 201 * 256),
    ],
)
def test_a_new_connection_weighs_one_and_the_bytes_that_its_request_will_have(
    request_bytes: float, worth: int, expected: int
):
    assert kappa(request_bytes, worth) == expected


@given(st.floats(0, 1e12), st.integers(0, 2**24))
def test_a_new_connection_never_weighs_less_than_one_and_always_fits(size: float, worth: int):
    assert 256 <= kappa(size, worth) < 2**16


@pytest.mark.parametrize(
    ("waiting", "own_bytes", "worth", "expected"),
    [(None, 0, 100, 0), (4, 0, 0, 0), (4, 0, 100, 20), (4, 1500, 100, 5), (4, 9000, 100, 0)],
)
def test_what_came_another_way_weighs_with_its_bytes(waiting, own_bytes, worth, expected):
    report = EngineReport(running=7, waiting=waiting)
    assert hidden_connections(report, 500.0, own_bytes, worth) == expected


def test_a_ratio_follows_slowly_and_only_what_says_something():
    assert smoothed(None, 19, 9) == 2
    assert 2 < smoothed(2.0, 99, 9) < 3
    assert smoothed(2.0, 3, 4) == 2


@pytest.mark.parametrize(
    ("ratio", "before", "expected"),
    [
        (None, 2, 4),
        (1.0, 4, 4),
        (2.0, 4, 4),
        (3.0, 4, 3),
        (4.0, 4, 2),
        (1000.0, 4, LEAST_DRAWS),
        (0.0, 2, 4),
        (2.9, 2, 3),
        (3.1, 3, 3),  # it stays
        (2.2, 3, 3),
        (2.0, 3, 4),
        (2.0, 1, 4),  # it was blind
    ],
)
def test_who_is_one_of_many_balancers_compares_fewer(ratio, before, expected):
    assert draws(4, ratio, before) == expected


@given(st.integers(2, 8), st.none() | st.floats(0, 1e9), st.integers(1, 8))
def test_no_more_are_compared_than_configured(configured: int, ratio: float | None, before: int):
    found = draws(configured, ratio, before)
    assert LEAST_DRAWS <= found <= configured
    assert draws(configured, ratio, found) == found, "it comes to rest"
