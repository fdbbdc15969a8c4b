"""Many lines alike are one, and then one a minute that counts the others."""

from __future__ import annotations

from agent.failover.times import LOGGED_AGAIN_S
from agent.flowsync.quiet import Quiet


def test_of_a_kind_one_a_minute_is_said_and_the_others_counted() -> None:
    quiet = Quiet()
    assert quiet.left_out("key", 0.0) == 0
    assert [quiet.left_out("key", 1.0 + n / 1000) for n in range(8000)] == [None] * 8000
    assert quiet.left_out("protocol", 2.0) == 0, "another kind"
    assert quiet.left_out("key", LOGGED_AGAIN_S) == 8000
    assert quiet.left_out("key", LOGGED_AGAIN_S + 1) is None


def test_after_a_good_stream_everything_is_news() -> None:
    quiet = Quiet()
    quiet.left_out("key", 0.0)
    quiet.clear()
    assert quiet.left_out("key", 1.0) == 0
