"""What learned speeds mean for weights: relative, bounded, as far as known, and calm."""

from dataclasses import replace

import pytest

from agent.model import BackendRef
from agent.weights.learn import UNKNOWN, Estimate
from agent.weights.speeds import LEAST, MOST, advance, speeds

BETA = 1000
PLAIN = Estimate(20e-6, 0.5e-3, 0.05, 1.0, 100.0, 5000.0, 20.0)


def slower(factor, **changes):
    return replace(
        PLAIN,
        seconds_per_byte=PLAIN.seconds_per_byte * factor,
        seconds_per_connection=PLAIN.seconds_per_connection * factor,
        base_seconds=PLAIN.base_seconds * factor,
        **changes,
    )


def learned(*estimates, weights=None):
    refs = [BackendRef("chat", f"gpu{n}") for n in range(len(estimates))]
    configured = dict(zip(refs, weights or [100] * len(refs), strict=True))
    found = speeds(dict(zip(refs, estimates, strict=True)), configured, BETA)
    return [found[ref] for ref in refs]


def shares(*estimates, weights=None):
    return [one.weight_share for one in learned(*estimates, weights=weights)]


def test_one_backend_keeps_its_weight():
    assert shares(slower(7.0)) == [1.0]


def test_backends_that_are_alike_keep_their_weights():
    assert shares(PLAIN, PLAIN, PLAIN) == pytest.approx([1.0] * 3)


def test_twice_as_slow_is_not_quite_half_the_weight():
    fast, slow = shares(PLAIN, slower(2.0))
    assert fast / slow == pytest.approx(2**0.8)
    assert (fast + slow) / 2 == pytest.approx(1.0)


def test_weights_that_are_right_stay():
    assert shares(PLAIN, slower(2.0), weights=[174, 100]) == pytest.approx([1.0, 1.0], abs=0.01)


def test_weights_that_are_wrong_are_righted():
    fast, slow = shares(PLAIN, slower(2.0), weights=[100, 200])
    assert fast * 100 / (slow * 200) == pytest.approx(2**0.8)


def test_backends_are_compared_at_one_load():
    busy = replace(PLAIN, waiting_bytes=50_000.0, open=60.0)
    assert shares(PLAIN, busy) == pytest.approx([1.0, 1.0])


def test_what_nothing_is_known_of_stays_as_configured():
    fast, unknown, slow = learned(PLAIN, UNKNOWN, slower(2.0))
    assert unknown == learned(UNKNOWN)[0]
    assert (unknown.weight_share, unknown.bytes_per_connection) == (1.0, None)
    assert (fast.weight_share + slow.weight_share) / 2 == pytest.approx(1.0)


def test_a_backend_without_weight_is_not_compared():
    fast, slow, none = shares(PLAIN, slower(2.0), slower(30.0), weights=[100, 100, 0])
    assert (fast + slow) / 2 == pytest.approx(1.0)
    assert none == 1.0


def test_less_is_done_where_less_is_known():
    sure, unsure = shares(PLAIN, slower(3.0)), shares(PLAIN, slower(3.0, confidence=0.4))
    assert sure[1] < unsure[1] < 1.0


def test_shares_are_bounded():
    low, high = shares(slower(1000.0), PLAIN, weights=[1000, 1])
    assert (low, high) == (pytest.approx(1.0, abs=0.02), MOST)
    assert min(shares(slower(1000.0), PLAIN, PLAIN)) == LEAST


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seconds_per_byte": 0.0}, MOST * BETA),  # images: bytes say nothing
        ({"seconds_per_byte": 1e-3}, LEAST * BETA),
        ({"seconds_per_byte": 2 / 21 * 60e-6, "base_seconds": 0.11}, 1000),
        ({"seconds_per_byte": 0.0, "confidence": 0.5}, 2 * BETA),  # half of the way
    ],
)
def test_bytes_that_weigh_as_a_connection(change, expected):
    (found,) = learned(replace(PLAIN, **change))
    assert found.bytes_per_connection == pytest.approx(expected, rel=0.01)


def test_a_share_stays_while_the_wanted_one_hardly_differs():
    assert advance(1.0, 1.07) == 1.0
    assert advance(1.0, 1.2, confidence=0.8) == 1.0
    assert advance(1.0, 1.2, confidence=1.0) == 1.2


def test_a_share_moves_in_steps_until_it_is_there():
    share, seen = 1.0, []
    while share != 0.3:
        share = advance(share, 0.3)
        seen.append(share)
    assert min(after / before for before, after in zip([1.0, *seen], seen, strict=False)) >= 0.799
    assert len(seen) <= 8


@pytest.mark.parametrize(("wanted", "confidence"), [(1.0, 1.0), (1.0, 0.0)])
def test_as_configured_is_always_reached(wanted, confidence):
    assert advance(1.05, wanted, confidence) == wanted


def test_bytes_go_back_to_what_is_configured_when_nothing_is_known():
    assert advance(1040, BETA, confidence=0.0) == BETA
