"""Owns the reset of flows that cannot go on: those of dead and removed backends, and those that
expire in nat and fullnat.

Both ends of a flow are sent a reset, as far as they are known, so that neither waits in vain.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.config.plan import added_and_removed
from agent.dataplane import abi, ending
from agent.dataplane.ending import Ended, Flows
from agent.dataplane.flows import Names, names_of
from agent.dataplane.program import Dataplane
from agent.dataplane.survey import Counts, Slots, Survey
from agent.errors import NetworkError
from agent.logs import get_logger
from agent.model import BackendRef, Config, GuardMode, Service
from agent.network.reset import RawSender
from agent.state import deaths
from agent.state.identities import member_of
from agent.state.situation import Situation

log = get_logger()

# Resets are sent for so many flows at a time, which takes some milliseconds, and then there is a
# pause: some thousands a second. More flows are ended at a time, because that is only a store each.
SENT_AT_ONCE = 32
SEND_PAUSE_S = 0.008
ENDED_AT_ONCE = 2048
SEND_TIMES = 3  # how many times resets are sent, because packets can get lost
SEND_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class _Notice:
    ended: Ended
    times: int = 0


@dataclass(frozen=True, slots=True)
class Ownership:
    """Which flows this node may end: others may be served by another balancer, which knows better.

    ``serves``: returns whether clients of a service come to this node. ``others``: if several nodes
    serve clients at the same time, flags the flows that another node has sent and that have had
    no packet here.
    """

    serves: Callable[[Service], bool]
    others: Callable[[Counts, Slots], npt.NDArray[np.bool_] | None]


class Resetter:
    """Ends flows, in the thread that writes the tables; its task ``run`` sends the resets."""

    def __init__(self, dataplane: Dataplane, ownership: Ownership) -> None:
        self._dataplane = dataplane
        self._ownership = ownership
        self._deaths = deaths.NONE_DEAD
        self._notices: asyncio.Queue[_Notice] = asyncio.Queue()
        self._problem = ""
        self.resets: Counter[BackendRef] = Counter()  # since the agent started

    async def take(self, now: Situation, found: Survey, now_s: float) -> None:
        """End the flows of dead backends, and expired flows.

        Call this after each survey, before expired flows are swept.
        """
        before = self._deaths
        self._deaths = deaths.follow(before, now.config, now.health, now.hops, now.verdicts, now_s)
        await self._end_expired(now, found)
        dead = self._dead(now, found, before) if self._deaths.due else frozenset()
        if dead:
            names = names_of(now)
            for ident, count in (await self._end_of(names, dead, ending.HALF_OPEN_TOO)).items():
                why = now.verdicts[names.backends[ident]].reason
                self._say(names, Counter({ident: count}), f"the backend is down: {why}")

    def _dead(self, now: Situation, found: Survey, before: deaths.Deaths) -> frozenset[int]:
        """Return the ids of dead backends that have open flows, or have become due just now.

        A backend that is newly due may also have closing flows, which do not count as open but
        whose clients still await an answer.
        """
        dead = set()
        for service in now.config.services:
            for backend in service.backends if self._ownership.serves(service) else ():
                ref = BackendRef(service.name, backend.name)
                ident = now.ids.backend_id(service, backend)
                if ref in self._deaths.due and (ref not in before.due or found.live[ident]):
                    dead.add(ident)
        return frozenset(dead)

    async def remove(self, now: Situation, new: Config) -> Mapping[BackendRef, int]:
        """Reset the flows of removed backends that cannot go on without them: nat and fullnat.

        Call this before the backends are removed from the tables, and again afterwards for flows
        that came in between; ``now`` is the situation before. Returns how many, by backend.
        """
        changed = [s for s in added_and_removed(now.config, new)[1] if s.forward.is_nat]
        if not changed:
            return {}
        left = {member_of(s, b): s.forward for s in new.services for b in s.backends}
        gone = {
            now.ids.backend_id(service, backend)
            for service in changed
            for backend in service.backends
            if left.get(member_of(service, backend)) is not service.forward
            and self._ownership.serves(service)
        }
        if not gone:
            return {}
        names = names_of(now)
        done = await self._end_of(names, gone, ending.HALF_OPEN_TOO)
        return self._say(names, done, "the backend was removed")

    async def end_blocked(self, now: Situation) -> Mapping[BackendRef, int]:
        """End the flows of blocked clients, in services that enforce blocks.

        Returns how many, by backend.
        """
        refusing = {
            now.ids.service_id(service)
            for service in now.config.services
            if service.guard is GuardMode.ENFORCE
        }
        names = names_of(now)
        tables = self._dataplane.tables
        flows = await asyncio.to_thread(ending.of_blocked, tables, refusing)
        return self._say(names, await self._end(names, flows), "the client is blocked")

    def announce(self, ended: Ended) -> None:
        """Queue flows that were ended, so that resets are sent to both ends."""
        self._notices.put_nowait(_Notice(ended))

    async def run(self) -> None:
        """Send the resets of ended flows, for a bounded number per second, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            notice = await self._notices.get()
            try:
                with RawSender() as sender:
                    for first in range(0, len(notice.ended), SENT_AT_ONCE):
                        self._send(sender, notice.ended.those(slice(first, first + SENT_AT_ONCE)))
                        await asyncio.sleep(SEND_PAUSE_S)
            except (NetworkError, OSError) as error:
                self._failed(error)
            except Exception:  # this task's root
                log.exception("flows could not be reset")
            if notice.times + 1 < SEND_TIMES:
                again = _Notice(notice.ended, notice.times + 1)
                loop.call_later(SEND_AGAIN_S, self._notices.put_nowait, again)

    async def _end_expired(self, now: Situation, found: Survey) -> None:
        ours = [now.ids.service_id(s) for s in now.config.services if self._ownership.serves(s)]
        flows = ending.expired(self._dataplane.tables, found, np.array(ours, dtype=np.int64))
        if len(flows):
            names = names_of(now)
            self._say(names, await self._end(names, flows), "no packet came for too long")

    async def _end_of(
        self, names: Names, ids: Collection[int], states: tuple[abi.FlowState, ...]
    ) -> Counter[int]:
        wanted = np.array(sorted(ids), dtype=np.int64)
        tables = self._dataplane.tables
        return await self._end(
            names, await asyncio.to_thread(ending.at_backends, tables, wanted, states)
        )

    async def _end(self, names: Names, flows: Flows) -> Counter[int]:
        """End flows; return how many, by backend id."""
        plane, done = self._dataplane, Counter[int]()
        flows = await asyncio.to_thread(ending.whole_tcp, plane.tables, flows, names, plane.keys)
        others = self._ownership.others(flows.slots, flows.words)
        if others is not None:
            flows = flows.those(~others)
        for first in range(0, len(flows), ENDED_AT_ONCE):
            part = flows.those(slice(first, first + ENDED_AT_ONCE))
            ended = ending.end(plane.tables, part, plane.now_jiffies() >> plane.clock.shift)
            done.update(ended.by_backend())
            self.announce(ended)
            await asyncio.sleep(0)
        return done

    def _say(self, names: Names, done: Counter[int], why: str) -> dict[BackendRef, int]:
        found = {names.backends[i]: count for i, count in done.items() if i in names.backends}
        for ref, count in found.items():
            self.resets[ref] += count
            log.warning("flows reset", backend=str(ref), flows=count, why=why)
        return found

    def _send(self, sender: RawSender, ended: Ended) -> None:
        for segment in ending.segments(self._dataplane.tables, ended):
            try:
                sender.packet(segment.to, segment.packet())
            except NetworkError as error:
                self._failed(error)  # perhaps only for this end
            else:
                self._problem = ""

    def _failed(self, error: Exception) -> None:
        """Log a problem once while it lasts."""
        if str(error) != self._problem:
            log.error("connections cannot be reset", problem=str(error))
        self._problem = str(error)
