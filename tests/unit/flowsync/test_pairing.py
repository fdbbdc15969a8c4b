"""One stream for a pair, whoever tries when."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import product

import pytest

from agent.flowsync import pairing


def test_the_lower_address_connects() -> None:
    low, high = ip_address("10.0.0.9"), ip_address("10.0.0.10")
    assert pairing.connects(low, high)
    assert not pairing.connects(high, low)


@pytest.mark.parametrize(("turn_a", "turn_b"), [(True, False), (False, True)])
def test_of_two_streams_at_once_both_keep_the_same(turn_a: bool, turn_b: bool) -> None:
    """Both have a handshake under way, each meets the other's."""
    a_takes = pairing.accepts(our_turn=turn_a, connecting=True, connected=False, by_us=False)
    b_takes = pairing.accepts(our_turn=turn_b, connecting=True, connected=False, by_us=False)
    assert a_takes != b_takes


def test_who_opens_again_has_lost_the_first_stream() -> None:
    for our_turn in (True, False):
        assert pairing.accepts(our_turn=our_turn, connecting=False, connected=True, by_us=False)


def test_a_stream_of_ours_is_not_given_up_where_it_is_our_turn() -> None:
    assert not pairing.accepts(our_turn=True, connecting=False, connected=True, by_us=True)
    assert pairing.accepts(our_turn=False, connecting=False, connected=True, by_us=True)


def test_who_has_nothing_takes_what_comes() -> None:
    for our_turn, by_us in product((True, False), repeat=2):
        assert pairing.accepts(our_turn=our_turn, connecting=False, connected=False, by_us=by_us)


def test_retries_get_slower_up_to_a_bound_and_are_not_in_step() -> None:
    waits = [pairing.retry_s(failures, 0.5) for failures in range(1, 60)]
    assert waits[0] == pytest.approx(pairing.FIRST_RETRY_S)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(pairing.LONGEST_RETRY_S)
    assert pairing.retry_s(3, 0.0) < pairing.retry_s(3, 0.5) < pairing.retry_s(3, 1.0)
