"""Decides which services are flooded with SYNs: their new flows are more than usual, and nothing
follows of most. Pure.

Of an honest client's SYN the end of the handshake follows within a round trip, so a burst of them
looks like a flood for one reading at most. While new clients are challenged, the strangers in a
flood answer no challenge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model import Config
from agent.state.identities import slot_of
from agent.state.tables import TableContents

# New flows a second of which nothing follows, and their share of all. With 870 a second a flood
# took all ports of fullnat, before ports of such flows gave way.
FLOOD_PER_S = 500.0
FLOOD_SHARE = 0.5
READINGS = 2  # in a row
CALM_S = 60.0  # so long less than half of it, until it is over


@dataclass(frozen=True, slots=True)
class Syns:
    """Totals of a service. ``opened``: new flows; ``followed``: of which more than a first packet
    came; ``challenged``: SYNs that were answered instead; ``shown``: clients that answered that.
    """

    opened: int = 0
    followed: int = 0
    challenged: int = 0
    shown: int = 0

    @property
    def began(self) -> int:
        return self.opened + self.challenged

    @property
    def left(self) -> int:
        """Of which nothing has followed."""
        return self.opened - self.followed + self.challenged - self.shown


@dataclass(frozen=True, slots=True)
class Watch:
    """Of one service, after a reading. Times are of a monotonic clock.

    ``readings``: so many in a row looked like a flood; ``loud_s``: when the last was not calm;
    ``rate``: SYNs a second of which nothing followed.
    """

    at_s: float
    syns: Syns
    readings: int = 0
    flooded: bool = False
    loud_s: float = 0.0
    rate: float = 0.0


def challenged_in(config: Config, held: TableContents) -> frozenset[str]:
    """The services whose new clients are challenged, by what the tables hold."""
    return frozenset(
        service.name
        for service in config.services
        if (entry := held.services.get(slot_of(service.key))) and entry.challenge
    )


def cookies_in(config: Config, held: TableContents) -> frozenset[str]:
    """The services whose new clients get SYN cookies, by what the tables hold."""
    return frozenset(
        service.name
        for service in config.services
        if (entry := held.services.get(slot_of(service.key))) and entry.cookies
    )


def begin(now_s: float, syns: Syns, *, flooded: bool = False) -> Watch:
    """The first reading; ``flooded``: an agent before this one has found it so."""
    return Watch(now_s, syns, flooded=flooded, loud_s=now_s)


def follow(before: Watch, now_s: float, syns: Syns) -> Watch:
    """The next reading."""
    seconds = now_s - before.at_s
    if seconds <= 0:
        return before
    left = max(syns.left - before.syns.left, 0)
    began = max(syns.began - before.syns.began, 0)
    rate = left / seconds
    is_loud = rate >= FLOOD_PER_S and left >= FLOOD_SHARE * began
    readings = before.readings + 1 if is_loud else 0
    loud_s = now_s if rate >= FLOOD_PER_S / 2 else before.loud_s
    flooded = readings >= READINGS or (before.flooded and now_s - loud_s < CALM_S)
    return Watch(now_s, syns, readings, flooded, loud_s, rate)


def follow_all(
    before: Mapping[str, Watch], now_s: float, syns: Mapping[str, Syns], adopted: frozenset[str]
) -> dict[str, Watch]:
    """All services, by name; ``adopted``: those that were flooded when the agent began."""
    return {
        name: follow(before[name], now_s, seen)
        if name in before
        else begin(now_s, seen, flooded=name in adopted)
        for name, seen in syns.items()
    }
