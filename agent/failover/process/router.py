"""Runs one virtual router: the state machine with its sockets, its timer and its VIPs.

Received packets are always read before an expired timer counts. So a node that was frozen, or had
no CPU, does not mistake its own sleep for its master's silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from agent.errors import NetworkError
from agent.failover.fitness import Judgement
from agent.failover.model import HANDED_OVER, LEAVING, OWNER, Authentication, Mode, Role
from agent.failover.plan import VirtualRouter
from agent.failover.process.commonstatus import common_status, lasting
from agent.failover.process.holding import Holding, in_thread
from agent.failover.process.inbox import Inbox
from agent.failover.process.links import Interface
from agent.failover.process.listeners import Listeners
from agent.failover.status import RouterStatus
from agent.failover.times import FLOODED_INTERVALS, LEAST_TIMER_S
from agent.failover.vrrp import groups, machine, timers
from agent.failover.vrrp.channel import Channel
from agent.failover.vrrp.listener import Listener
from agent.failover.vrrp.machine import Announce, Drop, Effect, Event, Send, Settings, State, Take
from agent.failover.vrrp.replay import Guard
from agent.failover.vrrp.source import choose
from agent.failover.vrrp.states import Due, Fitness, Heard, Operator, Start, Stop, Vouched
from agent.logs import get_logger
from agent.model import Address

log = get_logger()

_UNKNOWN: dict[int, Address] = {4: IPv4Address(0), 6: IPv6Address(0)}

_UNHEARD = "the master is not heard, but flow sync says that it is well"

type Group = Callable[["Router"], Mapping[str, "Router"]]


class Router:
    """One virtual router with elections.

    ``group`` returns, by name, the routers that move together with a given one, itself included.
    ``before``: the last counter that earlier processes heard from each sender.
    """

    def __init__(
        self,
        router: VirtualRouter,
        key: bytes | None,
        listeners: Listeners,
        *,
        grouped: bool,
        mode: Mode,
        group: Group,
        before: Mapping[Address, int] | None = None,
    ) -> None:
        self.router = router
        self._key = key
        self._grouped = grouped
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._listener: Listener | None = None
        self._bound: tuple[int, Address] | None = None  # ifindex and source of the channel
        self._listeners = listeners
        self._guard = Guard(before or {})  # outlives the channel
        self._put_off = 0  # how often a takeover was postponed because of a flood
        self._holding: Holding | None = None
        self._place = 0  # ifindex of the interface below the virtual MAC's
        self._timer: asyncio.TimerHandle | None = None
        self._judgement = Judgement(Fitness(router.instance.priority), ())
        self._fault = ""  # a fault found here: no socket, no address
        self._inherited = False  # the VIPs are still on from before a restart
        self._leaving: asyncio.Event | None = None  # set when another node is master
        self._inbox = Inbox(router.instance.interval_s)
        self._send_problem = ""
        self._sent = 0
        self._transitions: Counter[str] = Counter()
        self._settings = self._new_settings(_UNKNOWN[router.family])
        self.state = machine.initial(self._settings, mode, self._loop.time())

    @property
    def role(self) -> Role:
        """The present role."""
        return self.state.role

    def counters(self) -> dict[Address, int]:
        """Return the last counter of each sender of HMAC, to be saved."""
        is_hmac = self.router.instance.authentication is Authentication.HMAC
        return self._guard.to_save() if is_hmac else {}

    def start(self, interface: Interface | None, judgement: Judgement, *, inherited: bool) -> None:
        """Take part. ``inherited``: an earlier process has left the VIPs on.

        They stay until another master is heard, or this node is master itself. So a process that
        restarts before other nodes have missed it has not interrupted anything.
        """
        self._inherited = inherited
        self.observe(interface, judgement)
        self.handle(Start(inherited=inherited))

    async def leave(self) -> None:
        """Announce that this node stops being master, and serve until another one is heard."""
        if self.state.role is not Role.MASTER or self._holding is None:
            return
        self._leaving = asyncio.Event()
        self.handle(Stop())
        patience_s = timers.leave_s(self._settings.version, self._settings.interval_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._leaving.wait()

    def stop(self) -> None:
        """Leave at once, and release all resources."""
        self._leaving = None
        self.handle(Stop())
        self._disarm()
        self._close_channel()
        self._close_holding()

    def change(self, router: VirtualRouter, key: bytes | None, *, grouped: bool) -> None:
        """Apply other settings of the same virtual router; ``observe`` then reopens the sockets."""
        if router == self.router and key == self._key and grouped == self._grouped:
            return
        anew = router != self.router or key != self._key
        self.router, self._key, self._grouped = router, key, grouped
        self._settings = self._new_settings(self._settings.own)
        if anew:
            self._bound = None
            if self._holding is not None:
                self._holding.change(router)

    def observe(self, interface: Interface | None, judgement: Judgement) -> None:
        """Apply the present state of the interface and the result of tracking."""
        self._judgement = judgement
        self._fault = self._bind(interface)
        self._settings = self._new_settings(self._settings.own)
        self.handle(Fitness(judgement.fitness.priority, judgement.fitness.fault or self._fault))

    def set_mode(self, mode: Mode) -> None:
        """Apply the mode that the operator wants."""
        self.handle(Operator(mode))

    def vouch(self, at_s: float) -> None:
        """Take in that, according to flow sync, another node was master at ``at_s``, and well."""
        self.handle(Vouched(at_s))

    def handle(self, event: Event, now_s: float | None = None) -> None:
        """Make one step of the state machine and its group, and carry out the effects.

        ``now_s`` None means now.
        """
        now_s = self._loop.time() if now_s is None else now_s
        group = self._group(self) if self._grouped else {self.router.name: self}
        settings = {name: member._settings for name, member in group.items()}
        before = {name: member.state for name, member in group.items()}
        try:
            after, effects = groups.step(settings, before, self.router.name, event, now_s)
        except Exception:
            log.exception("the state machine failed", router=self.router.name, on=str(event))
            self._arm(self._loop.time() + self._settings.interval_s)
            return
        for name, member in group.items():
            member.state = after[name]
        for name, effect in effects:
            group[name]._do(effect)
        for name, member in group.items():
            if member is self or member.state is not before[name]:
                member._arm()
            if member.state.role is not before[name].role:
                member._transition(before[name])

    def _do(self, effect: Effect) -> None:
        try:
            match effect:
                case Send():
                    self._send(effect.priority)
                case Take():
                    self._inherited = False
                    if self._holding is not None:
                        self._holding.take()
                case Drop():
                    if self._holding is not None and self._leaving is None:
                        self._holding.drop()
                case Announce():
                    if self._holding is not None:
                        self._holding.announce()
        except Exception:  # the other effects still have to be carried out
            log.exception("an effect failed", router=self.router.name, effect=str(effect))

    def _send(self, priority: int) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(priority)
        except OSError as error:
            if priority == LEAVING:
                return  # mostly because the link is down, which is also why the node leaves
            problem = f"adverts cannot be sent from {self._settings.own}: {error.strerror}"
            if problem != self._send_problem:
                log.warning("adverts", router=self.router.name, problem=problem)
            self._send_problem = problem
            return
        self._sent += 1
        if self._send_problem:
            log.info("adverts are sent again", router=self.router.name)
            self._send_problem = ""

    def _transition(self, was: State) -> None:
        state = self.state
        self._transitions[state.role.value] += 1
        log.info(
            "role",
            router=self.router.name,
            old=was.role.value,
            new=state.role.value,
            why=state.why,
            priority=state.priority,
        )
        if state.role is Role.FAULT:
            self._let_go()

    # Timer

    def _arm(self, at_s: float | None = None) -> None:
        due_s = at_s if at_s is not None else self.state.due_s
        timer = self._timer
        if due_s is None:
            self._disarm()
        elif timer is None or timer.when() > due_s:
            # An earlier timer stays: when it fires too early, it is set again.
            self._disarm()
            at_s = max(due_s, self._loop.time() + LEAST_TIMER_S)
            self._timer = self._loop.call_at(at_s, self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._disarm()
        if self._is_due():
            self._listen()
        if self._is_due():
            if self._is_deafened():
                self._arm(self._loop.time() + self._settings.interval_s)
            else:
                self.handle(Due())
                if self.state.vouched:  # another node is master, although it is not heard
                    self._let_go()
        if self._timer is None:
            self._arm()

    def _is_due(self) -> bool:
        return self.state.due_s is not None and self.state.due_s <= self._loop.time()

    # Received adverts

    def _is_deafened(self) -> bool:
        """Return whether a flood may be why the master is not heard, so this node waits longer.

        Now and then an advert gets through the flood, and one is enough.
        """
        if self.state.role is not Role.BACKUP or self._listener is None:
            return False
        if not self._listener.is_flooded or self._put_off >= FLOODED_INTERVALS:
            return False
        self._put_off += 1
        return True

    def _listen(self) -> None:
        """Read what has come for any router of the listener, before a timer counts."""
        if self._listener is not None:
            try:
                self._listener.read()
            except Exception:  # whatever was sent, the timer handling after this goes on
                log.exception("adverts cannot be read", router=self.router.name)
        self._drain()

    def _wake(self) -> None:
        self._listeners.after_reading(self._drain)

    def _drain(self) -> None:
        if self._channel is None:
            return
        now_s = self._loop.time()  # taken first, so that our work does not delay the next timeout
        found = self._channel.taken()
        own, priority = self._settings.own, self.state.priority
        for advert in self._inbox.take(found, self.router, own, priority):
            if advert.priority > 0:
                self._other_is_master(advert.priority)
            self._put_off = 0
            self.handle(Heard(advert), now_s)

    def _other_is_master(self, priority: int) -> None:
        """Take off VIPs that are still on although this node is not master."""
        if self._leaving is not None and self._holding is not None:
            self._holding.drop()
            self._leaving.set()
        elif self.state.role is Role.BACKUP:
            self._let_go(priority)

    def _let_go(self, priority: int = OWNER) -> None:
        """Take off inherited VIPs: another node is master, or this one may not be.

        ``priority``: that of the other master, if one was heard.
        """
        if not self._inherited:
            return
        self._inherited = False
        if self._holding is not None and self._holding.drop():
            # The master hears a lower one and announces again. If its own priority is the lowest,
            # it might give way to an equal one, but not to one that leaves.
            self._send(HANDED_OVER if priority > HANDED_OVER else LEAVING)

    # Interface and sockets

    def _bind(self, interface: Interface | None) -> str:
        """Open sockets that fit the interface as it is now.

        Returns why there are none, or an empty text.
        """
        name = self.router.interface
        try:
            self._hold(interface)
        except (OSError, NetworkError) as error:
            self._close_channel()
            return f"{name} cannot have the VIPs: {error}"
        if interface is None:
            self._close_channel()
            return f"{name} does not exist"
        source = choose(self.router, interface.addresses)
        if source is None or source not in interface.addresses:
            self._close_channel()
            if source is None:
                return f"{name} has no IPv{self.router.family} address to send from"
            return f"{name} does not have the address {source}, the source of adverts"
        if self._bound == (interface.ifindex, source):
            return ""
        try:
            self._open(interface.ifindex, source)
        except (OSError, NetworkError) as error:
            self._close_channel()
            return f"{name} cannot be used: {error}"
        self._bound = interface.ifindex, source
        return ""

    def _hold(self, interface: Interface | None) -> None:
        """Prepare to hold the VIPs.

        The interface of a virtual MAC is made and removed with the one below it.
        """
        if self.router.instance.virtual_mac:
            place = interface.ifindex if interface else 0
            if self._place != place:
                self._close_holding()
                self._place = place
            if not place:
                return
        if self._holding is None:
            self._holding = Holding(self.router)
            self._loop.add_reader(self._holding.fileno(), self._look)
        self._holding.again(in_thread)

    def _open(self, ifindex: int, source: Address) -> None:
        listener = self._listeners.listener(self.router.interface, ifindex, self.router.family)
        channel = Channel(self.router, source, self._key, self._guard, listener, self._wake)
        self._close_channel()  # after the new one is open, so that no advert is missed
        self._channel, self._listener = channel, listener
        self._listeners.tidy()
        self._settings = self._new_settings(source)

    def _close_channel(self) -> None:
        self._bound = None
        if self._channel is not None:
            self._channel.close()
        self._channel = self._listener = None
        self._listeners.tidy()

    def _close_holding(self) -> None:
        if self._holding is not None:
            self._loop.remove_reader(self._holding.fileno())
            self._holding.close()
        self._holding = None

    def _look(self) -> None:
        try:
            if self._holding is not None:
                self._holding.look()
        except OSError as error:
            log.warning("addresses", router=self.router.name, problem=str(error))

    def _new_settings(self, own: Address) -> Settings:
        instance = self.router.instance
        return Settings(
            own=own,
            priority=instance.priority,
            interval_s=instance.interval_s,
            version=instance.version,
            family=self.router.family,
            preempt=instance.preempt and self._judgement.may_preempt,
            preempt_delay_s=instance.preempt_delay_s,
            grouped=self._grouped,
        )

    # Status

    def status(self) -> RouterStatus:
        """Return the present status."""
        state, now = self.state, time.time()
        reasons = self._judgement.reasons
        if self._fault and not self._judgement.fitness.fault:
            reasons = (self._fault, *reasons)
        on_host = self._holding.problems if self._holding else ()
        own = (*on_host, ("send", self._send_problem if state.role is Role.MASTER else ""))
        common = common_status(
            self.router,
            role=state.role,
            since=now - (self._loop.time() - state.since),
            why=_UNHEARD if state.vouched else state.why,
            mode=state.mode,
            priority=state.priority,
            reasons=reasons,
            problems=(*self._inbox.ledger.current(now), *lasting(own, now)),
            transitions=self._transitions,
        )
        master = (str(state.master.source), state.master.priority) if state.master else (None, None)
        if state.role is Role.MASTER:
            master = str(self._settings.own), state.priority
        return replace(
            common,
            master=master[0],
            master_priority=master[1],
            adverts_sent=self._sent,
            adverts_received=self._inbox.received,
            adverts_discarded=dict(self._inbox.discarded),
            announcements=self._holding.announced if self._holding else 0,
            vouched=state.vouched,
        )
