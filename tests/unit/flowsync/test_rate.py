"""The bound of a link's bandwidth."""

from __future__ import annotations

import pytest

from agent.failover.times import BURST_S
from agent.flowsync.rate import TokenBucket


def test_what_is_sent_stays_within_the_bandwidth() -> None:
    bucket, now, sent = TokenBucket(1_000_000, 0.0), 0.0, 0
    while now < 10.0:
        wait = bucket.take(7_000, now)
        sent += 7_000
        now += wait
    assert sent == pytest.approx(10_000_000, rel=0.01)


def test_an_idle_link_saves_no_more_than_a_burst() -> None:
    bucket = TokenBucket(1_000_000, 0.0)
    assert bucket.take(int(1_000_000 * BURST_S), 3600.0) == 0
    assert bucket.take(10_000, 3600.0) == pytest.approx(0.01)


def test_a_frame_larger_than_a_burst_goes_and_is_waited_for() -> None:
    bucket = TokenBucket(1_000, 0.0)
    assert bucket.take(10_050, 0.0) == pytest.approx(10.0)
    assert bucket.take(0, 10.0) == pytest.approx(0.0)


def test_a_clock_that_goes_back_costs_nothing() -> None:
    bucket = TokenBucket(1_000, 100.0)
    bucket.take(50, 100.0)
    assert bucket.take(0, 50.0) == 0
