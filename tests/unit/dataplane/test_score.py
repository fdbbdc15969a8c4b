"""Scores, against bpf/score.h by hand."""

import numpy as np
import pytest

from agent.dataplane import abi, score
from agent.model import Scheduler
from agent.state import loads


def load(*, weight: int = 100, beta: int = 1000, **fields: int) -> np.ndarray:
    table = np.zeros(1, dtype=abi.BACKEND_LOAD)
    table["weight"], table["inverse_weight"] = weight, loads.inverse_weight(weight)
    table["kappa"], table["per_byte"] = loads.KAPPA, loads.per_byte(beta)
    for name, value in fields.items():
        table[name] = value
    return table[0]


def test_what_an_idle_backend_of_weight_100_scores():
    assert score.shown(Scheduler.LEAST_CONN, load()) == pytest.approx(1, rel=1e-3)
    assert score.shown(Scheduler.LEAST_LOAD, load()) == 0


def test_connections_count_by_weight():
    row = load(weight=50, open=7, open_fix=2)
    assert score.of_connections(row) == 10 * round(2**20 / 50)
    assert score.shown(Scheduler.LEAST_CONN, row) == pytest.approx(20, rel=1e-3)


def test_waiting_bytes_weigh_as_connections():
    row = load(open=2, waiting=4000, waiting_fix=-1000)
    assert score.shown(Scheduler.LEAST_LOAD, row) == pytest.approx(2 + 3, rel=1e-3)
    deaf = load(beta=0, open=2, waiting=4000)
    assert score.shown(Scheduler.LEAST_LOAD, deaf) == pytest.approx(2, rel=1e-3)


def test_a_reported_queue_takes_the_place_of_connections_before_it():
    row = load(open=10, report_open=8, queue=5 * 256)
    assert score.shown(Scheduler.LEAST_LOAD, row) == pytest.approx(5 + 2, rel=1e-3)
    fewer = load(open=3, report_open=8, queue=5 * 256)
    assert score.shown(Scheduler.LEAST_LOAD, fewer) == pytest.approx(5, rel=1e-3)


def test_a_flood_that_was_there_at_the_report_is_no_growth():
    """Backends of unequal weights have unequally much of it; each connection since weighs kappa."""
    a, b = (
        load(
            weight=100 * part, kappa=21 * 256, queue=part * 30 * 256,
            open=part * 40_030, report_open=part * 40_030,
            embryonic=part * 40_000, report_embryonic=part * 40_000,
        )
        for part in (3, 1)
    )  # fmt: skip
    assert score.counted(a) == 90 + 16 + 90 // 8 - 1
    for first in (a, b):
        for row in (a, b):
            assert score.of_load(row, score.share(first)) == int(row["queue"]) * int(
                row["inverse_weight"]
            )


def test_the_common_share_is_that_of_the_mean_of_each_group():
    """The largest numbers of a backend, and negative corrections, are summed exactly."""
    most = 2**31 - 1
    rows = np.array([
        load(open=most, embryonic=most), load(open=most, embryonic=most, embryonic_fix=-5),
        load(open=90, embryonic=70, open_fix=-21), load(open=10, embryonic=8, open_fix=-10),
    ])  # fmt: skip
    means = (
        load(open=most, embryonic=most, embryonic_fix=-3),
        load(open=50, embryonic=39, open_fix=-16),
    )
    group = np.array([0, 0, 2, 2])
    found = score.common_shares(rows, group, 3)
    assert found[[0, 2]].tolist() == [int(score.share(row)) for row in means]
    assert found[1] == score.share(load()), "nobody is in this group"


def test_sums_below_zero_count_as_none():
    row = load(open=-4, waiting=-9000)
    assert (score.counted(row), score.waiting_bytes(row)) == (0, 0)
    assert score.shown(Scheduler.LEAST_LOAD, row) == 0


def test_a_backend_without_weight_is_the_worst_of_any_load():
    none = load(weight=0)
    busy = load(weight=1, open=4000)
    assert score.of_connections(none) > score.of_connections(busy)
    for rows in ([none, busy], [busy, none]):
        exact = score.of_draws(rows, [0, 0])
        assert rows[exact.index(min(exact))] is busy


@pytest.mark.parametrize("scheduler", [Scheduler.MAGLEV, Scheduler.SOURCE, Scheduler.ROUND_ROBIN])
def test_who_compares_nothing_has_no_score(scheduler: Scheduler):
    assert score.shown(scheduler, load(open=3)) is None


def whole(*, open_: int, weight: int) -> np.ndarray:
    table = np.zeros(1, dtype=abi.SERVICE_LOAD)
    table["open"], table["weight"] = open_, weight
    return table[0]


@pytest.mark.parametrize(
    ("open_", "weight", "expected"),
    [
        (0, 200, 16),  # the first flow: 1.25 * 1 / 2, but with fewer there is nothing to balance
        (7, 200, 16),
        (25, 200, 17),  # 1.25 * 26 / 2 = 16.25, rounded up
        (99, 200, 63),  # 1.25 * 100 / 2 = 62.5
        (99, 400, 32),
    ],
)
def test_a_bound_is_a_share_of_the_mean_rounded_up(open_: int, weight: int, expected: int):
    row = load(weight=100)
    assert score.most_open(whole(open_=open_, weight=weight), row, 320) == expected


def test_no_bound_or_no_weight_is_no_limit():
    assert score.most_open(whole(open_=5, weight=200), load(), 0) is None
    assert score.most_open(whole(open_=5, weight=0), load(), 320) is None


def test_a_hot_backend_is_worse_than_any_that_is_not():
    hot, busy = load(is_hot=1), load(weight=1, open=2_000_000, waiting=2**40)
    assert score.of_load(hot) > score.of_load(busy)
    assert score.of_load(load(is_hot=1, open=3)) > score.of_load(hot), "among them the score counts"
    assert score.shown(Scheduler.LEAST_LOAD, hot) == 0
    assert score.of_connections(hot) == score.of_connections(load())


@pytest.mark.parametrize("now", [0, 1000, 2**31, 2**32 - 3, 2**40 + 7])
def test_a_report_counts_until_it_is_old(now: int):
    words = {"queue": 512, "report_open": 9, "report_embryonic": 4, "is_hot": 1, "kappa": 900}
    rows = np.array([load(**words) for _ in range(4)])
    rows["report_until"] = [(now + left) & 0xFFFFFFFF for left in (1, 0, -1, 2**30)]
    found = score.as_of(rows, now)
    assert list(found["queue"]) == [512, 0, 0, 512]
    assert list(found["report_open"]) == [9, 0, 0, 9]
    assert list(found["report_embryonic"]) == [4, 0, 0, 4]
    assert list(found["is_hot"]) == [1, 0, 0, 1]
    assert list(found["kappa"]) == [900, loads.KAPPA, loads.KAPPA, 900]
    assert list(rows["queue"]) == [512] * 4, "the table is left alone"
