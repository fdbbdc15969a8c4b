"""How long is waited."""

from __future__ import annotations

import pytest

from agent.failover.vrrp import timers


@pytest.mark.parametrize("priority", [1, 100, 254])
@pytest.mark.parametrize(("version", "interval_s"), [(3, 0.01), (3, 1.0), (2, 1.0), (2, 20.0)])
def test_who_leaves_waits_for_the_slowest_successor(
    version: int, interval_s: float, priority: int
) -> None:
    assert timers.leave_s(version, interval_s) >= timers.skew_s(version, priority, interval_s)


@pytest.mark.parametrize(("version", "interval_s"), [(3, 40.95), (2, 255.0)])
def test_who_leaves_is_done_before_it_is_killed(version: int, interval_s: float) -> None:
    assert 41 < timers.leave_s(version, interval_s) < 90
