"""Knows what the priorities depend on: interfaces, scripts, the agent's word; judges each node's.

The agent's data plane outlives the agent: its last word counts until the next one, and the kernel
says whether the program is still there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.failover.fitness import AgentWord, Judgement, Observations, fitness
from agent.failover.plan import VirtualRouter
from agent.failover.process.links import Interface, Links
from agent.failover.process.saved import Saved
from agent.failover.process.scripts import Scripts
from agent.failover.times import PRESENT_S, RESTARTED_S
from agent.logs import get_logger

log = get_logger()


class Tracking:
    """``changed`` is called when a router may have to be judged anew."""

    def __init__(self, saved: Saved, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._links = Links()
        self._dirty = asyncio.Event()
        self._names: frozenset[str] = frozenset()
        self._with_program: frozenset[str] = frozenset()
        self._interfaces: dict[str, Interface | None] = {}
        self.scripts = Scripts(changed)
        self._word: AgentWord | None = None
        if saved.attached is not None:
            self._word = AgentWord(saved.attached, saved.why)
        self._programs_seen = saved.programs
        self._heard_s = self._loop.time()
        self.agent_seen: float | None = None  # seconds since the epoch
        self._loop.add_reader(self._links.fileno(), self._event)

    def close(self) -> None:
        """Give the sockets back."""
        self._loop.remove_reader(self._links.fileno())
        self._links.close()

    def watch(self, routers: Iterable[VirtualRouter], with_program: Iterable[str]) -> None:
        """What these depend on; the agent's program is on the interfaces named last."""
        routers = tuple(routers)
        self._with_program = frozenset(with_program)
        tracked = {each.name for r in routers for each in r.instance.track.interfaces}
        self._names = self._with_program | tracked | {router.interface for router in routers}
        self.scripts.watch(script for r in routers for script in r.instance.track.scripts)
        new = self._names - self._interfaces.keys()
        self._learn(self._read(new))
        self.look_soon()

    def look_soon(self) -> None:
        """Ask the kernel anew; ``run`` does it."""
        self._dirty.set()

    async def run(self) -> None:
        """Look whenever something has changed, for ever.

        In a thread: the kernel answers when nobody else changes an interface of this host, and
        an advert cannot wait so long.
        """
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if self._learn(await asyncio.to_thread(self._read, self._names)):
                self._changed()

    def _read(self, names: frozenset[str]) -> dict[str, Interface | None]:
        found: dict[str, Interface | None] = {}
        for name in names:
            try:
                found[name] = self._links.interface(name)
            except OSError as error:  # what was known stays
                log.warning("an interface cannot be read", interface=name, error=str(error))
        return found

    def _learn(self, found: dict[str, Interface | None]) -> bool:
        before = self._interfaces
        self._interfaces = {name: found.get(name, before.get(name)) for name in self._names}
        self._note_programs()
        return self._interfaces != before

    def interface(self, name: str) -> Interface | None:
        """As it was at the last look."""
        return self._interfaces.get(name)

    def heard(self, word: AgentWord) -> bool:
        """The agent's heartbeat; whether it says anything new."""
        now_s = self._loop.time()
        before, self._word = self._word, word
        if before is None or not before.attached or now_s - self._heard_s > RESTARTED_S:
            self._programs_seen = frozenset()  # it may be attached in another way now
        self._heard_s, self.agent_seen = now_s, time.time()
        self._note_programs()
        if before is None or before.attached != word.attached:
            log.info("agent", attached=word.attached, why=word.why)
        return before != word

    def judge(self, router: VirtualRouter) -> Judgement:
        """What this router's priority is, and whether its node may be master."""
        interfaces = {n: i.up and i.carrier for n, i in self._interfaces.items() if i is not None}
        scripts = {each.name: self.scripts.state(each) for each in router.instance.track.scripts}
        observed = Observations(
            interfaces=interfaces,
            scripts=scripts,
            word=self._word,
            agent_away_s=self._loop.time() - self._heard_s,
            program=self._has_programs(),
        )
        judged = fitness(router.instance, router.interface, router.services, observed)
        # Its agent says whether it has the flows of the others: without them, the connections of
        # a master that is well would be cut. One of before a restart may be another node by now.
        tracked = router.instance.track.dataplane
        return replace(judged, waits_for=self._waits_for() if tracked else "")

    def _waits_for(self) -> str:
        if (word := self._fresh_word(RESTARTED_S)) is None:
            return "the agent has not reported lately"
        return "" if word.ready else word.waits_for or "the agent is not ready"

    def hands_over(self) -> bool:
        """Whether the agent, asked now, would hand over to another balancer."""
        return (word := self._fresh_word(PRESENT_S)) is not None and word.hands_over

    def to_save(self, saved: Saved) -> Saved:
        """With the agent's word."""
        if self._word is None:
            return saved
        word = self._word
        return replace(saved, attached=word.attached, why=word.why, programs=self._programs_seen)

    def _fresh_word(self, most_s: float) -> AgentWord | None:
        """The agent's last one, if it is not older than that, nor of before our start."""
        away_s = self._loop.time() - self._heard_s
        return self._word if self.agent_seen is not None and away_s < most_s else None

    def _event(self) -> None:
        try:
            self._links.drain()
            self.look_soon()
        except Exception:
            log.exception("an event of an interface failed")

    def _note_programs(self) -> None:
        """Where XDP programs are while the agent says that it is attached: not there if by tc."""
        if self._word is not None and self._word.attached:
            there = {n for n in self._with_program if (i := self._interfaces.get(n)) and i.program}
            self._programs_seen |= there

    def _has_programs(self) -> bool | None:
        """Whether they are still where they were; None: the agent has none that can be seen."""
        seen = self._programs_seen & self._with_program
        if not seen:
            return None
        return all((i := self._interfaces.get(name)) and i.program for name in seen)
