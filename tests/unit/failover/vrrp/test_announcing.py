"""When a master announces again."""

from __future__ import annotations

import pytest

from agent.failover.times import ANNOUNCE_ROW_S
from agent.failover.vrrp.announcing import ROW, Announcing, due, wanted


def test_too_many_in_a_row_wait_for_their_turn_and_no_longer() -> None:
    pending, made = Announcing(), []
    for reason in range(ROW + 2):
        pending, at_once = wanted(pending, reason * 0.001, 1.0)
        made.append(at_once)
    assert made == [True] * ROW + [False] * 2
    assert pending.due_s == pytest.approx(ANNOUNCE_ROW_S)
    assert not due(pending, ANNOUNCE_ROW_S - 0.01)[1]
    pending, made_now = due(pending, ANNOUNCE_ROW_S)
    assert made_now
    assert pending.due_s == pytest.approx(1 + (ROW + 1) * 0.001), "and once more after an interval"
