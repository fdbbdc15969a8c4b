"""What is made of HAProxy's counters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from agent.tier.traffic import Seen, TierCollector, Totals, read


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1), min_size=1))
def test_totals_go_on_over_reloads(workers: list[list[int]]):
    """Each worker counts from 0 and up. What it counts after its last look is lost."""
    totals, seen, expected = Totals(), 0, 0
    for looks in workers:
        ordered = sorted(looks)
        for value in ordered:
            totals.add({("answers", "2xx"): value})
            now = totals.values()["answers", "2xx"]
            assert now >= seen, "a counter never falls"
            seen = now
        expected += ordered[-1]
    assert seen <= expected


def test_a_row_that_is_missing_counts_nothing():
    reading = read([], [("10.0.0.1", 80)])
    assert not any(reading.counts.values())
    assert [(each.name, each.current, each.queued) for each in reading.engines] == [
        ("10.0.0.1-80", 0, 0)
    ]


def test_the_page_says_that_haproxy_is_away():
    registry = CollectorRegistry()
    registry.register(TierCollector(Seen(problems=2)))
    page = generate_latest(registry).decode()
    assert "\nsteelyard_tier_up 0.0" in page
    assert "\nsteelyard_tier_problems 2.0" in page
