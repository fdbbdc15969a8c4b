"""Owns the agent's side of failover: sends heartbeats to the failover process, and knows its state.

The process goes on without the agent. A heartbeat tells it what it needs to know about the agent,
every half second and at once when something changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from agent.errors import ConflictError, NotFoundError, SteelyardError
from agent.failover.client import ask_async
from agent.failover.model import Failover, Instance, Mode, Role, socket_of
from agent.failover.status import FailoverStatus, RouterStatus, from_json
from agent.failover.times import AGENT_HEARTBEAT_S, ANSWER_S
from agent.logs import get_logger
from agent.pair.agentstatus import AgentStatus
from agent.pair.preemption import is_behind
from agent.pair.witness import period_s

log = get_logger()


class Mastership:
    """The failover process of this node, as far as it answers.

    ``word`` returns the contents of a heartbeat. ``on_answer`` is called when the process has
    answered a heartbeat of ``run``.
    """

    def __init__(
        self, word: Callable[[], AgentStatus], on_answer: Callable[[], None] = lambda: None
    ) -> None:
        self._word = word
        self._on_answer = on_answer
        self._period_s: float | None = None  # between heartbeats, if not AGENT_HEARTBEAT_S
        self._path: Path | None = None
        self.instances: Mapping[str, Instance] = {}
        self._wake = asyncio.Event()
        self.news = asyncio.Event()  # the process has answered
        self.leaving = asyncio.Event()  # the process has been told to stop, and awaits ``excuse``
        self.excused = asyncio.Event()  # the last process that was told to stop has been excused
        self._leaver = 0  # pid of the last process that said that it is leaving
        self.status: FailoverStatus | None = None
        self.status_s = 0.0  # the status is not older than this, on the monotonic clock
        self.problem = ""
        self._roles: Mapping[str, Role] = {}  # as last logged

    def aim(self, failover: Failover, agent_socket: Path) -> None:
        """Follow the process that this configuration names, if it has failover instances."""
        before = self._path
        self._path = socket_of(failover, agent_socket) if failover.instances else None
        self.instances = {instance.name: instance for instance in failover.instances}
        with_witness = failover.sync.peers and failover.sync.witness
        self._period_s = period_s(failover.instances, AGENT_HEARTBEAT_S) if with_witness else None
        if self._path is None:
            self.status, self.problem = None, ""
        elif before is None:
            self.problem = "it has not answered yet"
        self._wake.set()

    @property
    def configured(self) -> bool:
        """Whether there are failover instances."""
        return self._path is not None

    def wake(self) -> None:
        """Look again whether anything that the process depends on has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Send heartbeats to the process, until cancelled."""
        sent: AgentStatus | None = None
        due_s = 0.0
        while True:
            self._wake.clear()
            word, now_s = self._word(), time.monotonic()
            # Passes can be frequent, so one that changed nothing does not cause a heartbeat.
            if self._path is not None and (word != sent or now_s >= due_s):
                sent, due_s = word, now_s + (self._period_s or AGENT_HEARTBEAT_S)
                await self._send(word)
            wait_s = AGENT_HEARTBEAT_S if self._path is None else max(due_s - time.monotonic(), 0.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _send(self, word: AgentStatus) -> None:
        try:
            await self.send_heartbeat(word)
            self._on_answer()
        except (SteelyardError, OSError) as error:
            if str(error) != self.problem:
                log.error("the failover process does not answer", problem=str(error))
            self.status, self.problem = None, str(error)
        except Exception:  # the task's root: a defect here must not stop balancing
            log.exception("the failover process could not be told")

    async def send_heartbeat(self, word: AgentStatus | None = None) -> None:
        """Send a heartbeat: the state of this agent and node."""
        fields = asdict(word or self._word())
        fields["services"] = {name: list(counts) for name, counts in fields["services"].items()}
        await self.order({"do": "agent", **fields})

    async def order(self, request: Mapping[str, object]) -> FailoverStatus:
        """Send a request to the process and return its status afterwards. Raises SteelyardError."""
        if self._path is None:
            raise ConflictError(
                "no instance of failover is configured",
                where="failover",
                remedy="add one to the agent's file: docs/failover.md",
            )
        asked_s = time.monotonic()
        answer = from_json(await ask_async(self._path, request, ANSWER_S))
        if self.problem:
            log.info("the failover process answers")
        self._roles = _log_roles(self._roles, answer)
        self.status, self.status_s, self.problem = answer, asked_s, ""
        self.news.set()
        if answer.leaving and answer.pid != self._leaver:
            self._leaver = answer.pid
            self.excused.clear()
            self.leaving.set()
        return answer

    async def set_mode(self, mode: Mode, instance: str | None) -> FailoverStatus:
        """Tell the process what the operator wants of an instance, or of all."""
        self.check(instance)
        return await self.order({"do": "mode", "mode": mode.value, "instance": instance})

    async def claim(self, instance: str | None) -> FailoverStatus:
        """Make this node master now, because the other node is handing over."""
        self.check(instance)
        return await self.order({"do": "claim", "instance": instance})

    async def excuse(self) -> None:
        """Allow a process that was told to stop to end now."""
        with contextlib.suppress(SteelyardError):  # it is gone already
            await self.order({"do": "leave"})
        self.excused.set()

    async def reload(self) -> None:
        """Have the process read the configuration again; it logs itself what it refuses."""
        if self._path is not None:
            with contextlib.suppress(SteelyardError):  # `run` logs that it does not answer
                await self.order({"do": "reload"})

    def check(self, instance: str | None) -> None:
        """Raise NotFoundError for an instance that the process does not have."""
        known = list(dict.fromkeys(router.instance for router in self.routers))
        if instance is not None and instance not in known:
            raise NotFoundError(
                f"there is no instance {instance!r}",
                where="failover",
                remedy=f"use one of: {', '.join(known)}" if known else "lbctl failover status",
            )

    def has_role(self, role: Role, instance: str | None) -> bool:
        """Return whether any virtual router of the instance, or of all, has this role now."""
        return bool(self.names(role, instance))

    def names(self, role: Role, instance: str | None) -> tuple[str, ...]:
        """Return the names of the instance's, or of all, virtual routers with this role now."""
        return tuple(
            router.name
            for router in self.routers
            if router.role is role and instance in (None, router.instance)
        )

    def modes(self, instance: str | None) -> dict[str, Mode]:
        """Return the operator's mode for the instance, or for each, by name."""
        return {
            router.instance: router.mode
            for router in self.routers
            if instance in (None, router.instance)
        }

    def is_behind(self) -> bool:
        """Return whether another node is master of all virtual routers."""
        routers = self.routers
        return bool(routers) and all(
            router.role is Role.BACKUP and router.master is not None for router in routers
        )

    def masters_elsewhere(self, instance: str | None) -> bool:
        """Return whether another node is master of some virtual router of the instance now."""
        return any(
            router.role is Role.BACKUP and router.master is not None
            for router in self.routers
            if instance in (None, router.instance)
        )

    def would_win(self, instance: str | None) -> bool:
        """Return whether this node would take some virtual router of the instance by priority."""
        return any(
            is_behind(router)
            and router.instance in self.instances
            and self.instances[router.instance].preempt
            for router in self.routers
            if instance in (None, router.instance)
        )

    def slowest_interval_s(self) -> float:
        """Return the longest advert interval of all virtual routers, in seconds; 1 without any."""
        return max((router.interval_s for router in self.routers), default=1.0)

    @property
    def routers(self) -> tuple[RouterStatus, ...]:
        """The virtual routers as of the last answer."""
        return self.status.routers if self.status else ()


def _log_roles(before: Mapping[str, Role], after: FailoverStatus) -> dict[str, Role]:
    """Log which virtual routers have changed their role, and return the roles. The process logs
    this too, in its own log.
    """
    for router in after.routers:
        old = before.get(router.name)
        if old is not None and old is not router.role:
            log.log(
                _level(old, router.role),
                "role",
                router=router.name,
                old=old.value,
                new=router.role.value,
                why=router.why,
            )
    return {router.name: router.role for router in after.routers}


def _level(old: Role, new: Role) -> int:
    if new is Role.FAULT:
        return logging.ERROR
    return logging.WARNING if Role.MASTER in (old, new) else logging.INFO
