"""A test of times that failed while the host paused is repeated, and no other."""

from __future__ import annotations

import time

import pytest

from agent.model import Forward
from tests.packet import pauses
from tests.packet.harness import Rig
from tests.packet.pauses import SLACK_NS, undisturbed
from tests.packet.talks import POST, opened

ATTEMPTS = 5


def attempts_of(rig: Rig, paused: int, failing: int) -> int:
    """How often a test runs during whose first attempts the host pauses, or which fails in them."""
    attempts = 0

    @undisturbed
    def test(rig: Rig) -> None:
        nonlocal attempts
        attempts += 1
        wire = opened(rig, Forward.DSR)
        rig.has_paused = False  # this host may be busy itself
        if attempts <= paused:
            time.sleep(2 * SLACK_NS / 1e9)
            wire.ask(POST)
        assert attempts > failing

    try:
        test(rig)
    except AssertionError:
        return -attempts
    return attempts


@pytest.mark.parametrize(
    ("paused", "failing", "attempts"),
    [(0, 0, 1), (1, 0, 1), (2, 2, 3), (0, 1, -1), (2, 9, -3), (9, 9, -ATTEMPTS)],
)  # fmt: skip
def test_only_what_failed_in_a_pause_is_repeated(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, paused: int, failing: int, attempts: int
):
    monkeypatch.setattr(pauses, "ATTEMPTS", ATTEMPTS)
    assert attempts_of(rig, paused, failing) == attempts


@undisturbed
def test_a_tick_that_fell_behind_its_avoidance_counts_as_one(rig: Rig):
    rig.avoid_tick()
    assert not rig.is_disturbed
    rig._tick = rig.now_ticks() - 1
    assert rig.is_disturbed
