"""The line through samples: right on clean ones, not moved by odd ones, never negative."""

import numpy as np
import pytest

from agent.weights.fit import fit, parts_of, weighted_median
from tests.unit.weights.engine import Engine


def line_of(samples, before=None):
    waiting = samples.ahead + samples.bytes
    return fit(waiting, samples.open, samples.seconds, np.ones(len(waiting)), before)


def at(line, waiting, connections):
    return float(line.at(np.array([waiting]), np.array([connections]))[0])


def test_finds_what_a_byte_takes_and_what_the_rest_takes():
    engine = Engine(noise=0.02)
    line = line_of(engine.answers(200))
    assert line.seconds_per_byte == pytest.approx(engine.per_byte, rel=0.05)
    assert at(line, 0, 20) == pytest.approx(engine.seconds(0, 20), rel=0.05)


@pytest.mark.parametrize("factor", [0.05, 30.0], ids=["cached", "slow clients"])
def test_a_tenth_of_odd_samples_hardly_moves_it(factor):
    engine = Engine()
    samples = engine.answers(250)
    samples.seconds[::10] *= factor
    assert at(line_of(samples), 4000, 20) == pytest.approx(engine.seconds(4000, 20), rel=0.15)


def test_no_part_is_negative():
    bytes_that_hurry = np.linspace(1000, 9000, 50)
    seconds = 0.5 - bytes_that_hurry * 4e-5
    line = fit(bytes_that_hurry, np.full(50, 10.0), seconds, np.ones(50), None)
    assert min(line.seconds_per_byte, line.seconds_per_connection, line.base_seconds) >= 0
    assert at(line, 5000, 10) == pytest.approx(0.3, rel=0.2)


def test_what_cannot_be_told_apart_stays_as_it_was():
    before = line_of(Engine(noise=0.02).answers(200))
    alike = np.full(100, 5000.0)
    slower = np.full(100, 2 * at(before, 5000, 20))
    line = before
    for _ in range(20):
        line = fit(alike, np.full(100, 20.0), slower, np.ones(100), line)
    assert at(line, 5000, 20) == pytest.approx(slower[0], rel=0.02)
    assert line.seconds_per_byte > before.seconds_per_byte
    assert at(line, 0, 20) > at(before, 0, 20)


def test_at_the_mean_load_no_time_is_longer_than_the_longest():
    waiting = np.array([0.0] * 10 + [100_000.0])
    fast = np.full(11, 1e-3)
    before = fit(waiting[10:], np.ones(1), np.array([500.0]), np.ones(1), None)
    line = fit(waiting, np.ones(11), fast, np.ones(11), before)
    assert at(line, waiting.mean(), 1) <= 1.001e-3


def test_one_sample_is_enough_for_a_line():
    one = np.ones(1)
    line = fit(4000 * one, 3 * one, 0.2 * one, one, None)
    assert at(line, 4000, 3) == pytest.approx(0.2, rel=0.01)


def test_the_median_goes_by_weight():
    values = np.array([3.0, 1.0, 2.0])
    assert weighted_median(values, np.array([1.0, 1.0, 1.0])) == 2.0
    assert weighted_median(values, np.array([5.0, 1.0, 1.0])) == 3.0


# -- any columns


def test_parts_of_any_columns_are_found_and_none_is_negative() -> None:
    rng = np.random.default_rng(7)
    columns = np.stack((*rng.exponential(1000, (3, 800)), np.ones(800)), axis=1)
    truth = np.array([2e-5, 0.0, 7e-6, 0.02])
    seconds = columns @ truth * rng.lognormal(0, 0.15, 800)
    seconds[:40] *= 20  # those that are far off count little
    found = parts_of(columns, seconds, np.ones(800), (0.3, 0.2, 0.2, 0.3))
    assert found == pytest.approx(truth, rel=0.15, abs=1.5e-6)
    assert (found >= 0).all()
