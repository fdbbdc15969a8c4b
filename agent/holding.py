"""Owns the clients that wait for the first backend of their service (`no_backend: hold`): how many
there are, and sending their SYNs on when there is a backend.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

from agent.dataplane.held import HeldSyns, Waiting
from agent.dataplane.program import Dataplane
from agent.errors import SteelyardError
from agent.logs import get_logger
from agent.model import BackendRef, NoBackend, Service
from agent.network.reset import RawSender
from agent.state.situation import Situation
from agent.state.tables import ServiceEntry, TableContents

log = get_logger()

LOOK_S = 1.0

type Now = Callable[[], tuple[Situation, TableContents]]


class Holding:
    """The clients that wait. ``run`` counts them each second, and sends them on; ``passed`` makes
    it do so at once.

    ``sender`` opens what frames are sent with.
    """

    def __init__(self, dataplane: Dataplane, sender: Callable[[], RawSender] = RawSender) -> None:
        self._syns = HeldSyns(dataplane)
        self._sender = sender
        self._without: frozenset[str] = frozenset()
        self._waiting: Mapping[str, int] = {}  # clients by service, as of the last look
        self._freed = asyncio.Event()
        self._problem = ""

    def waiting(self, service: Service) -> int | None:
        """Return how many clients wait for a backend; None: the service lets none wait."""
        return self._waiting.get(service.name, 0) if _holds(service) else None

    def passed(self, seen: Situation) -> None:
        """Take the result of a pass: the tables hold it."""
        before = self._without
        self._without = frozenset(s.name for s in seen.config.services if _waits(seen, s))
        if before - self._without:
            self._freed.set()

    async def run(self, now: Now) -> None:
        """Look after the clients that wait, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._freed.wait()
            self._freed.clear()
            try:
                await self.look(*now())
            except (SteelyardError, OSError) as error:
                self._complain(str(error))
            except Exception:  # this task's root: their own timers remain to the clients
                log.exception("sending waiting clients on broke")

    async def look(self, seen: Situation, contents: TableContents) -> None:
        """Count the clients that wait, and send those on whose services have backends."""
        services = [each for each in seen.config.services if _holds(each)]
        if not services:
            self._waiting = {}
            return
        found = await asyncio.to_thread(self._syns.read, time.monotonic_ns())
        counts = found.by_service()
        entries = {entry.id: entry for entry in contents.services.values()}
        waiting = {}
        for service in services:
            ident = seen.ids.service_id(service)
            count = counts.pop(ident, 0)
            if count and ident in entries and not _waits(seen, service):
                sent = await asyncio.to_thread(self._send, found.of(ident), entries[ident])
                log.info("clients that waited for a backend are served", service=service.name,
                         clients=sent)  # fmt: skip
            elif count:
                waiting[service.name] = count
        before, self._waiting = self._waiting, waiting
        for name in waiting.keys() - before.keys():
            log.warning("clients wait for a backend", service=name, clients=waiting[name])
        for ident in counts:  # their services are gone, or wait no longer
            await asyncio.to_thread(self._syns.forget, found.of(ident).keys)

    def _send(self, found: Waiting, entry: ServiceEntry) -> int:
        """Send SYNs on; return how many."""
        sent, problem = 0, ""
        with self._sender() as sender:
            for syn in found.syns():
                frame = self._syns.send(syn, entry)
                if frame is None:
                    continue
                try:
                    sender.frame(frame.ifindex, frame.data)
                    sent += 1
                except SteelyardError as error:  # the flow is recorded; the client's timer remains
                    problem = str(error)
        self._complain(problem)
        return sent

    def _complain(self, problem: str) -> None:
        """Log a problem once while it lasts; empty: there is none any more."""
        if problem and problem != self._problem:
            log.error("clients that wait for a backend are not sent on", problem=problem)
        self._problem = problem


def _holds(service: Service) -> bool:
    return service.no_backend is NoBackend.HOLD


def _waits(seen: Situation, service: Service) -> bool:
    """Return whether new flows of a service wait: it has no usable backend."""
    refs = (BackendRef(service.name, each.name) for each in service.backends)
    return _holds(service) and not any(seen.verdicts[ref].usable for ref in refs)
