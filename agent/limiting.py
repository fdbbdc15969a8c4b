"""Owns the limits of services while the agent runs: the rates in the shared tables, and the sources
that have reached a limit on open flows or waiting bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from agent.config.plan import added_and_removed
from agent.config.render import limits_fields
from agent.dataplane import limits
from agent.dataplane.abi import Limit
from agent.dataplane.constants import LIMITED
from agent.dataplane.flows import heavy_sources, names_of
from agent.dataplane.program import Dataplane
from agent.logs import get_logger
from agent.model import Address, Config, GuardMode, Limits, Service
from agent.state.guardview import LimitView
from agent.state.identities import Identities, slot_of
from agent.state.situation import Situation

log = get_logger()

PERIOD_S = 1.0
SHARE = 20  # counting takes at most one in so many seconds of a core

_KEYS = {
    Limit.NEW_SOURCE: "new_flows_per_source",
    Limit.NEW_PREFIX: "new_flows_per_prefix",
    Limit.NEW_SERVICE: "new_flows",
    Limit.PACKETS: "packets_per_source",
    Limit.OPEN: "open_flows_per_source",
    Limit.WAITING: "waiting_per_source",
}


class Limiting:
    """The limits of one instance."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane
        self._seen: tuple[Config, Identities] | None = None
        self._synced: Mapping[int, Limits] | None = None  # the rates in the tables, by service id
        # The number of refused sources, by service id and limit.
        self._sources: Mapping[tuple[int, Limit], int] | None = None
        self._is_full = False  # whether there were more of them than the table holds

    def sync(self, config: Config, ids: Identities) -> None:
        """Put the rates of this configuration into the tables."""
        tables = self._dataplane.tables
        last, self._seen = self._seen, (config, ids)
        is_same = last is not None and last[1] is ids
        services = added_and_removed(last[0], config)[0] if last and is_same else config.services
        limits.begin_counting(tables, {ids.service_id(s): ids.salt(s) for s in services})
        wanted = {ids.service_id(s): s.limits for s in config.services if s.limits.is_any}
        if wanted != self._synced:
            limits.set_rates(tables, wanted)
            self._synced = wanted

    async def run(self, situation: Callable[[], Situation]) -> None:
        """Count the open flows and waiting bytes of sources, for ever."""
        period_s = PERIOD_S
        while True:
            try:
                spent_s = await asyncio.to_thread(self._follow, situation(), period_s)
                period_s = max(PERIOD_S, SHARE * spent_s)
            except Exception:  # this task's root
                log.exception("counting what sources have open broke")
            await asyncio.sleep(period_s)

    def _follow(self, now: Situation, period_s: float) -> float:
        """Refuse the sources that have reached a limit; return the CPU seconds that this took."""
        started, dataplane = time.thread_time(), self._dataplane
        wanted = {
            now.ids.service_id(s): s.limits for s in now.config.services if s.limits.on_what_is_held
        }
        found: Mapping[bytes, int] = {}
        if wanted:
            found = heavy_sources(dataplane.tables, names_of(now), wanted, dataplane.keys)
        if wanted or self._sources is None or self._sources:  # a previous agent may have left some
            held_ns = max(limits.HELD_NS, round(4 * period_s * 1e9))
            limits.set_limited(dataplane.tables, found, time.monotonic_ns(), held_ns)
        if len(found) > LIMITED and not self._is_full:
            log.warning("more sources are beyond a limit than can be refused", sources=len(found))
        self._is_full = len(found) > LIMITED
        self._sources = limits.sources_of(found)
        return time.thread_time() - started

    def test(self, config: Config, ids: Identities, address: Address) -> dict[str, str]:
        """Return, by service, what happens to a new flow from an address that has reached a limit.

        Services for which it has not are left out.
        """
        why = "limited: it has as much open, or waiting, as it may"
        words = {GuardMode.ENFORCE: why, GuardMode.DRY_RUN: f"served; it would be {why}"}
        return {
            service.name: words[service.guard]
            for service in config.services
            if service.limits.on_what_is_held and service.guard in words
            if (ident := _id(service, ids)) is not None
            if limits.is_limited(self._dataplane.tables, ident, address)
        }

    def view(self, config: Config, ids: Identities) -> tuple[LimitView, ...]:
        """Return every configured limit, and how many packets it has dropped."""
        dropped, spared = limits.counts(self._dataplane.tables)
        sources = self._sources or {}
        return tuple(
            LimitView(
                service=service.name,
                limit=key,
                most=str(given[key]),
                dropped=int(dropped[ident, limit]),
                would_drop=int(spared[ident, limit]),
                sources=sources.get((ident, limit), 0),
            )
            for service in config.services
            for ident in (_id(service, ids),)
            if ident is not None
            for given in (limits_fields(service.limits),)
            for limit, key in _KEYS.items()
            if given[key] is not None
        )


def _id(service: Service, ids: Identities) -> int | None:
    found = ids.services.get(slot_of(service.key))
    return found[0] if found else None
