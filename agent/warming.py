"""Owns the times since when backends have been up, and lets their weights grow: slow start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from agent.model import BackendRef, Config
from agent.state import slowstart
from agent.state.eligibility import Eligibility
from agent.state.identities import Member, member_of

LEAST_S = 0.5  # between passes that only make weights grow


class Warming:
    """The slow start of all backends. Times are of the monotonic clock.

    ``wake`` is called when weights grow; ``due`` returns for which services.
    """

    def __init__(self, up: Iterable[Member], wake: Callable[[], None]) -> None:
        """``up``: backends that were up before the agent started."""
        self._wake = wake
        self._config: Config | None = None
        self._since = dict.fromkeys(up, slowstart.ALWAYS)
        self._members: dict[str, list[Member]] = {}  # the members in ``_since``, by service
        self._steps: dict[str, float] = {}  # when the weights of a service grow next
        self._timer: asyncio.TimerHandle | None = None

    def due(self, now: float) -> frozenset[str]:
        """Return the services whose weights have grown since the last look."""
        return frozenset(name for name, at in self._steps.items() if at <= now)

    def take(
        self, config: Config, part: Config, found: Mapping[BackendRef, Eligibility], now: float
    ) -> dict[BackendRef, Eligibility]:
        """Return the verdicts ``found`` with the weights at ``now``, and follow the changes.

        ``part``: the part of the configuration that ``found`` is about.
        """
        since = slowstart.follow(part, found, self._since, now)
        names = {service.name for service in part.services}
        if config is not self._config:
            self._config = config
            names |= self._members.keys() - {service.name for service in config.services}
        for name in names:
            for member in self._members.pop(name, ()):
                self._since.pop(member, None)
            self._steps.pop(name, None)
        self._since |= since
        for service in part.services:
            own = (member_of(service, backend) for backend in service.backends)
            self._members[service.name] = [member for member in own if member in since]
        waits = slowstart.next_steps_s(part, found, self._since, now)
        self._steps |= {name: now + wait for name, wait in waits.items()}
        self._set_timer(now)
        return slowstart.slowed(part, found, self._since, now)

    def slowed(
        self, part: Config, found: Mapping[BackendRef, Eligibility], now: float
    ) -> dict[BackendRef, Eligibility]:
        """Return the verdicts with the weights at ``now``; nothing is recorded."""
        return slowstart.slowed(part, found, self._since, now)

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._steps:
            wait = max(min(self._steps.values()) - now, LEAST_S)
            self._timer = asyncio.get_running_loop().call_later(wait, self._wake)
