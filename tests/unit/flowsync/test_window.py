"""Credit and lag, from what is sent and acknowledged."""

from __future__ import annotations

from agent.flowsync.window import CREDIT_BYTES, Window


def test_nothing_is_held_before_the_first_acknowledgement() -> None:
    window = Window()
    assert window.lag_s(5.0) is None
    window.sent(1, 100)
    window.looked(1.0)
    assert window.lag_s(5.0) is None
    assert window.acknowledged(1)
    assert window.lag_s(5.0) == 4.0


def test_the_lag_counts_from_the_oldest_look_that_is_under_way() -> None:
    window = Window()
    window.looked(1.0)
    window.sent(1, 100)
    window.sent(2, 100)
    window.looked(2.0)
    window.sent(3, 100)
    window.looked(3.0)
    window.acknowledged(1)  # half of the second look
    assert window.lag_s(10.0) == 9.0
    window.acknowledged(2)
    assert window.lag_s(10.0) == 8.0
    window.acknowledged(3)
    assert window.lag_s(10.0) == 7.0


def test_a_look_that_finds_nothing_is_held_at_once_unless_others_are_under_way() -> None:
    window = Window()
    window.looked(1.0)
    assert window.lag_s(1.0) == 0.0
    window.sent(1, 100)
    window.looked(2.0)
    window.looked(3.0)
    assert window.lag_s(3.0) == 2.0
    window.acknowledged(1)
    assert window.lag_s(3.0) == 0.0


def test_credit_is_used_up_and_given_back() -> None:
    window = Window()
    window.sent(1, CREDIT_BYTES - 1)
    assert window.has_credit
    window.sent(2, 1)
    assert not window.has_credit
    window.acknowledged(1)
    assert window.has_credit
    assert window.unacknowledged_bytes == 1


def test_nobody_can_acknowledge_what_was_not_sent() -> None:
    window = Window()
    assert not window.acknowledged(1)
    window.sent(1, 10)
    window.sent(2, 10)
    assert not window.acknowledged(3)
    assert window.acknowledged(2)
    assert not window.acknowledged(1)
    assert window.acknowledged(2)
