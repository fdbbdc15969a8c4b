"""What is learned of one backend: its speed at a given load, changes, and how much is known."""

from dataclasses import replace

import numpy as np
import pytest

from agent.weights.learn import (
    ENOUGH,
    FORGOTTEN_S,
    KEPT,
    UNKNOWN,
    Learner,
    learn,
    level_error,
)
from tests.unit.weights.engine import NOTHING, Engine, taught


def test_learns_how_long_an_answer_takes():
    engine = Engine()
    estimate = taught(engine, 60).estimate
    assert estimate.seconds(5000, 20) == pytest.approx(engine.seconds(5000, 20), rel=0.12)
    assert estimate.confidence > 0.9
    assert estimate.open == pytest.approx(20, abs=3)


def test_speed_is_that_at_a_given_load_not_the_load():
    idle = taught(Engine(), 80, connections=10, queue=0.05).estimate
    busy = taught(Engine(), 80, connections=30, queue=0.8).estimate
    assert busy.waiting_bytes > 1.3 * idle.waiting_bytes
    assert idle.seconds(6000, 20) == pytest.approx(busy.seconds(6000, 20), rel=0.15)


@pytest.mark.parametrize("factor", [3.0, 1 / 3], ids=["throttled", "no more throttled"])
def test_a_sudden_change_is_known_within_fifteen_seconds(factor):
    engine = Engine()
    before = taught(engine, 120)
    engine.slow = factor
    after = taught(engine, 15, before, at_s=120)
    assert before.changed_s is None
    assert after.changed_s is not None
    expected = before.estimate.seconds(5000, 20) * factor
    assert after.estimate.seconds(5000, 20) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(("factor", "every_s", "noise"), [(3.0, 4, 0.3), (2.0, 1, 0.6)])
def test_a_backend_with_few_samples_shows_its_change_too(factor, every_s, noise):
    engine, state = Engine(noise=noise, rng=np.random.default_rng(1)), Learner()
    for second in range(0, 240, every_s):
        state = learn(state, engine.answers(1), float(second))
    engine.slow = factor
    for second in range(240, 290, every_s):
        state = learn(state, engine.answers(1), float(second))
    assert state.changed_s is not None


def test_noise_is_no_change():
    assert taught(Engine(noise=0.35), 400).changed_s is None


def test_a_few_noisy_samples_are_no_change():
    engine, state = Engine(noise=0.5), Learner()
    for second in range(0, 400, 3):
        state = learn(state, engine.answers(1), float(second))
    assert state.changed_s is None


def test_a_slower_drift_comes_through_forgetting():
    engine, state = Engine(), Learner()
    for second in range(300):
        engine.slow = 1 + second / 300
        state = taught(engine, 1, state, at_s=second)
    assert state.estimate.seconds(5000, 20) > 1.5 * Engine().seconds(5000, 20)


def test_too_few_samples_are_none():
    state = learn(Learner(), Engine().answers(ENOUGH - 1), 1.0)
    assert state.estimate.confidence == 0
    assert learn(state, Engine().answers(2), 2.0).estimate.confidence > 0


def test_without_samples_confidence_fades_and_all_is_forgotten():
    state = taught(Engine(), 60)
    at_s = 59.0
    half = learn(state, NOTHING, at_s + 120)
    assert 0 < half.estimate.confidence < state.estimate.confidence
    assert half.estimate.samples == pytest.approx(state.estimate.samples / 4, rel=0.01)
    gone = learn(half, NOTHING, at_s + FORGOTTEN_S)
    assert gone.estimate == UNKNOWN
    assert len(gone.rows) == 0


def test_memory_is_bounded():
    engine, state = Engine(), Learner()
    for second in range(60):
        state = learn(state, engine.answers(32), float(second))
    assert len(state.rows) == KEPT


BAD = [0.0, -1.0, np.nan, np.inf, 1e9]


@pytest.mark.parametrize("bad", BAD)
def test_samples_that_cannot_be_are_left_out(bad):
    state = taught(Engine(), 30)
    samples = replace(Engine().answers(8), seconds=np.full(8, bad))
    assert len(learn(state, samples, 30.0).rows) == len(state.rows)


@pytest.mark.parametrize("column", ["ahead", "bytes", "open"])
def test_numbers_that_cannot_be_are_left_out(column):
    for bad in (-1e6, np.nan, np.inf, 1e12):
        samples = replace(Engine().answers(8), **{column: np.full(8, bad)})
        assert learn(Learner(), samples, 1.0).estimate == UNKNOWN


def test_a_clock_that_is_set_back_keeps_nothing_for_ever():
    state = taught(Engine(), 30, at_s=1_000_000)
    state = learn(state, NOTHING, 10.0)
    assert state.estimate.samples <= len(state.rows)
    assert learn(state, NOTHING, 10.0 + FORGOTTEN_S).estimate == UNKNOWN


def test_answers_that_met_the_same_batch_tell_less():
    apart, together = Learner(), Learner()
    engine = Engine(noise=0.05)
    rng = np.random.default_rng(3)
    for second in range(40):
        each, all_alike = rng.lognormal(0, 0.5, 4), rng.lognormal(0, 0.5)
        came = engine.answers(4)
        apart = learn(apart, replace(came, seconds=came.seconds * each), float(second))
        together = learn(together, replace(came, seconds=came.seconds * all_alike), float(second))
    assert level_error(together.estimate.confidence) > 1.5 * level_error(apart.estimate.confidence)
