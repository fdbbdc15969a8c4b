"""When the last flow of a draining backend will have ended."""

from __future__ import annotations

import random
from statistics import median

import pytest

from lbctl.draining import REMEMBERED_S, Draining


def watched(*seen: tuple[float, int]) -> Draining:
    draining = Draining()
    for at_s, flows in seen:
        draining.saw(at_s, flows)
    return draining


@pytest.mark.parametrize(
    "seen",
    [
        [(0, 300)],
        [(0, 300), (1, 300), (2, 300)],
        [(0, 300), (60, 291)],
        [(0, 300), (60, 340)],
        [(0, 300), (5, 0)],
    ],
    ids=["first look", "none ends", "few have ended", "more than before", "all have ended"],
)
def test_nothing_is_said_that_nobody_can_tell(seen: list[tuple[float, int]]) -> None:
    assert watched(*seen).left_s() is None


def test_one_flow_that_is_left_takes_one_lifetime() -> None:
    # From e**3 flows to one within three lifetimes of 20 s.
    assert watched((0, 20), (60, 1)).left_s() == pytest.approx(20, rel=0.01)


def test_flows_of_independent_clients_end_about_when_it_is_foretold() -> None:
    draw = random.Random(1)
    ratios = []
    for _ in range(200):
        ends = sorted(draw.expovariate(1 / 40) for _ in range(321))
        draining = Draining()
        for at_s in range(31):
            draining.saw(at_s, sum(end > at_s for end in ends))
        foretold_s = draining.left_s()
        assert foretold_s is not None
        ratios.append((ends[-1] - 30) / foretold_s)
    assert 0.9 < median(ratios) < 1.1
    assert sorted(ratios)[10] > 0.5
    assert sorted(ratios)[-10] < 2


def test_what_is_long_ago_counts_no_more() -> None:
    rest = [(REMEMBERED_S + 10 + at_s, 100 - at_s) for at_s in range(0, 301, 10) if at_s < 100]
    assert watched((0, 100_000), *rest).left_s() == watched(*rest).left_s()
