"""Runs one virtual router: the state machine with its sockets, its timer and its VIPs.

What has come in is always read before a timer counts, so a node that was frozen, or had no CPU,
does not take its own sleep for its master's silence.
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
from agent.failover.process.hearing import Hearing
from agent.failover.process.holding import Holding, in_thread
from agent.failover.process.inbox import Inbox
from agent.failover.process.links import Interface
from agent.failover.process.telling import lasting, told
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
    """``group`` tells by name which routers move together with one, itself among them.

    ``before``: the last counter that an earlier process heard of each sender.
    """

    def __init__(
        self,
        router: VirtualRouter,
        key: bytes | None,
        hearing: Hearing,
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
        self._bound: tuple[int, Address] | None = None  # what the channel was opened for
        self._hearing = hearing
        self._guard = Guard(before or {})  # also of another channel
        self._put_off = 0  # how often a master's silence did not count, for a flood
        self._holding: Holding | None = None
        self._place = 0  # ifindex below the virtual MAC's interface
        self._timer: asyncio.TimerHandle | None = None
        self._judgement = Judgement(Fitness(router.instance.priority), ())
        self._fault = ""  # of our own: no socket, no address
        self._inherited = False  # the VIPs are on from before a restart
        self._leaving: asyncio.Event | None = None  # set when another node is master
        self._inbox = Inbox(router.instance.interval_s)
        self._send_problem = ""
        self._sent = 0
        self._transitions: Counter[str] = Counter()
        self._settings = self._new_settings(_UNKNOWN[router.family])
        self.state = machine.initial(self._settings, mode, self._loop.time())

    @property
    def role(self) -> Role:
        """As of now."""
        return self.state.role

    def counters(self) -> dict[Address, int]:
        """The last ones heard of each sender of HMAC, to be saved."""
        is_hmac = self.router.instance.authentication is Authentication.HMAC
        return self._guard.to_save() if is_hmac else {}

    def start(self, interface: Interface | None, judgement: Judgement, *, inherited: bool) -> None:
        """Take part. ``inherited``: a former process has left the VIPs on.

        They stay until another master is heard, or this node is master itself: who restarts
        before anybody has missed it then has not been away.
        """
        self._inherited = inherited
        self.observe(interface, judgement)
        self.handle(Start(inherited=inherited))

    async def leave(self) -> None:
        """Say that this node stops being master, and serve until another one is heard."""
        if self.state.role is not Role.MASTER or self._holding is None:
            return
        self._leaving = asyncio.Event()
        self.handle(Stop())
        patience_s = timers.leave_s(self._settings.version, self._settings.interval_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._leaving.wait()

    def stop(self) -> None:
        """Leave at once, and give everything back."""
        self._leaving = None
        self.handle(Stop())
        self._disarm()
        self._close_channel()
        self._close_holding()

    def change(self, router: VirtualRouter, key: bytes | None, *, grouped: bool) -> None:
        """Other settings of the same virtual router; ``observe`` opens what has to be anew."""
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
        """What is known now of the interface, and what follows from all that is tracked."""
        self._judgement = judgement
        self._fault = self._bind(interface)
        self._settings = self._new_settings(self._settings.own)
        self.handle(Fitness(judgement.fitness.priority, judgement.fitness.fault or self._fault))

    def set_mode(self, mode: Mode) -> None:
        """What the operator wants."""
        self.handle(Operator(mode))

    def vouch(self, at_s: float) -> None:
        """Flow sync says that another node was master at that moment, and well."""
        self.handle(Vouched(at_s))

    def handle(self, event: Event, now_s: float | None = None) -> None:
        """One step of the machine and its group, and what it asks for. ``now_s``: None is now."""
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
        except Exception:  # the others still count
            log.exception("an effect failed", router=self.router.name, effect=str(effect))

    def _send(self, priority: int) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(priority)
        except OSError as error:
            if priority == LEAVING:
                return  # mostly by a link that is down, which is why it leaves
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
            # One that is earlier stays: it finds then that it is too early, and is set anew.
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
                if self.state.vouched:  # another one is master, though it is not heard
                    self._let_go()
        if self._timer is None:
            self._arm()

    def _is_due(self) -> bool:
        return self.state.due_s is not None and self.state.due_s <= self._loop.time()

    # What is heard

    def _is_deafened(self) -> bool:
        """Whether a master's silence may be a flood's doing: then it lasts longer before it counts.

        Adverts come through now and then, and one is enough.
        """
        if self.state.role is not Role.BACKUP or self._listener is None:
            return False
        if not self._listener.is_flooded or self._put_off >= FLOODED_INTERVALS:
            return False
        self._put_off += 1
        return True

    def _listen(self) -> None:
        """Read what has come, to whomever, before a timer counts."""
        if self._listener is not None:
            try:
                self._listener.read()
            except Exception:  # whatever somebody sends: the timer behind this goes on
                log.exception("adverts cannot be read", router=self.router.name)
        self._drain()

    def _wake(self) -> None:
        self._hearing.tell(self._drain)

    def _drain(self) -> None:
        if self._channel is None:
            return
        now_s = self._loop.time()  # the wait for the next advert does not begin with our reading
        found = self._channel.taken()
        own, priority = self._settings.own, self.state.priority
        for advert in self._inbox.take(found, self.router, own, priority):
            if advert.priority > 0:
                self._other_is_master(advert.priority)
            self._put_off = 0
            self.handle(Heard(advert), now_s)

    def _other_is_master(self, priority: int) -> None:
        """VIPs that are on without this node being master go."""
        if self._leaving is not None and self._holding is not None:
            self._holding.drop()
            self._leaving.set()
        elif self.state.role is Role.BACKUP:
            self._let_go(priority)

    def _let_go(self, priority: int = OWNER) -> None:
        """Another one is master, of that priority, or this one may not: what was inherited goes."""
        if not self._inherited:
            return
        self._inherited = False
        if self._holding is not None and self._holding.drop():
            # Whoever is master hears of a lower one, and announces again. One whose priority is
            # the lowest itself would stop for an equal, but not for one that leaves.
            self._send(HANDED_OVER if priority > HANDED_OVER else LEAVING)

    # What is watched

    def _bind(self, interface: Interface | None) -> str:
        """Have sockets for the interface as it is; why there are none, or empty."""
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
            return f"{name} has not the address {source}, the source of adverts"
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
        """Be able to have VIPs; a virtual MAC's interface comes and goes with the one below it."""
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
        listener = self._hearing.listener(self.router.interface, ifindex, self.router.family)
        channel = Channel(self.router, source, self._key, self._guard, listener, self._wake)
        self._close_channel()  # only now: nothing that is said meanwhile is missed
        self._channel, self._listener = channel, listener
        self._hearing.tidy()
        self._settings = self._new_settings(source)

    def _close_channel(self) -> None:
        self._bound = None
        if self._channel is not None:
            self._channel.close()
        self._channel = self._listener = None
        self._hearing.tidy()

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

    # What is told

    def status(self) -> RouterStatus:
        """As of now."""
        state, now = self.state, time.time()
        reasons = self._judgement.reasons
        if self._fault and not self._judgement.fitness.fault:
            reasons = (self._fault, *reasons)
        on_host = self._holding.problems if self._holding else ()
        own = (*on_host, ("send", self._send_problem if state.role is Role.MASTER else ""))
        common = told(
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
