"""Owns the agent's side of failover: tells the failover process what it depends on, and knows it.

The process goes on without the agent; what it needs to know of it is said every half second, and
at once when it changes.
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
from agent.failover.times import ANSWER_S, WORD_S
from agent.logs import get_logger
from agent.pair.preemption import is_behind
from agent.pair.witness import period_s
from agent.pair.word import Word

log = get_logger()


class Mastership:
    """The failover process of this node, as far as it answers. ``told``: it has answered the word
    of ``run``.
    """

    def __init__(self, word: Callable[[], Word], told: Callable[[], None] = lambda: None) -> None:
        self._word = word
        self._told = told
        self._period_s: float | None = None  # from one word to the next, if not WORD_S
        self._path: Path | None = None
        self.instances: Mapping[str, Instance] = {}
        self._wake = asyncio.Event()
        self.news = asyncio.Event()  # the process has answered
        self.leaving = asyncio.Event()  # it was told to stop, and waits for ``excuse``
        self.excused = asyncio.Event()  # the last one that was told to stop has been let go
        self._leaver = 0  # pid of the one that has said so
        self.status: FailoverStatus | None = None
        self.status_s = 0.0  # the moment that it is of at least, on the monotonic clock
        self.problem = ""
        self._roles: Mapping[str, Role] = {}  # as they were told last

    def aim(self, failover: Failover, agent_socket: Path) -> None:
        """Follow the process that this configuration is for, or none."""
        before = self._path
        self._path = socket_of(failover, agent_socket) if failover.instances else None
        self.instances = {instance.name: instance for instance in failover.instances}
        with_witness = failover.sync.peers and failover.sync.witness
        self._period_s = period_s(failover.instances, WORD_S) if with_witness else None
        if self._path is None:
            self.status, self.problem = None, ""
        elif before is None:
            self.problem = "it has not answered yet"
        self._wake.set()

    @property
    def configured(self) -> bool:
        """There are instances."""
        return self._path is not None

    def wake(self) -> None:
        """Something that the process depends on may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Speak to the process for as long as the agent runs."""
        said: Word | None = None
        due_s = 0.0
        while True:
            self._wake.clear()
            word, now_s = self._word(), time.monotonic()
            # A pass that changed nothing is no news, and passes can be many.
            if self._path is not None and (word != said or now_s >= due_s):
                said, due_s = word, now_s + (self._period_s or WORD_S)
                await self._tell(word)
            wait_s = WORD_S if self._path is None else max(due_s - time.monotonic(), 0.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _tell(self, word: Word) -> None:
        try:
            await self.say(word)
            self._told()
        except (SteelyardError, OSError) as error:
            if str(error) != self.problem:
                log.error("the failover process does not answer", problem=str(error))
            self.status, self.problem = None, str(error)
        except Exception:  # this task's root: it must not end the balancing
            log.exception("the failover process could not be told")

    async def say(self, word: Word | None = None) -> None:
        """Tell the process how this node is."""
        said = asdict(word or self._word())
        said["services"] = {name: list(counts) for name, counts in said["services"].items()}
        await self.order({"do": "agent", **said})

    async def order(self, request: Mapping[str, object]) -> FailoverStatus:
        """One request to the process, and what it is afterwards; raises SteelyardError."""
        if self._path is None:
            raise ConflictError(
                "there is no instance of failover",
                where="failover",
                remedy="add one to the agent's file: docs/failover.md",
            )
        asked_s = time.monotonic()
        answer = from_json(await ask_async(self._path, request, ANSWER_S))
        if self.problem:
            log.info("the failover process answers")
        self._roles = _tell_roles(self._roles, answer)
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
        """Have this node be master now: the other one hands over."""
        self.check(instance)
        return await self.order({"do": "claim", "instance": instance})

    async def excuse(self) -> None:
        """A process that was told to stop need wait no longer."""
        with contextlib.suppress(SteelyardError):  # it is gone
            await self.order({"do": "leave"})
        self.excused.set()

    async def reload(self) -> None:
        """Have the process read the configuration again; it says itself what it cannot take."""
        if self._path is not None:
            with contextlib.suppress(SteelyardError):  # `run` says that it does not answer
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
        """Whether any virtual router of the instance, or of all, has this role now."""
        return bool(self.names(role, instance))

    def names(self, role: Role, instance: str | None) -> tuple[str, ...]:
        """The virtual routers of the instance, or of all, that have this role now."""
        return tuple(
            router.name
            for router in self.routers
            if router.role is role and instance in (None, router.instance)
        )

    def modes(self, instance: str | None) -> dict[str, Mode]:
        """What the operator wants of the instance, or of each, by name."""
        return {
            router.instance: router.mode
            for router in self.routers
            if instance in (None, router.instance)
        }

    def is_behind(self) -> bool:
        """Another node is master of all there is."""
        routers = self.routers
        return bool(routers) and all(
            router.role is Role.BACKUP and router.master is not None for router in routers
        )

    def masters_elsewhere(self, instance: str | None) -> bool:
        """Whether some virtual router of the instance has another node as master now."""
        return any(
            router.role is Role.BACKUP and router.master is not None
            for router in self.routers
            if instance in (None, router.instance)
        )

    def would_win(self, instance: str | None) -> bool:
        """Whether this node would take some virtual router of the instance by its priority."""
        return any(
            is_behind(router)
            and router.instance in self.instances
            and self.instances[router.instance].preempt
            for router in self.routers
            if instance in (None, router.instance)
        )

    def slowest_interval_s(self) -> float:
        """Of the adverts."""
        return max((router.interval_s for router in self.routers), default=1.0)

    @property
    def routers(self) -> tuple[RouterStatus, ...]:
        """The virtual routers, as of the last answer."""
        return self.status.routers if self.status else ()


def _tell_roles(before: Mapping[str, Role], after: FailoverStatus) -> dict[str, Role]:
    """Say which virtual routers have other roles than before, and return what they have. The
    process says that too, in a log of its own.
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
