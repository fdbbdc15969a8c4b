"""Decides when a master announces its VIPs again because another node might have had them.

Each reason leads to an announcement at once and to another one after an advert interval, because
the other node may have answered for a VIP until it heard the winner. Two masters of which only one
hears the other give new reasons for as long as their network is broken. So the number of
announcements in a row is limited, but the last reason is always followed by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.failover.times import ANNOUNCE_ROW_S

ROW = 4  # most announcements in ANNOUNCE_ROW_S


@dataclass(frozen=True, slots=True)
class Announcing:
    """When the last announcements were made, and when the next one is due."""

    due_s: float | None = None
    again_s: float | None = None  # one more is wanted, but not before this time
    made_s: tuple[float, ...] = ()  # at most ROW, oldest first


def wanted(announcing: Announcing, now_s: float, interval_s: float) -> tuple[Announcing, bool]:
    """Take in that there is a reason now. True: announce at once."""
    announcing = replace(announcing, again_s=now_s + interval_s)
    free_s = _free_s(announcing)
    if free_s <= now_s:
        return _made(announcing, now_s), True
    return replace(announcing, due_s=free_s), False


def taken(now_s: float, interval_s: float) -> Announcing:
    """Take in that the VIPs were taken from a living master and announced now.

    They are announced once more after an interval.
    """
    return _made(Announcing(again_s=now_s + interval_s), now_s)


def due(announcing: Announcing, now_s: float) -> tuple[Announcing, bool]:
    """Take in that time has passed. True: an announcement is due, so announce."""
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
    """Return the time from which one more announcement is allowed."""
    made_s = announcing.made_s
    return made_s[0] + ANNOUNCE_ROW_S if len(made_s) == ROW else float("-inf")
