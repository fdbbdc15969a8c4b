"""Which backends are dead, and when their flows are to be reset."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import (
    Backend,
    BackendRef,
    Config,
    DownFlows,
    Health,
    HealthStatus,
    NextHop,
    Protocol,
    Service,
    ServiceKey,
)
from agent.state.deaths import (
    MANY_WAIT_S,
    NONE_DEAD,
    TOGETHER_S,
    Deaths,
    follow,
    is_one_of_many,
    is_silent,
)
from agent.state.situation import verdicts

ADDRESSES = [ip_address(f"10.0.0.{n}") for n in range(21, 26)]
UP = HealthStatus(Health.UP, "HTTP 200", 0)
SILENT = HealthStatus(Health.DOWN, "no answer within 1 s", 0, failures=3, silent=True)
REFUSES = HealthStatus(Health.DOWN, "connection refused", 0, failures=3)
UNCHECKED = HealthStatus(Health.UNCHECKED, "no health check is configured", 0)
HOP = NextHop(ADDRESSES[0], 2, "02:00:00:00:00:21", "02:00:00:00:00:01", 1500, on_link=True)
NO_ARP = replace(HOP, reason="no ARP answer from 10.0.0.21 on eth0; its last MAC is kept")
CABLE_OUT = replace(HOP, reason="eth0 has no carrier", ours=True)


def config(count: int = 3, **fields: object) -> Config:
    backends = tuple(Backend(f"gpu-{n}", ADDRESSES[n]) for n in range(count))
    key = ServiceKey(ip_address("10.0.0.100"), 80, Protocol.TCP)
    web = Service("web", key, backends=backends, **fields)  # type: ignore[arg-type]
    return Config("test", "eth0", services=(web,))


def step(
    before: Deaths, now_s: float, silent: set[int], made: Config | None = None,
    status: HealthStatus = SILENT, hop: NextHop = HOP,
) -> Deaths:  # fmt: skip
    """The next look; those of these numbers have that status and that way."""
    made = made or config()
    health, hops = {}, {}
    for n, backend in enumerate(made.services[0].backends):
        health[BackendRef("web", backend.name)] = status if n in silent else UP
        hops[backend.address] = hop if n in silent else HOP
    return follow(before, made, health, hops, verdicts(made, health, hops), now_s)


def due(deaths: Deaths) -> set[int]:
    return {int(ref.backend.removeprefix("gpu-")) for ref in deaths.due}


def test_a_silent_server_s_flows_go_after_the_time_that_is_configured() -> None:
    deaths = step(NONE_DEAD, 100.0, {1})
    assert due(step(deaths, 104.9, {1})) == set()
    assert due(step(deaths, 105.0, {1})) == {1}
    assert due(step(deaths, 100.5, {1}, config(reset_after_s=0.5))) == {1}


def test_one_that_speaks_again_begins_anew() -> None:
    deaths = step(step(NONE_DEAD, 100.0, {1}), 104.0, set())
    assert due(step(step(deaths, 104.5, {1}), 106.0, {1})) == set()


@pytest.mark.parametrize("status", [REFUSES, replace(SILENT, health=Health.UP), UP])
def test_one_that_answers_or_is_not_down_yet_keeps_its_flows(status: HealthStatus) -> None:
    deaths = step(NONE_DEAD, 0.0, {1}, status=status)
    assert due(step(deaths, 1000.0, {1}, status=status)) == set()


def test_our_own_link_is_nobody_s_death() -> None:
    deaths = step(NONE_DEAD, 0.0, {0, 1, 2}, hop=CABLE_OUT)
    deaths = step(deaths, 1000.0, {0, 1, 2}, hop=CABLE_OUT)
    assert due(deaths) == set()
    assert due(step(deaths, 1001.0, {0, 1, 2})) == set()  # it is back: they have a minute


@pytest.mark.parametrize(
    ("policy", "status", "expected"),
    [
        (DownFlows.AUTO, SILENT, {1}),
        (DownFlows.AUTO, REFUSES, set()),
        (DownFlows.KEEP, SILENT, set()),
        (DownFlows.RESET, REFUSES, {1}),
        (DownFlows.RESET, SILENT, {1}),
        (DownFlows.REROUTE, REFUSES, {1}),
        (DownFlows.RESET, UP, set()),
    ],
)
def test_what_the_service_says_of_down_flows(
    policy: DownFlows, status: HealthStatus, expected: set[int]
) -> None:
    made = config(down_flows=policy)
    deaths = step(NONE_DEAD, 0.0, {1}, made, status)
    assert due(step(deaths, 5.0, {1}, made, status)) == expected


def test_without_a_check_arp_tells() -> None:
    assert not is_silent(UNCHECKED, HOP)
    assert is_silent(UNCHECKED, NO_ARP)
    assert not is_silent(UNCHECKED, CABLE_OUT)
    assert not is_silent(UNCHECKED, None)  # nobody has looked yet
    assert not is_silent(UP, NO_ARP)  # its check passes, by whatever way


def test_most_of_several_that_fall_silent_together_are_waited_for() -> None:
    deaths = step(step(NONE_DEAD, 0.0, {0}), 1.0, {0, 1})
    assert due(step(deaths, 30.0, {0, 1})) == set()
    assert due(step(deaths, MANY_WAIT_S, {0, 1})) == {0}
    assert due(step(deaths, MANY_WAIT_S + 1, {0, 1})) == {0, 1}


def test_a_lone_server_and_the_last_but_one_are_not_many() -> None:
    alone = config(1)
    assert due(step(step(NONE_DEAD, 0.0, {0}, alone), 5.0, {0}, alone)) == {0}
    deaths = step(step(NONE_DEAD, 0.0, {0}), 500.0, {0, 1})
    assert due(step(deaths, 505.0, {0, 1})) == {0, 1}


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6), st.integers(0, 6))
def test_many_are_more_than_half_of_those_that_were_left(onsets, others: int) -> None:
    onsets, servers = sorted(onsets), len(onsets) + others
    for at in onsets:
        left = servers - sum(one < at - TOGETHER_S for one in onsets)
        together = sum(abs(one - at) <= TOGETHER_S for one in onsets)
        expected = left > 1 and together > left / 2
        # Sums of floats may differ in the last digit from the differences here.
        if all(abs(abs(one - at) - TOGETHER_S) > 1e-6 for one in onsets):
            assert is_one_of_many(at, onsets, servers) is expected
