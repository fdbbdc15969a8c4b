"""Learning speeds: whatever is fed in, what comes out is bounded; under mere noise it is calm."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.model import BackendRef
from agent.weights.learn import KEPT, LONGEST_S, Estimate, Learner, Samples, learn
from agent.weights.speeds import LEAST, MOST, advance, speeds
from tests.examples import examples
from tests.unit.weights.engine import Engine

BETA = 1000
anything = st.floats(allow_nan=True, allow_infinity=True)
times = st.floats(1e-6, LONGEST_S)
row = st.tuples(
    st.floats(0, 1e6) | anything,
    st.floats(0, 1e6) | anything,
    st.floats(0, 1000) | anything,
    times | anything,
)
batches = st.lists(st.lists(row, max_size=20), max_size=4)
shares = st.floats(LEAST, MOST)
estimates = st.builds(
    Estimate,
    seconds_per_byte=st.floats(0, 1),
    seconds_per_connection=st.floats(0, 10),
    base_seconds=st.floats(0, 600),
    confidence=st.floats(0, 1),
    samples=st.floats(0, 256),
    waiting_bytes=st.floats(0, 1e9),
    open=st.floats(0, 1e6),
)


@settings(deadline=None, max_examples=examples(40))
@given(batches, st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_whatever_comes_in_the_estimate_is_a_number_and_not_negative(batches, clock):
    state = Learner()
    for batch, now_s in zip(batches, clock, strict=False):
        columns = np.array(batch, dtype=float).reshape(-1, 4).T
        state = learn(state, Samples(*columns), now_s)
        found = state.estimate
        parts = (found.seconds_per_byte, found.seconds_per_connection, found.base_seconds)
        assert all(0 <= part <= LONGEST_S for part in parts)
        assert 0 <= found.confidence <= 1
        assert len(state.rows) <= KEPT


@given(st.lists(st.tuples(estimates, st.integers(0, 1000)), min_size=1, max_size=8))
def test_shares_and_bytes_stay_in_their_bounds(backends):
    refs = [BackendRef("chat", str(number)) for number in range(len(backends))]
    found = speeds(
        {ref: estimate for ref, (estimate, _) in zip(refs, backends, strict=True)},
        {ref: weight for ref, (_, weight) in zip(refs, backends, strict=True)},
        BETA,
    )
    assert set(found) == set(refs)
    for ref, (estimate, weight) in zip(refs, backends, strict=True):
        one = found[ref]
        assert LEAST <= one.weight_share <= MOST
        if estimate.confidence == 0 or weight == 0:
            assert (one.weight_share, one.bytes_per_connection) == (1.0, None)
        else:
            assert one.bytes_per_connection is not None
            assert LEAST * BETA <= one.bytes_per_connection <= MOST * BETA


@given(shares, shares, st.floats(0, 1))
def test_a_share_never_passes_the_wanted_one_nor_jumps(previous, wanted, confidence):
    after = advance(previous, wanted, confidence)
    assert min(previous, wanted) <= after * (1 + 1e-9)
    assert after <= max(previous, wanted) * (1 + 1e-9)
    assert 1 / 1.251 <= after / previous <= 1.251


@given(shares, shares)
def test_a_share_that_differs_clearly_gets_all_the_way(first, wanted):
    share = first
    for _ in range(20):
        share = advance(share, wanted)
    stays = wanted != 1.0 and abs(math.log(first / wanted)) < math.log(1.08)
    assert share == (first if stays else wanted), "as configured is always reached"


@settings(deadline=None, max_examples=examples(8), derandomize=True)
@given(
    st.integers(0, 2**32),
    st.lists(st.floats(0.5, 3.0), min_size=2, max_size=4),
    st.floats(0.1, 0.5),
)
def test_under_mere_noise_weights_settle_and_stay(seed, factors, noise):
    rng = np.random.default_rng(seed)
    engines = {
        BackendRef("chat", str(n)): Engine(slow=slow, noise=noise, rng=rng)
        for n, slow in enumerate(factors)
    }
    states = dict.fromkeys(engines, Learner())
    share = dict.fromkeys(engines, 1.0)
    moves = 0
    for second in range(180):
        for ref, engine in engines.items():
            # A backend with a larger share gets more, and is busier.
            load = {"connections": 20 * share[ref] ** 0.5, "queue": 0.3 * share[ref] ** 0.5}
            came = engine.answers(int(rng.poisson(3 * share[ref])), **load)
            states[ref] = learn(states[ref], came, float(second))
        if second % 3:
            continue
        known = {ref: state.estimate for ref, state in states.items()}
        for ref, one in speeds(known, dict.fromkeys(engines, 100), BETA).items():
            after = advance(share[ref], one.weight_share, one.confidence)
            moves += second > 60 and after != share[ref]
            share[ref] = after
    assert moves <= 2
    fair = np.array(factors) ** -0.8
    fair /= fair.mean()
    assert np.abs(np.log(np.array(list(share.values())) / fair)).max() < math.log(1.25)
