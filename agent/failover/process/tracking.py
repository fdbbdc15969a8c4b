"""Tracks what priorities depend on (interfaces, scripts, the agent's heartbeats), and judges them.

The data plane outlives the agent, so the last heartbeat counts until the next one, and the kernel
says whether the program is still attached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.failover.fitness import AgentHeartbeat, Judgement, Observations, fitness
from agent.failover.plan import VirtualRouter
from agent.failover.process.links import Interface, Links
from agent.failover.process.saved import Saved
from agent.failover.process.scripts import Scripts
from agent.failover.times import PRESENT_S, RESTARTED_S
from agent.logs import get_logger

log = get_logger()


class Tracking:
    """Everything that is tracked on this node.

    ``changed`` is called when a router may have to be judged again.
    """

    def __init__(self, saved: Saved, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._links = Links()
        self._dirty = asyncio.Event()
        self._names: frozenset[str] = frozenset()
        self._with_program: frozenset[str] = frozenset()
        self._interfaces: dict[str, Interface | None] = {}
        self.scripts = Scripts(changed)
        self._word: AgentHeartbeat | None = None
        if saved.attached is not None:
            self._word = AgentHeartbeat(saved.attached, saved.why)
        self._programs_seen = saved.programs
        self._heard_s = self._loop.time()
        self.agent_seen: float | None = None  # seconds since the epoch
        self._loop.add_reader(self._links.fileno(), self._event)

    def close(self) -> None:
        """Close the sockets."""
        self._loop.remove_reader(self._links.fileno())
        self._links.close()

    def watch(self, routers: Iterable[VirtualRouter], with_program: Iterable[str]) -> None:
        """Track what these routers depend on; ``with_program``: the agent's program is on these."""
        routers = tuple(routers)
        self._with_program = frozenset(with_program)
        tracked = {each.name for r in routers for each in r.instance.track.interfaces}
        self._names = self._with_program | tracked | {router.interface for router in routers}
        self.scripts.watch(script for r in routers for script in r.instance.track.scripts)
        new = self._names - self._interfaces.keys()
        self._learn(self._read(new))
        self.look_soon()

    def look_soon(self) -> None:
        """Have ``run`` ask the kernel again."""
        self._dirty.set()

    async def run(self) -> None:
        """Ask the kernel whenever something has changed; runs until it is cancelled.

        This runs in a thread: the kernel answers only when nothing else is changing an interface of
        this host, and an advert cannot wait that long.
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
            except OSError as error:  # the last known state stays
                log.warning("an interface cannot be read", interface=name, error=str(error))
        return found

    def _learn(self, found: dict[str, Interface | None]) -> bool:
        before = self._interfaces
        self._interfaces = {name: found.get(name, before.get(name)) for name in self._names}
        self._note_programs()
        return self._interfaces != before

    def interface(self, name: str) -> Interface | None:
        """Return an interface as it was when it was last read."""
        return self._interfaces.get(name)

    def heard(self, word: AgentHeartbeat) -> bool:
        """Take in a heartbeat of the agent, and return whether it says anything new."""
        now_s = self._loop.time()
        before, self._word = self._word, word
        if before is None or not before.attached or now_s - self._heard_s > RESTARTED_S:
            self._programs_seen = frozenset()  # the program may be attached in another way now
        self._heard_s, self.agent_seen = now_s, time.time()
        self._note_programs()
        if before is None or before.attached != word.attached:
            log.info("agent", attached=word.attached, why=word.why)
        return before != word

    def judge(self, router: VirtualRouter) -> Judgement:
        """Return the priority of a router, and whether this node may be its master."""
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
        # The agent reports whether it has the flows of the others. Without them, preempting a
        # master that is well would cut its connections. An old heartbeat, or one from before a
        # restart, does not count, because the agent may have been replaced since.
        tracked = router.instance.track.dataplane
        return replace(judged, waits_for=self._waits_for() if tracked else "")

    def _waits_for(self) -> str:
        if (word := self._fresh_word(RESTARTED_S)) is None:
            return "the agent has not reported lately"
        return "" if word.ready else word.waits_for or "the agent is not ready"

    def hands_over(self) -> bool:
        """Return whether the agent would hand over to another balancer if it were asked now."""
        return (word := self._fresh_word(PRESENT_S)) is not None and word.hands_over

    def to_save(self, saved: Saved) -> Saved:
        """Return ``saved`` with the agent's last heartbeat."""
        if self._word is None:
            return saved
        word = self._word
        return replace(saved, attached=word.attached, why=word.why, programs=self._programs_seen)

    def _fresh_word(self, most_s: float) -> AgentHeartbeat | None:
        """Return the last heartbeat if it is at most ``most_s`` old and came since our start."""
        away_s = self._loop.time() - self._heard_s
        return self._word if self.agent_seen is not None and away_s < most_s else None

    def _event(self) -> None:
        try:
            self._links.drain()
            self.look_soon()
        except Exception:
            log.exception("an event of an interface failed")

    def _note_programs(self) -> None:
        """Note the interfaces that have an XDP program while the agent is attached.

        If it is attached by tc, there is none.
        """
        if self._word is not None and self._word.attached:
            found = {n for n in self._with_program if (i := self._interfaces.get(n)) and i.program}
            self._programs_seen |= found

    def _has_programs(self) -> bool | None:
        """Return whether the XDP programs are still where they were; None: none were seen."""
        seen = self._programs_seen & self._with_program
        if not seen:
            return None
        return all((i := self._interfaces.get(name)) and i.program for name in seen)
