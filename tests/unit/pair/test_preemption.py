"""When a node asks a master of lower priority to hand over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.failover.model import Instance, Mode, Role
from agent.pair.preemption import candidates, due, since
from tests.unit.failover.samples import BACKUP

WEB = Instance("web", priority=150, preempt_delay_s=10.0)
BEHIND = replace(
    BACKUP, mode=Mode.NORMAL, priority=150, configured_priority=150, master_priority=100
)


def wanted(configured: Instance = WEB, **router: object) -> bool:
    return candidates([replace(BEHIND, **router)], {"web": configured}) == {"web"}


def test_a_master_of_lower_priority_is_to_hand_over() -> None:
    assert wanted()


@pytest.mark.parametrize(
    "router",
    [
        {"role": Role.MASTER},
        {"role": Role.FAULT},
        {"master": None},
        {"master_priority": 150},
        {"master_priority": 1},  # it is handing over already
        {"master_priority": 254},
        {"mode": Mode.HANDED_OVER, "priority": 1},
        {"priority": 100},  # no backend is up here
        {"instance": "gone"},
    ],
)
def test_nobody_else_is(router: dict[str, object]) -> None:
    assert not wanted(**router)


def test_who_does_not_preempt_asks_nobody() -> None:
    assert not wanted(replace(WEB, preempt=False))


def test_the_delay_is_kept_but_for_what_a_handover_takes() -> None:
    waiting = since({}, {"web"}, 100.0)
    assert since(waiting, {"web"}, 105.0) == waiting
    assert not due(waiting, {"web": WEB}, 108.4)
    assert due(waiting, {"web": WEB}, 108.5) == {"web"}


def test_the_delay_begins_anew_when_the_master_was_another() -> None:
    waiting = since(since({}, {"web"}, 100.0), set(), 105.0)
    assert since(waiting, {"web"}, 106.0) == {"web": 106.0}
