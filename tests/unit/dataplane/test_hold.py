"""How long new flows are held back."""

from __future__ import annotations

import time

import numpy as np
import pytest

from agent.dataplane import abi
from agent.dataplane.hold import new_flows_held


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [10**9]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    return now


def test_a_hold_has_a_deadline_that_can_be_moved_until_it_is_over(clock: list[int]) -> None:
    settings = np.zeros(1, dtype=abi.SETTINGS)
    with new_flows_held(settings) as hold:
        assert settings["held_until"][0] == clock[0] + abi.HOLD_MAX_NS
        clock[0] += abi.HOLD_MAX_NS - 1
        assert hold.renew()
        assert settings["held_until"][0] == clock[0] + abi.HOLD_MAX_NS
        clock[0] += abi.HOLD_MAX_NS
        assert not hold.renew(), "new flows may have come in"
    assert settings["held_until"][0] == 0


def test_whatever_fails_within_it_ends_it() -> None:
    settings = np.zeros(1, dtype=abi.SETTINGS)
    with pytest.raises(ValueError, match="x"), new_flows_held(settings):
        raise ValueError("x")
    assert settings["held_until"][0] == 0
