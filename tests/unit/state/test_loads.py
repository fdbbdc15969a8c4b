"""The numbers that schedulers compare by."""

from dataclasses import replace

import pytest

from agent.model import Protocol, Scheduler
from agent.state import loads
from tests.unit.state.world import web


def udp(**fields):
    service = web(**fields)
    return replace(service, key=replace(service.key, protocol=Protocol.UDP))


def test_only_tcp_tells_when_a_request_is_answered():
    assert loads.counts_waiting(web())
    assert not loads.counts_waiting(web(count_waiting=False))
    assert not loads.counts_waiting(udp())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scheduler": Scheduler.MAGLEV}, False),
        ({"scheduler": Scheduler.ROUND_ROBIN}, False),
        ({"scheduler": Scheduler.LEAST_CONN}, True),
        ({"scheduler": Scheduler.LEAST_LOAD}, True),
        ({"scheduler": Scheduler.SOURCE}, True),
        ({"scheduler": Scheduler.SOURCE, "source_bound": 0.0}, False),
    ],
)
def test_connections_are_counted_where_a_scheduler_compares_them(fields, expected: bool):
    assert loads.compares_connections(web(**fields)) == expected


@pytest.mark.parametrize(
    ("of_mean", "expected"), [(0.0, 0), (1.25, 320), (1.0, 256), (300, 65_535)]
)
def test_a_bound_is_in_256ths_of_the_mean(of_mean: float, expected: int):
    assert loads.bound(of_mean) == expected


@pytest.mark.parametrize(
    ("given", "expected"), [(0, 0), (1, 1 << 24), (1000, 16_777), (1 << 24, 1)]
)
def test_what_a_byte_weighs_is_in_fixed_point(given: int, expected: int):
    assert loads.per_byte(given) == expected


def test_bytes_per_connection_come_back_as_the_tables_can_say_them():
    for given in (1, 999, 1000, 1001, 4096):
        assert loads.bytes_per_connection(loads.per_byte(given)) == given
    assert loads.bytes_per_connection(0) == 0


@pytest.mark.parametrize("given", [1, 4095, 4097, 5000, 123_457, 1_000_000, 1 << 24])
def test_what_came_back_once_comes_back_again(given: int):
    held = loads.bytes_held(web(bytes_per_connection=given))
    assert held == pytest.approx(given, rel=0.05)
    assert loads.bytes_per_connection(loads.per_byte(held)) == held


def test_no_bytes_count_where_none_are_counted():
    assert loads.bytes_held(web(count_waiting=False)) == 0
    assert loads.bytes_held(udp()) == 0


@pytest.mark.parametrize(("weight", "expected"), [(1, 1 << 20), (100, 10_486), (0, 0xFFFFFFFF)])
def test_a_light_backend_scores_high_and_one_without_weight_highest(weight: int, expected: int):
    assert loads.inverse_weight(weight) == expected
