"""Runs an instance without elections: its VIPs are on the interface while this node is fit.

A routing daemon announces them to the network's routers. A node whose VIPs are on is MASTER. One
that was handed over is BACKUP, and so is one that waits until it knows the flows and the backends,
because it would break connections of other nodes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from agent.failover.fitness import Judgement
from agent.failover.model import Mode, Role
from agent.failover.plan import VirtualRouter
from agent.failover.process.commonstatus import common_status, lasting
from agent.failover.process.holding import Holding, in_thread
from agent.failover.status import RouterStatus
from agent.failover.vrrp.states import Fitness
from agent.logs import get_logger

log = get_logger()


def role_of(mode: Mode, judgement: Judgement, *, serves: bool) -> tuple[Role, str]:
    """Return the role of a node, and why it has it.

    One that ``serves`` already goes on even if it waits for something: it may wait for the flows of
    nodes that have died.
    """
    if fault := judgement.fitness.fault:
        return Role.FAULT, fault
    if mode is Mode.HANDED_OVER:
        return Role.BACKUP, "handed over"
    if judgement.waits_for and not serves:
        return Role.BACKUP, f"not announced yet: {judgement.waits_for}"
    return Role.MASTER, "fit"


class Announced:
    """One instance, whose VIPs are on its interface while this node is fit."""

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
        """The present role."""
        return self._role

    def start(self, judgement: Judgement, *, inherited: bool) -> None:
        """Take part. ``inherited``: an earlier process left the VIPs on, and served until now."""
        self._serves = inherited
        self.observe(judgement)
        if self._role is not Role.MASTER:
            self._holding.drop()  # VIPs that an earlier process has left

    def stop(self) -> None:
        """Take the VIPs off, and release all resources."""
        self._enter(Role.INIT, "stopped")
        self._loop.remove_reader(self._holding.fileno())
        self._holding.close()

    def change(self, router: VirtualRouter) -> None:
        """Apply other settings of the same instance, on the same interface."""
        if router != self.router:
            self.router = router
            self._holding.change(router)

    def observe(self, judgement: Judgement) -> None:
        """Apply the result of tracking."""
        self._judgement = judgement
        self._holding.again(in_thread)
        self._settle()

    def set_mode(self, mode: Mode) -> None:
        """Apply the mode that the operator wants."""
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
        """Return the present status."""
        return common_status(
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
