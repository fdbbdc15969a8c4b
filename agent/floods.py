"""Watches the services for SYN floods, and logs when one begins and when it is over."""

from __future__ import annotations

from collections.abc import Mapping

from agent.logs import get_logger
from agent.model import Config, SynProtection
from agent.state.synflood import Syns, Watch, challenged_in, follow_all
from agent.state.tables import TableContents

log = get_logger()


class Floods:
    """The services that are flooded, by name. A new agent takes over what the tables say."""

    def __init__(self, config: Config, held: TableContents) -> None:
        self._adopted = challenged_in(config, held)
        self._watches: dict[str, Watch] = {}

    @property
    def services(self) -> frozenset[str]:
        """The services that are under a SYN flood."""
        if not self._watches:
            return self._adopted
        return frozenset(name for name, watch in self._watches.items() if watch.flooded)

    def take(self, config: Config, syns: Mapping[str, Syns], now_s: float) -> frozenset[str]:
        """Take the next reading; return the services for which the tables have to change."""
        before = self.services
        self._watches = follow_all(self._watches, now_s, syns, self._adopted)
        self._adopted = frozenset()
        after = self.services
        protected = {s.name for s in config.services if s.syn_protection is SynProtection.AUTO}
        for name in sorted((after - before) & protected):
            log.warning(
                "SYN flood: new clients have to show that they are at their address",
                service=name,
                syns_per_s=round(self._watches[name].rate),
            )
        for name in sorted((before - after) & protected):
            log.info("the SYN flood is over: new clients are served at once", service=name)
        return (before ^ after) & protected
