"""Runs an instance without elections: its VIPs are on while this node is fit, and a routing daemon
tells the routers of them. MASTER is a node whose VIPs are on, BACKUP one that was handed over, or
waits until it knows the flows and the backends: it would break connections that others have."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from agent.failover.fitness import Judgement
from agent.failover.model import Mode, Role
from agent.failover.plan import VirtualRouter
from agent.failover.process.holding import Holding, in_thread
from agent.failover.process.telling import lasting, told
from agent.failover.status import RouterStatus
from agent.failover.vrrp.states import Fitness
from agent.logs import get_logger

log = get_logger()


def role_of(mode: Mode, judgement: Judgement, *, serves: bool) -> tuple[Role, str]:
    """What a node is, and why. One that ``serves`` goes on: others may have died, and their flows
    are what it waits for.
    """
    if fault := judgement.fitness.fault:
        return Role.FAULT, fault
    if mode is Mode.HANDED_OVER:
        return Role.BACKUP, "handed over"
    if judgement.waits_for and not serves:
        return Role.BACKUP, f"not announced yet: {judgement.waits_for}"
    return Role.MASTER, "fit"


class Announced:
    """The VIPs of one instance, on its interface while they may be."""

    def __init__(self, router: VirtualRouter, *, mode: Mode) -> None:
        self.router = router
        self._mode = mode
        self._loop = asyncio.get_running_loop()
        self._holding = Holding(router)
        self._loop.add_reader(self._holding.fileno(), self._look)
        self._judgement = Judgement(Fitness(router.instance.priority), ())
        self._transitions: Counter[str] = Counter()
        self._role, self._why = Role.INIT, "not started yet"
        self._serves = False
        self._since = time.time()

    @property
    def role(self) -> Role:
        """As of now."""
        return self._role

    def start(self, judgement: Judgement, *, inherited: bool) -> None:
        """Take part. ``inherited``: a former process has left the VIPs on, and served until now."""
        self._serves = inherited
        self.observe(judgement)
        if self._role is not Role.MASTER:
            self._holding.drop()  # what a former process left

    def stop(self) -> None:
        """Leave in good order, and give everything back."""
        self._enter(Role.INIT, "stopped")
        self._loop.remove_reader(self._holding.fileno())
        self._holding.close()

    def change(self, router: VirtualRouter) -> None:
        """Other settings of the same instance, on the same interface."""
        if router != self.router:
            self.router = router
            self._holding.change(router)

    def observe(self, judgement: Judgement) -> None:
        """What follows from all that is tracked."""
        self._judgement = judgement
        self._holding.again(in_thread)
        self._settle()

    def set_mode(self, mode: Mode) -> None:
        """What the operator wants."""
        self._mode = mode
        self._settle()

    def _settle(self) -> None:
        self._enter(*role_of(self._mode, self._judgement, serves=self._serves))
        self._serves = self._role is Role.MASTER

    def _enter(self, role: Role, why: str) -> None:
        before, self._role, self._why = self._role, role, why
        if role is before:
            return
        if role is Role.MASTER:
            self._holding.take()
        elif before is Role.MASTER:
            self._holding.drop()
        self._since = time.time()
        self._transitions[role.value] += 1
        log.info("role", router=self.router.name, old=before.value, new=role.value, why=why)

    def _look(self) -> None:
        try:
            self._holding.look()
        except OSError as error:
            log.warning("addresses", router=self.router.name, problem=str(error))

    def status(self) -> RouterStatus:
        """As of now."""
        return told(
            self.router,
            role=self._role,
            since=self._since,
            why=self._why,
            mode=self._mode,
            priority=self._judgement.fitness.priority,
            reasons=self._judgement.reasons,
            problems=lasting(self._holding.problems, time.time()),
            transitions=self._transitions,
        )
