"""How many idle connections of which backend are to be reset now."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.model import Protocol, Rebalance, Scheduler, Service, ServiceKey
from agent.state.rebalance import Budget, excess, portion, rebalances
from agent.state.skew import Standing

WANTED = Rebalance(rate_per_s=5, skew=1.5)


def test_an_overloaded_backend_is_above_its_share():
    found = [Standing("a", 100, busy=30, live=100), Standing("b", 100, busy=0, live=20)]
    assert excess(WANTED, found) == {"a": 15}


def test_shares_are_by_weight():
    found = [Standing("big", 300, busy=60, live=60), Standing("small", 100, busy=60, live=60)]
    assert excess(WANTED, found) == {"small": 30}


def test_connections_never_go_below_their_share():
    """However many of them are busy: what is idle may be all on the other backend."""
    found = [Standing("a", 100, busy=30, live=32), Standing("b", 100, busy=0, live=30)]
    assert excess(WANTED, found) == {"a": 1}
    found = [Standing("a", 100, busy=30, live=30), Standing("b", 100, busy=0, live=30)]
    assert excess(WANTED, found) == {}


@pytest.mark.parametrize(
    "others",
    [
        [],  # it is alone
        [Standing("b", 0, 0, 0)],  # nobody takes what it gives up
        [Standing("b", 100, 15, 15)],  # 2 times as many, and that is below 1.5 times its share
        [Standing("b", 100, 0, 0, level="1")],  # of another priority
    ],
)
def test_nothing_is_given_up_in_vain(others: list[Standing]):
    assert excess(WANTED, [Standing("a", 100, 30, 30), *others]) == {}


def test_what_a_backend_without_weight_has_stays():
    found = [
        Standing("draining", 0, 90, 90),
        Standing("b", 100, 20, 20),
        Standing("c", 100, 20, 20),
    ]
    assert excess(WANTED, found) == {}


def test_few_connections_may_lie_as_they_do():
    assert excess(WANTED, [Standing("a", 100, 5, 5), Standing("b", 100, 0, 0)]) == {}


def test_the_budget_follows_time_and_is_kept_for_a_second():
    budget = Budget().refilled(5, 100.0)
    assert budget.tokens == 0
    assert budget.refilled(5, 100.4).tokens == pytest.approx(2)
    assert budget.refilled(5, 200.0).tokens == 5
    assert budget.refilled(5, 200.0).spent(3).refilled(5, 200.2).tokens == pytest.approx(3)


def test_a_slow_rate_is_kept_until_it_makes_one():
    budget = Budget().refilled(0.1, 0.0)
    for second in range(1, 10):
        budget = budget.refilled(0.1, float(second))
        assert portion({"a": 5}, budget) == {}
    budget = budget.refilled(0.1, 11.0)
    assert portion({"a": 5}, budget) == {"a": 1}
    assert budget.refilled(0.1, 1000.0).tokens == 1


def test_a_clock_that_goes_back_gives_nothing():
    budget = Budget().refilled(5, 100.0)
    assert budget.refilled(5, 50.0).tokens == 0


def test_the_most_loaded_come_first():
    budget = Budget(7.9, 0.0)
    assert portion({"a": 2, "b": 6, "c": 1}, budget) == {"b": 6, "a": 1}
    assert portion({"a": 2}, Budget(0.9, 0.0)) == {}


def service(**changes: object) -> Service:
    key = ServiceKey(ip_address("203.0.113.10"), 80, Protocol.TCP)
    return replace(Service("web", key, rebalance=WANTED), **changes)


def test_only_services_that_want_it_and_can():
    assert rebalances(service())
    assert not rebalances(service(rebalance=Rebalance()))
    assert not rebalances(service(scheduler=Scheduler.SOURCE))
    assert not rebalances(service(count_waiting=False))
    udp = ServiceKey(ip_address("203.0.113.10"), 53, Protocol.UDP)
    assert not rebalances(service(key=udp))
