"""Decides which services are under a SYN flood: they get many new flows, and most of them send no
further packet. Pure.

An honest client ends its handshake within a round trip, so a burst of honest SYNs looks like a
flood for one reading at most. While new clients are challenged, the senders of a flood do not
answer the challenge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model import Config
from agent.state.identities import slot_of
from agent.state.tables import TableContents

# New flows per second that send nothing after their first packet, and their share of all new
# flows. With 870 a second a flood took all ports of fullnat, when the ports of such flows could
# not be taken over yet.
FLOOD_PER_S = 500.0
FLOOD_SHARE = 0.5
READINGS = 2  # in a row
CALM_S = 60.0  # the flood is over when the rate has been below half of that for so long


@dataclass(frozen=True, slots=True)
class Syns:
    """Totals of a service.

    ``opened``: new flows; ``followed``: those that sent more than a first packet; ``challenged``:
    SYNs that were answered with a challenge instead; ``shown``: clients that answered a challenge.
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
        """The new flows and challenged SYNs after which nothing has followed."""
        return self.opened - self.followed + self.challenged - self.shown


@dataclass(frozen=True, slots=True)
class Watch:
    """The state of one service after a reading. Times are of a monotonic clock.

    ``readings``: how many in a row looked like a flood; ``loud_s``: when a reading was last not
    calm; ``rate``: SYNs per second after which nothing followed.
    """

    at_s: float
    syns: Syns
    readings: int = 0
    flooded: bool = False
    loud_s: float = 0.0
    rate: float = 0.0


def challenged_in(config: Config, held: TableContents) -> frozenset[str]:
    """Return the services whose new clients are challenged, according to the tables."""
    return frozenset(
        service.name
        for service in config.services
        if (entry := held.services.get(slot_of(service.key))) and entry.challenge
    )


def cookies_in(config: Config, held: TableContents) -> frozenset[str]:
    """Return the services whose new clients get SYN cookies, according to the tables."""
    return frozenset(
        service.name
        for service in config.services
        if (entry := held.services.get(slot_of(service.key))) and entry.cookies
    )


def begin(now_s: float, syns: Syns, *, flooded: bool = False) -> Watch:
    """Return the state after the first reading; ``flooded``: as a previous agent has found it."""
    return Watch(now_s, syns, flooded=flooded, loud_s=now_s)


def follow(before: Watch, now_s: float, syns: Syns) -> Watch:
    """Return the state after the next reading."""
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
    """Return the states of all services by name after a reading.

    ``adopted``: the services that were flooded when the agent started.
    """
    return {
        name: follow(before[name], now_s, seen)
        if name in before
        else begin(now_s, seen, flooded=name in adopted)
        for name, seen in syns.items()
    }
