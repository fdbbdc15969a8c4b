"""Decides when passes run: when something has woken them, and again after one that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from agent.errors import SteelyardError
from agent.logs import get_logger

log = get_logger()

RETRY_S = (0.2, 1.0, 5.0)

type Scope = frozenset[str] | None  # the services that a pass is about, by name; None: all


class Passes:
    """Runs one pass after another, never two at once.

    A pass that fails is run again after a pause that grows. So is one that meets a defect of the
    agent, because a defect must not stop the balancing.
    """

    def __init__(self, work: Callable[[Scope], Awaitable[None]]) -> None:
        self._work = work
        self._due = asyncio.Event()
        self._scope: Scope = frozenset()
        self._retry: asyncio.TimerHandle | None = None
        self._failures = 0  # in a row
        self.problem = ""  # what the last pass could not do; empty: nothing
        self.defects = 0  # passes and reloads that a defect of the agent has ended

    def wake(self, services: Iterable[str] | None = None) -> None:
        """Make a pass due, about these services or all, however often this is called."""
        self._scope = joined(self._scope, None if services is None else frozenset(services))
        self._due.set()

    async def woken(self) -> Scope:
        """Wait until a pass is due; return what it is about, and regard it as done."""
        await self._due.wait()
        self._due.clear()
        scope, self._scope = self._scope, frozenset()
        return scope

    async def run(self) -> None:
        """Run passes as they become due, for ever."""
        while True:
            scope = await self.woken()
            try:
                await self._work(scope)
            except Exception as error:  # noqa: BLE001 (this task's root, logged there)
                self.failed(error)
            else:
                self.succeeded()

    def succeeded(self) -> None:
        """Note that a pass has made everything as it should be."""
        self._failures, self.problem = 0, ""
        self._cancel()

    def failed(self, error: Exception) -> None:
        """Note that a pass has failed, and plan one retry, however many passes have failed."""
        retry_s = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
        self._failures += 1
        problem = str(error)
        if not isinstance(error, SteelyardError | OSError):
            problem = f"a defect of the agent: {type(error).__name__}: {error}"
            self.defect("a pass met a defect; it is tried again", error)
        elif problem != self.problem:
            log.error("reconcile failed", problem=problem, retry_s=retry_s)
        self.problem = problem
        self._cancel()
        self._retry = asyncio.get_running_loop().call_later(retry_s, self.wake)

    def defect(self, what: str, error: Exception) -> None:
        """Count an error that no code of ours expects, and log where it came from."""
        self.defects += 1
        log.error(what, exc_info=error)

    def _cancel(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


def joined(one: Scope, other: Scope) -> Scope:
    """Return what both are about."""
    return None if one is None or other is None else one | other
