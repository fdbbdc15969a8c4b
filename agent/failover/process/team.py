"""Owns the virtual routers of this node.

It makes them as configured, has groups move together, and carries out requests to the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import __version__
from agent.errors import ConfigError, RequestError, SteelyardError
from agent.failover.fitness import AgentHeartbeat
from agent.failover.host.addresses import left_behind, remove_stale
from agent.failover.model import Method, Mode, Role
from agent.failover.plan import VirtualRouter
from agent.failover.process.announced import Announced
from agent.failover.process.listeners import Listeners
from agent.failover.process.reading import Orders, read_orders
from agent.failover.process.realtime import Standing
from agent.failover.process.router import Router
from agent.failover.process.saved import SavedFile
from agent.failover.process.tracking import Tracking
from agent.failover.status import FailoverStatus, to_json
from agent.failover.times import COUNTERS_SAVED_S, EXCUSED_LOOK_S, STOP_HANDOVER_S
from agent.failover.vrrp.states import Claim
from agent.logs import get_logger
from agent.model import Address
from agent.notify import Notifier

log = get_logger()

# Settings that the process uses from its start, so a reload cannot change them.
_FIXED = ("name", "socket", "socket_group", "state_dir")

type Member = Router | Announced


class Team:
    """All virtual routers of this node. Call ``start`` first and ``stop`` last."""

    def __init__(self, path: Path, orders: Orders, standing: Standing, notifier: Notifier) -> None:
        self._path = path
        self._orders = orders
        self._notifier = notifier
        self._changing = asyncio.Lock()  # one reload at a time
        self._standing = standing
        self._started = time.time()
        self._listeners = Listeners()
        self._members: dict[str, Member] = {}
        self._file = SavedFile(orders.state_dir, orders.name)
        self._saved = self._file.load()
        self.tracking = Tracking(self._saved, self.judge)
        self._to_save = asyncio.Event()
        self._leaving = False
        self._excused = asyncio.Event()
        self.config_problem = orders.problem

    def start(self) -> None:
        """Start all routers that are configured.

        VIPs that an earlier process has left and that are not configured are removed.
        """
        kept = _remove_stale(_places(self._orders.plan.routers))
        self._watch()
        self._add(self._orders.plan.routers, inherited=kept)

    def take(self, orders: Orders) -> None:
        """Apply other orders; routers that are the same in them go on untouched."""
        self._orders = orders
        self.config_problem = orders.problem
        self._watch()
        wanted = {router.name: router for router in orders.plan.routers}
        for name, member in list(self._members.items()):
            if name not in wanted or _identity(wanted[name]) != _identity(member.router):
                log.info("router removed", router=name)
                del self._members[name]
                with _guarded(name):
                    member.stop()
        new = [router for name, router in wanted.items() if name not in self._members]
        for name, member in tuple(self._members.items()):
            with _guarded(name):
                self._change(member, wanted[name])
        self._add(new, inherited=frozenset())
        self.judge()  # once more with all of them, as the group of a router may have changed
        # In the order of the configuration, for readers of the status.
        self._members = {name: self._members[name] for name in wanted if name in self._members}

    async def leave(self) -> None:
        """Have the other nodes take over; call it before ``stop``.

        If the agent can hand over, it does: it sees in the next answer that this process leaves,
        and ends the wait when it is done. Without a handover, connections of which the other node
        does not know the flows yet would be lost.
        """
        self._leaving = True
        self._excused.clear()
        routers = [member for member in self._members.values() if isinstance(member, Router)]
        if any(each.role is Role.MASTER for each in routers) and self.tracking.hands_over():
            log.info("leaving: the agent is to hand over first")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_HANDOVER_S):
                    await self._until_excused()
        await asyncio.gather(*(each.leave() for each in routers), return_exceptions=True)

    async def _until_excused(self) -> None:
        """Wait until the agent has done what it can, or is gone itself."""
        while self.tracking.hands_over() and not self._excused.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXCUSED_LOOK_S):
                    await self._excused.wait()

    def stop(self) -> None:
        """Stop all routers, so that no VIP is on any more, and stop tracking."""
        self._saved = replace(self._saved, counters=self._counters())  # for the last ``save``
        for name, member in self._members.items():
            with _guarded(name):
                member.stop()
        self._members.clear()
        self.tracking.close()

    def judge(self) -> None:
        """Judge all routers again, because something tracked has changed or time has passed."""
        for name, member in tuple(self._members.items()):
            with _guarded(name):
                self._observe(member)

    def status_line(self) -> str:
        """Return one line for the service manager."""
        roles = [(m.router.name, m.role.value) for m in self._members.values()]
        return ", ".join(f"{name}: {role}" for name, role in roles) or "no instance is configured"

    def status(self) -> dict[str, Any]:
        """Return the whole status, as plain data for JSON."""
        return to_json(
            FailoverStatus(
                pid=os.getpid(),
                started=self._started,
                version=__version__,
                realtime=self._standing.realtime,
                memory_locked=self._standing.memory_locked,
                agent_seen=self.tracking.agent_seen,
                config_problem=self.config_problem,
                routers=tuple(member.status() for member in self._members.values()),
                leaving=self._leaving,
            )
        )

    def agent_says(self, word: AgentHeartbeat) -> None:
        """Take in a heartbeat of the agent."""
        if self.tracking.heard(word):
            self.judge()
            self._to_save.set()
        for name, at_s in word.vouchers.items():
            if isinstance(member := self._members.get(name), Router):
                with _guarded(name):
                    member.vouch(at_s)

    async def set_mode(self, mode: Mode, instance: str | None) -> None:
        """Set the mode of an instance and those of its group; None: of all instances."""
        members = self._named(instance)
        if self._leaving:  # set by the handover; the next process must have the operator's mode
            for member in members:
                member.set_mode(mode)
            return
        names = {member.router.instance.name for member in members}
        modes = {name: m for name, m in self._saved.modes.items() if name not in names}
        if mode is not Mode.NORMAL:
            modes |= dict.fromkeys(names, mode)
        self._saved = replace(self._saved, modes=modes)
        for member in members:
            member.set_mode(mode)
        log.info("mode", mode=mode.value, instances=", ".join(sorted(names)))
        await self.save()

    def claim(self, instance: str | None) -> None:
        """Become master of an instance and those of its group; None: of all instances."""
        for member in self._named(instance):
            if isinstance(member, Router):
                member.handle(Claim())

    def excuse(self) -> None:
        """If this process is leaving, end its wait: the agent has done what it can."""
        self._excused.set()

    async def reload(self) -> None:
        """Read the configuration again. A bad one changes nothing, and the status says so."""
        async with self._changing:
            self._notifier.reloading()
            try:
                self.take(await self._acceptable())
            except SteelyardError as error:
                self.config_problem = str(error)
                log.error("reload refused; the last good one stays", problem=str(error))
                raise
            finally:
                self._notifier.ready(self.status_line())

    async def keep_saved(self) -> None:
        """Save what has changed; runs until it is cancelled."""
        while True:
            await self._to_save.wait()
            self._to_save.clear()
            await self.save()

    async def save(self) -> None:
        """Save now, if something has changed."""
        self._saved = replace(self._saved, counters=self._counters())
        await self._file.save(self.tracking.to_save(self._saved))

    async def keep_counters(self) -> None:
        """Save the counters of adverts regularly; runs until it is cancelled."""
        while True:
            await asyncio.sleep(COUNTERS_SAVED_S)
            self._to_save.set()

    def _counters(self) -> dict[str, Mapping[Address, int]]:
        """Return the last counter of each sender, by virtual router.

        Routers that no longer exist keep theirs.
        """
        routers = (each for each in self._members.values() if isinstance(each, Router))
        heard = {each.router.name: each.counters() for each in routers}
        return {**self._saved.counters, **{name: c for name, c in heard.items() if c}}

    async def _acceptable(self) -> Orders:
        orders = await read_orders(self._path)
        fixed = [key for key in _FIXED if getattr(orders, key) != getattr(self._orders, key)]
        if fixed:
            raise ConfigError(
                f"a reload cannot change {', '.join(fixed)}",
                where=str(self._path),
                remedy="restart lb-agent-failover: another node takes over meanwhile",
            )
        return orders

    def _named(self, instance: str | None) -> tuple[Member, ...]:
        members = tuple(self._members.values())
        if instance is None:
            return members
        groups = {m.router.group for m in members if m.router.instance.name == instance}
        if not groups:
            names = ", ".join(dict.fromkeys(m.router.instance.name for m in members))
            raise RequestError(
                f"there is no instance {instance!r}",
                where="failover",
                remedy=f"name one of: {names}" if names else "configure `failover.instances`",
            )
        return tuple(member for member in members if member.router.group in groups)

    def _watch(self) -> None:
        self.tracking.watch(self._orders.plan.routers, self._orders.interfaces)

    def _add(
        self, routers: Iterable[VirtualRouter], inherited: frozenset[tuple[str, Address]]
    ) -> None:
        """Make all routers, then start all: no router moves before the rest of its group exists."""
        made: list[Member] = []
        for router in routers:
            with _guarded(router.name):
                made.append(self._make(router))
        for member in made:
            router = member.router
            with _guarded(router.name):
                judgement = self.tracking.judge(router)
                left = any((router.interface, vip) in inherited for vip in router.vips)
                if isinstance(member, Announced):
                    member.start(judgement, inherited=left)
                    continue
                interface = self.tracking.interface(router.interface)
                member.start(interface, judgement, inherited=left)

    def _make(self, router: VirtualRouter) -> Member:
        mode = self._saved.modes.get(router.instance.name, Mode.NORMAL)
        log.info("router", router=router.name, interface=router.interface, vips=len(router.vips))
        made: Member
        if router.instance.method is Method.ANNOUNCE:
            made = Announced(router, mode=mode)
        else:
            key, grouped = self._orders.key, self._is_grouped(router)
            made = Router(
                router,
                key,
                self._listeners,
                grouped=grouped,
                mode=mode,
                group=self._group,
                before=self._saved.counters.get(router.name),
            )
        self._members[router.name] = made
        return made

    def _change(self, member: Member, router: VirtualRouter) -> None:
        if isinstance(member, Router):
            member.change(router, self._orders.key, grouped=self._is_grouped(router))
        else:
            member.change(router)
        self._observe(member)

    def _observe(self, member: Member) -> None:
        judgement = self.tracking.judge(member.router)
        if isinstance(member, Router):
            member.observe(self.tracking.interface(member.router.interface), judgement)
        else:
            member.observe(judgement)

    def _is_grouped(self, router: VirtualRouter) -> bool:
        others = (each for each in self._orders.plan.routers if each.family)
        return sum(other.group == router.group for other in others) > 1

    def _group(self, router: Router) -> Mapping[str, Router]:
        """Return the routers that move together with one, by name."""
        if self._members.get(router.router.name) is not router:
            return {router.router.name: router}  # this router is being removed
        return {
            name: member
            for name, member in self._members.items()
            if isinstance(member, Router) and member.router.group == router.router.group
        }


@contextlib.contextmanager
def _guarded(name: str) -> Iterator[None]:
    """Log an exception of one router, so that it does not affect the others."""
    try:
        yield
    except Exception:
        log.exception("a router failed", router=name)


def _identity(router: VirtualRouter) -> tuple[object, ...]:
    """Return the settings that identify a virtual router.

    All others can change while it is master.
    """
    instance = router.instance
    return router.interface, router.family, instance.vrid, instance.method, instance.virtual_mac


def _places(routers: Iterable[VirtualRouter]) -> Iterator[tuple[str, Address]]:
    """Yield the interfaces and VIPs on which VIPs of an earlier process may stay.

    The interface of a virtual MAC is made anew, so VIPs on it cannot stay.
    """
    for router in routers:
        if router.instance.accept and not router.instance.virtual_mac:
            yield from ((router.interface, vip) for vip in router.vips)


def _remove_stale(wanted: Iterable[tuple[str, Address]]) -> frozenset[tuple[str, Address]]:
    """Remove VIPs that an earlier process left and that are not in ``wanted``.

    Returns those of ``wanted`` that it left.
    """
    wanted = frozenset(wanted)
    for stale in remove_stale(wanted):
        log.warning(
            "a stale VIP was removed" if not stale.problem else "a stale VIP cannot be removed",
            interface=stale.interface,
            address=str(stale.address),
            problem=stale.problem,
        )
    return left_behind(wanted)
