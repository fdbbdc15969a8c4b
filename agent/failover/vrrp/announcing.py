"""Decides when a master announces its VIPs again because another node might have had them.

Each reason is answered at once and once more after an advert's interval: the other node may have
answered for a VIP until it heard the winner. Two masters of which only one hears the other go on
for as long as their network is broken; so there are never more than a few announcements in a row,
but none is left out: the last reason is always followed by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.failover.times import ANNOUNCE_ROW_S

ROW = 4  # announcements at most, in ANNOUNCE_ROW_S


@dataclass(frozen=True, slots=True)
class Announcing:
    """When the last ones were made, and when the next one is due."""

    due_s: float | None = None
    again_s: float | None = None  # one more, not before this time
    made_s: tuple[float, ...] = ()  # at most ROW, the oldest first


def wanted(announcing: Announcing, now_s: float, interval_s: float) -> tuple[Announcing, bool]:
    """There is a reason now. True: announce at once."""
    announcing = replace(announcing, again_s=now_s + interval_s)
    free_s = _free_s(announcing)
    if free_s <= now_s:
        return _made(announcing, now_s), True
    return replace(announcing, due_s=free_s), False


def taken(now_s: float, interval_s: float) -> Announcing:
    """Taken from a living master, and announced, now: once more after an interval."""
    return _made(Announcing(again_s=now_s + interval_s), now_s)


def due(announcing: Announcing, now_s: float) -> tuple[Announcing, bool]:
    """What is due by now. True: announce."""
    if announcing.due_s is None or announcing.due_s > now_s:
        return announcing, False
    return _made(announcing, now_s), True


def _made(announcing: Announcing, now_s: float) -> Announcing:
    made_s = (*announcing.made_s, now_s)[-ROW:]
    again_s = announcing.again_s
    if again_s is None or again_s <= now_s:
        return Announcing(made_s=made_s)
    done = Announcing(None, again_s, made_s)
    return replace(done, due_s=max(again_s, _free_s(done)))


def _free_s(announcing: Announcing) -> float:
    """From when on one more is allowed."""
    made_s = announcing.made_s
    return made_s[0] + ANNOUNCE_ROW_S if len(made_s) == ROW else float("-inf")
