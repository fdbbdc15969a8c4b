"""Owns the watch over the sources of clients: it looks at the flow table again and again, logs the
sources that behave unlike all others, and has them blocked where the service is configured for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from agent.dataplane.flows import Since, crowds, names_of
from agent.dataplane.program import Dataplane
from agent.errors import SteelyardError
from agent.logs import get_logger
from agent.model import Address, Detect, Network, Service
from agent.state import threats
from agent.state.blocks import Block, Blocks, active
from agent.state.guardview import ThreatView
from agent.state.situation import Situation
from agent.state.threats import Crowd, Threat, Watch

log = get_logger()

PERIOD_S = 2.0
SHARE = 50  # looking takes at most one in so many seconds of a core
_NAMED = 10  # threats that one look logs one by one

type Blocker = Callable[[tuple[Block, ...]], Awaitable[object]]


class Detecting:
    """The watch of one instance.

    ``serves`` returns whether clients of a service come to this node, ``blocks`` the present
    blocks, ``lists_of`` the names of the lists that hold an address, and ``block`` blocks sources.
    """

    def __init__(
        self,
        dataplane: Dataplane,
        serves: Callable[[Service], bool],
        blocks: Callable[[], Blocks],
        lists_of: Callable[[Address], tuple[str, ...]],
        block: Blocker,
    ) -> None:
        self._dataplane = dataplane
        self._serves = serves
        self._blocks = blocks
        self._lists_of = lists_of
        self._block = block
        self._watch = Watch()
        self._last: int | None = None  # the jiffies of the last look
        self._problem = ""  # why sources cannot be blocked
        self.blocked_total = 0  # sources, since the agent began
        self.sources = 0  # with flows, at the last look

    async def run(self, situation: Callable[[], Situation]) -> None:
        """Look at the sources, for ever."""
        period_s = PERIOD_S
        while True:
            await asyncio.sleep(period_s)
            try:
                spent_s = await self._look(situation())
                period_s = max(PERIOD_S, SHARE * spent_s)
            except Exception:  # this task's root
                log.exception("looking at the sources of clients broke")

    def view(self, services: Mapping[str, Service]) -> tuple[ThreatView, ...]:
        """Return the present threats, the oldest first."""
        began = time.time() - time.monotonic()
        return tuple(
            ThreatView(threat, began + threat.since_s, service.detect, threats.is_proven(service))
            for threat in sorted(self._watch.threats.values(), key=lambda each: each.since_s)
            if (service := services.get(threat.service)) is not None
        )

    async def _look(self, now: Situation) -> float:
        """Take one look; return the CPU seconds that it took."""
        # A backup has flows of the master's clients, and learns nothing of what they usually do.
        watched = {
            each.name: each
            for each in now.config.services
            if each.detect is not Detect.OFF and self._serves(each)
        }
        if not watched:
            self._watch, self._last, self.sources = Watch(), None, 0
            return 0.0
        before = self._watch
        # In a thread: an attack from very many sources makes this long.
        found, self._watch, spent_s = await asyncio.to_thread(self._judge, now, watched)
        self.sources = sum(crowd.sources for crowd in found.values())
        _log_changes(before, self._watch, watched)
        await self._act(watched, found)
        return spent_s

    def _judge(
        self, now: Situation, watched: Mapping[str, Service]
    ) -> tuple[dict[str, Crowd], Watch, float]:
        """Return what sources have, what follows from it, and the CPU seconds that this took."""
        started, plane = time.thread_time(), self._dataplane
        since = Since(plane.now_jiffies(), plane.clock.hz, self._last)
        self._last = since.now
        found = crowds(plane.tables, names_of(now), plane.keys, since)
        found = {name: crowd for name, crowd in found.items() if name in watched}

        def is_trusted(service: str, source: Network) -> bool:
            trusted = watched[service].trusted
            held = self._lists_of(source.network_address) if trusted else ()
            return any(name in trusted for name in held)

        after = threats.looked(self._watch, found, time.monotonic(), is_trusted)
        return found, after, time.thread_time() - started

    async def _act(self, watched: Mapping[str, Service], found: Mapping[str, Crowd]) -> None:
        """Block the sources that are threats to services that want this."""
        present = active(self._blocks())
        wanted = [
            threat
            for threat in self._watch.going_on
            if watched[threat.service].detect is Detect.BLOCK
            if threat.source not in present
        ]
        if not wanted:
            return
        ours = sum(threats.is_ours(each.why) for each in present.values())
        many = sum(each.sources for name, each in found.items() if _blocks(watched[name]))
        at = time.time()
        new = tuple(
            Block(each.source, threats.why(each), at, at + threats.BLOCK_S)
            for each in threats.chosen(wanted, many, ours)
        )
        if not new:
            return
        try:
            await self._block(new)
        except (SteelyardError, OSError) as error:
            if str(error) != self._problem:
                log.error("threats are not blocked", problem=str(error))
            self._problem = str(error)
            return
        self._problem = ""
        self.blocked_total += len(new)
        for each in new[:_NAMED]:
            log.warning("blocked a source", source=str(each.prefix), why=each.why)
        if len(new) > _NAMED:
            log.warning("blocked more sources", sources=len(new) - _NAMED)


def _blocks(service: Service) -> bool:
    return service.detect is Detect.BLOCK


def _log_changes(before: Watch, after: Watch, watched: Mapping[str, Service]) -> None:
    new = threats.begun(before, after)
    for each in new[:_NAMED]:
        log.warning(
            "a source behaves unlike all others",
            service=each.service,
            source=str(each.source),
            sign=each.evidence.sign.value,
            why=threats.sentence(each.evidence),
            action=watched[each.service].detect.value,
        )
    if len(new) > _NAMED:
        log.warning("more sources behave unlike all others", sources=len(new) - _NAMED)
    for threat in _over(before, after)[:_NAMED]:
        log.info(
            "a source behaves like the others again",
            service=threat.service,
            source=str(threat.source),
            sign=threat.evidence.sign.value,
        )


def _over(before: Watch, after: Watch) -> list[Threat]:
    return threats.begun(after, before)
