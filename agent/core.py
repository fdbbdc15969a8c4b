"""Owns the balancing itself: health and next hops in, shared tables out, pass by pass."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from agent.companion.watch import Companions
from agent.config.defaults import check_port
from agent.config.plan import Change
from agent.config.seed import pick_seed
from agent.dataplane import survey
from agent.dataplane.events import lexicon_of
from agent.dataplane.program import Dataplane
from agent.dataplane.trace import Tracer, rings_of
from agent.dataplane.trueup import TrueUp
from agent.errors import DataplaneError, SteelyardError
from agent.failover.plan import concerns
from agent.floods import Floods
from agent.flowsync import carry
from agent.guarding import Guarding
from agent.health.monitor import HealthMonitor, Target
from agent.history import History, log_transitions
from agent.limiting import Limiting
from agent.metrics.observer import Observer
from agent.model import Address, BackendRef, Config, Health, HealthStatus, Network, NextHop
from agent.network.host import Host
from agent.network.nexthop import NextHops
from agent.pair import detour
from agent.pair.pair import Pair
from agent.pair.word import Word, word_of
from agent.rebalancing import Rebalancer
from agent.reconcile.adopt import Adopted, adopt
from agent.reconcile.passes import Passes
from agent.reconcile.reconciler import Reconciler
from agent.resetting import Mine, Resetter
from agent.state import slowstart
from agent.state.blocks import Block, Blocks
from agent.state.desired import Surroundings
from agent.state.eligibility import Eligibility
from agent.state.guardview import Blocked
from agent.state.identities import Identities, Member, member_of
from agent.state.situation import Situation, situation, verdicts
from agent.state.synflood import cookies_in
from agent.state.tables import TableContents
from agent.weighing.weigher import Weigher

log = structlog.get_logger()

SAMPLE_S = 1.0
SWEEP_EVERY = 10  # surveys
SURVEY_SHARE = 20  # surveys take at most one in so many seconds of a CPU
FIRST_CHECKS_S = 3.0
SLOW_START_S = 0.5  # at least, between passes that only make weights grow
ADOPTED_HOP_S = 10.0  # for neighbours that the kernel forgot while the agent was away


@dataclass(slots=True)
class Now:
    """What is true after the last pass."""

    situation: Situation
    contents: TableContents


class Core:
    """The balancing of one instance, from ``start`` on kept true by ``tasks``."""

    now: Now
    observer: Observer
    tracer: Tracer

    def __init__(self, config: Config) -> None:
        self.config = config
        self.passes = Passes(self._pass_and_host)
        self._attach_problem = ""
        self._pin_problem = ""  # why what somebody unpinned cannot be pinned again
        self.dataplane = Dataplane(config)
        self._hops = NextHops(config.interfaces, self._wake, self._way_back)
        self._monitor = HealthMonitor(
            self._health_changed, self._hops.doubt, self._hops.blocked, self._served
        )
        self._host = Host(config, self._wake)
        self.guarding = Guarding(config, self.dataplane)
        self.limiting = Limiting(self.dataplane)
        self.companions = Companions(self.dataplane, self._wake)
        self._hearing: set[asyncio.Task[None]] = set()  # of what other balancers have blocked
        self._passing = asyncio.Lock()
        self._started = asyncio.Event()
        self._reconciler: Reconciler
        self._adopted = Adopted({}, {}, frozenset(), {})
        self._history = History(config.state_dir, config.name)
        self._past = self._history.load()
        self._adopted_until = 0.0
        self._survey_at = 0.0
        self._surveys = 0
        self._pick_seed = 0
        self._floods: Floods
        self._trueup: TrueUp
        self._resetter: Resetter
        self.weigher: Weigher
        self.pair: Pair
        self.rebalancer: Rebalancer
        self._up_since: dict[Member, float] = {}  # on the monotonic clock
        self._next_step: asyncio.TimerHandle | None = None

    # -- its life

    async def load(self) -> None:
        """Make or adopt tables and program; attaches nothing."""
        sync = self.config.failover.sync.is_on
        await asyncio.to_thread(self.guarding.load)
        blocks = self.guarding.is_used
        load = self.dataplane.load
        await asyncio.to_thread(load, self.config.services, sync=sync, blocks=blocks)
        await asyncio.to_thread(carry.prepare, self.dataplane)
        self._reconciler = Reconciler(self.dataplane.tables, time.monotonic)
        self._trueup = TrueUp(self.dataplane.tables)
        self.weigher = Weigher(self.dataplane, self._wake)
        self.tracer = Tracer(
            self.dataplane.tables.trace,
            lambda: rings_of(self.dataplane.program),
            lexicon_of(lambda: self.now.situation),
        )
        self.pair = Pair(
            self.dataplane,
            self._word,
            lambda: self.now.contents,
            self._hops.get,
            self._is_complete,
            lambda: self.guarding.blocks,
            self._blocked_elsewhere,
        )
        mine = Mine(self.pair.serves, self.pair.others)
        self._resetter = Resetter(self.dataplane, mine)
        held = self._reconciler.read()
        self._adopted = adopt(self.config, held, time.time())
        self._floods = Floods(self.config, held)
        self.companions.adopt(cookies_in(self.config, held))
        self._up_since = dict.fromkeys(self._adopted.up, slowstart.ALWAYS)
        await self.pair.aim(self.config)
        self._pick_seed = await asyncio.to_thread(pick_seed, self.config)
        self.weigher.adopt(self.config, self._adopted.weights, time.monotonic())
        self._adopted_until = time.monotonic() + ADOPTED_HOP_S
        asyncio.get_running_loop().call_later(ADOPTED_HOP_S, self._wake)
        self._aim(self._adopted.health)

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run beside ``start`` and afterwards, by name."""
        return {
            "health": self._monitor.run(),
            "next hops": self._hops.run(),
            "reconcile": self._reconcile(),
            "sample": self._sample(),
            "history": self._history.keep(lambda: self._past),
        } | {
            name: self._once_started(work)
            for name, work in (
                self.weigher.tasks()
                | self.pair.tasks()
                | {
                    "resets": self._resetter.run(),
                    "guard": self.guarding.run(),
                    "limits": self.limiting.run(lambda: self.now.situation),
                    "companions": self.companions.run(),
                }
            ).items()
        }

    async def _once_started(self, work: Coroutine[Any, Any, None]) -> None:
        await self._started.wait()
        await work

    async def start(self) -> None:
        """From adopted tables to a running data plane; no packet sees a worse state on the way."""
        await self._hops.ready()
        if self.dataplane.takes_over and not self._adopted.health:
            await self._first_checks()
        await self._pass()
        self.rebalancer = Rebalancer(self.dataplane)
        resets = self._resetter.resets
        self.observer = Observer(
            self.dataplane, self.weigher, self.rebalancer, resets, self.companions
        )
        self.observer.sample(self.now.situation, time.monotonic())
        await asyncio.to_thread(self.dataplane.attach)
        for attachment in self.dataplane.attachments:
            log.info(
                "attached",
                interface=attachment.interface,
                hook=attachment.mode.value,
                why=attachment.reason,
            )
        self._started.set()
        try:
            await self._sync_host()
        except Exception as error:  # noqa: BLE001 (it balances, and goes on trying)
            self.passes.failed(error)

    async def _first_checks(self) -> None:
        """The tables are new (another ABI), the old program balances: let it, until the checks
        have told which backends are up.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_CHECKS_S):
                while any(s.health is Health.CHECKING for s in self.health().values()):
                    await self.passes.woken()

    async def take(self, config: Config, changes: tuple[Change, ...]) -> Mapping[BackendRef, int]:
        """Run with another configuration; returns when the tables hold it. How many flows were
        reset, by the backend that was removed.

        After an error the configuration stands all the same, and passes go on trying.
        """
        known = self._known_health()
        moves_vips = concerns(self.config) != concerns(config)
        self.config = config
        for change in changes:
            log.info("change", change=str(change))
        await self.pair.aim(config)
        self._pick_seed = await asyncio.to_thread(pick_seed, config)
        self._aim(
            {
                BackendRef(service.name, backend.name): known[member]
                for service in config.services
                for backend in service.backends
                if (member := member_of(service, backend)) in known
            }
        )
        before, reset = self.now.situation, Counter[BackendRef]()
        try:
            reset.update(await self._resetter.remove(before, config))
            await self._pass_and_host()
            reset.update(await self._resetter.remove(before, config))
        except (SteelyardError, OSError) as error:
            self.passes.failed(error)
            raise
        except Exception as error:
            self.passes.failed(error)
            raise DataplaneError(
                self.passes.problem,
                where="the new configuration",
                remedy="it stands, and is tried again; the log has the traceback",
            ) from error
        finally:
            if moves_vips:
                await self.pair.mastership.reload()
        return reset

    async def block(self, new: tuple[Block, ...], *, confirmed: bool) -> Blocked:
        """Drop what these sources send from now on, here and at the other balancers, and end their
        flows.
        """
        await self.guarding.block(new, confirmed=confirmed)
        prefixes = [each.prefix for each in new]
        told = self._tell_blocks(prefixes)
        return Blocked(await self._refuse(), told)

    async def unblock(self, prefixes: tuple[Network, ...]) -> int:
        """Serve these sources again, here and at the other balancers; how many of those."""
        await self.guarding.unblock(prefixes)
        return self._tell_blocks(prefixes)

    def _tell_blocks(self, prefixes: Iterable[Network]) -> int:
        known = self.guarding.blocks
        # One of a second may be over by now.
        return self.pair.tell_blocks({each: known[each] for each in prefixes if each in known})

    async def _refuse(self) -> int:
        """Have the program drop what blocked sources send, and end their flows; how many."""
        if not self.dataplane.features.guard:
            await self._pass()
        return sum((await self._resetter.end_blocked(self.now.situation)).values())

    def _blocked_elsewhere(self, told: Blocks) -> None:
        """Another balancer has blocked sources, or undone that."""

        async def take() -> None:
            await self._started.wait()
            try:
                if await self.guarding.hear(told):
                    await self._refuse()
            except (SteelyardError, OSError) as error:
                log.error("blocks of another balancer are not taken over", problem=str(error))
            except Exception:  # this task's root
                log.exception("taking over blocks broke")

        task = asyncio.create_task(take())
        self._hearing.add(task)
        task.add_done_callback(self._hearing.discard)

    # -- what others ask

    @property
    def problem(self) -> str:
        """What cannot be made as it should be, for now; empty: nothing."""
        mine = self._attach_problem or self._pin_problem or self.passes.problem
        return mine or self.guarding.problem

    @property
    def link_problems(self) -> tuple[str, ...]:
        """Interfaces that take no packets, in words."""
        return self._hops.troubles()

    def identities(self, config: Config) -> Identities:
        """The ids of a configuration; DataplaneError if the tables cannot hold it."""
        return self._reconciler.identities(config)

    def health(self) -> dict[BackendRef, HealthStatus]:
        """The health of every backend, as of now."""
        return self._monitor.statuses()

    def _known_health(self) -> dict[Member, HealthStatus]:
        """Health by what a backend is to the tables, so that another name does not cost it."""
        health = self.health()
        return {
            member_of(service, backend): health[BackendRef(service.name, backend.name)]
            for service in self.config.services
            for backend in service.backends
        }

    # -- its tasks

    def _wake(self) -> None:
        self.passes.wake()

    def _way_back(self) -> None:
        log.info("an interface takes packets again: everybody is checked soon")
        self._monitor.resume()

    def _health_changed(self, ref: BackendRef, old: HealthStatus, new: HealthStatus) -> None:
        log.info(
            "health", backend=str(ref), old=old.health.value, new=new.health.value, why=new.reason
        )
        self._wake()

    def _served(self, ref: BackendRef) -> int:
        """Requests of clients that a backend has answered without an error."""
        if not self._started.is_set() or ref not in self.observer.tallies:
            return 0
        tally = self.observer.tallies[ref]
        return tally.answers - tally.errors

    async def _reconcile(self) -> None:
        await self._started.wait()
        await self.passes.run()

    async def _pass_and_host(self) -> None:
        await self._pass()
        await self._sync_host()

    async def _sample(self) -> None:
        await self._started.wait()
        while True:
            await asyncio.sleep(SAMPLE_S)
            try:
                await self._sample_once(time.monotonic())
            except Exception:  # this task's root: figures must not end the balancing
                log.exception("sampling broke")

    async def _sample_once(self, now: float) -> None:
        # First: at `hook: external` they are how the program is called.
        lacking = self.dataplane.lacks_pins
        self._pin_problem = await asyncio.to_thread(self.dataplane.keep_pins) if lacking else ""
        if self.dataplane.is_attached():
            self._attach_problem = ""
        else:
            await self._attach_again()
        self.observer.sample(self.now.situation, now)
        if self._floods.take(self.config, self.observer.syns, now):
            self._wake()
        self.tracer.refresh()  # which reads no ring of a replaced program from now on
        self.pair.refresh()  # nor does this
        if self.dataplane.replaced:
            await asyncio.to_thread(self.dataplane.release_replaced)
        self._sample_loads(now)
        if now >= self._survey_at:
            found = await self.observer.look_at_flows()
            self._survey_at = now + SURVEY_SHARE * self.observer.survey_cpu_s
            self._surveys += 1
            self._trueup.take(found)
            survey.forget(self.dataplane.tables, found)
            await self._resetter.take(self.refreshed(), found, now)
            if self._surveys % SWEEP_EVERY == 0:
                await self._reconciler.sweep(found)
            await self.rebalancer.take(self.now.situation, found, now)

    def _sample_loads(self, now: float) -> None:
        """Learned speeds, and round trips as the health checks measured them."""
        last = self.now.situation
        usable = [ref for ref, verdict in last.verdicts.items() if verdict.usable]
        rtts = {
            ref: None if status.latency_ms is None else status.latency_ms / 1000
            for ref, status in self.health().items()
        }
        tallies, flooded = self.observer.tallies, self._floods.services
        self.weigher.sample(last.config, usable, rtts, tallies, flooded, now)

    async def _attach_again(self) -> None:
        """Somebody took the program off: put it back, unless another one sits there now."""
        try:
            await asyncio.to_thread(self.dataplane.attach)
        except (SteelyardError, OSError) as error:
            if str(error) != self._attach_problem:
                log.error("detached by somebody else", problem=str(error))
            self._attach_problem = str(error)
        else:
            log.warning("attached again", interface=self.config.interface)
            self._attach_problem = ""

    # -- a pass

    def _addresses(self) -> set[Address]:
        return {b.address for service in self.config.services for b in service.backends}

    def _aim(self, initial: dict[BackendRef, HealthStatus]) -> None:
        """Point checks and next hops at the configured backends."""
        targets = {}
        for service in self.config.services:
            for backend in service.backends:
                ref = BackendRef(service.name, backend.name)
                port = check_port(service, backend)
                targets[ref] = Target(service.health, backend.address, port, initial.get(ref))
        self._monitor.set_targets(targets)
        self.weigher.aim(self.config, time.monotonic())
        self.companions.aim(self.config)
        self._hops.set_addresses(self._addresses() | detour.addresses(self.config))

    def _hop(self, address: Address) -> NextHop:
        """What netlink says; shortly after a restart, what the tables had."""
        hop = self._hops.get(address)
        if hop.mac is None and time.monotonic() < self._adopted_until:
            return self._adopted.hops.get(address, hop)
        return hop

    async def _pass(self) -> None:
        """Make the tables what they should be, now."""
        async with self._passing:
            config = self.config
            hops = {address: self._hop(address) for address in self._addresses()}
            health = self._monitor.statuses()
            now = time.monotonic()
            influences = self.weigher.influences(config, now)
            found = self._weighted(config, verdicts(config, health, hops, influences))
            ticks = self.dataplane.clock.ticks
            if self._started.is_set():
                ensure = self.dataplane.ensure_features
                sync, blocks = config.failover.sync.is_on, self.guarding.is_used
                await asyncio.to_thread(ensure, config.services, sync=sync, blocks=blocks)
            if self.guarding.is_behind(config):
                ids = self._reconciler.identities(config)
                await self.guarding.sync(config, ids)
                self.limiting.sync(config, ids)
            draws = self.weigher.draws
            seed = self._pick_seed
            companions = self.companions.ready(config, found)
            around = Surroundings(
                found,
                hops,
                self.dataplane.ifindex,
                ticks,
                draws,
                seed,
                self._floods.services,
                companions,
            )
            done = await self._reconciler.run(config, around)
            fresh = situation(self._past, config, done.ids, health, hops, found, time.time())
            log_transitions(self._past, fresh)
            self._past = fresh.past
            self.now = Now(fresh, done.contents)
            self.weigher.place(config, done.ids)
            self.tracer.refresh()
            self.pair.refresh()
            self.pair.mastership.wake()

    def _weighted(
        self, config: Config, found: dict[BackendRef, Eligibility]
    ) -> dict[BackendRef, Eligibility]:
        """The verdicts with the weights of this moment; the next pass comes when they grow."""
        now = time.monotonic()
        self._up_since = slowstart.follow(config, found, self._up_since, now)
        wait = slowstart.next_step_s(config, found, self._up_since, now)
        if self._next_step is not None:
            self._next_step.cancel()
            self._next_step = None
        if wait is not None:
            loop = asyncio.get_running_loop()
            self._next_step = loop.call_later(max(wait, SLOW_START_S), self._wake)
        return slowstart.slowed(config, found, self._up_since, now)

    async def _sync_host(self) -> None:
        await self._host.sync(lambda: (self.config, self.dataplane.attachment.mode))

    # -- for the other balancers

    async def say_goodbye(self) -> None:
        """This agent ends."""
        if self._started.is_set():  # else nobody has heard of it yet
            await self.pair.say_goodbye()

    def _word(self) -> Word:
        """What the failover process depends on."""
        attached = self.dataplane.is_attached()
        why = "" if attached else self.problem or "not attached"
        return word_of(self.now.situation, attached, why, self._blocked())

    def _blocked(self) -> frozenset[BackendRef]:
        """Backends that nothing can be sent to now, for an interface of this host."""
        now_s = asyncio.get_running_loop().time()
        return frozenset(
            BackendRef(service.name, backend.name)
            for service in self.now.situation.config.services
            for backend in service.backends
            if self._hops.blocked(backend.address, now_s)
        )

    def _is_complete(self) -> bool:
        """The last pass knew what the checks know now."""
        found, known = self.health(), self.now.situation.health
        return found.keys() == known.keys() and all(
            status.health is known[ref].health for ref, status in found.items()
        )

    def refreshed(self) -> Situation:
        """The situation with the newest words of the checks."""
        last = self.now.situation
        health = self.health()
        if health.keys() != last.health.keys():
            return last  # a change is under way
        now = time.monotonic()
        influences = self.weigher.influences(last.config, now)
        found = verdicts(last.config, health, last.hops, influences)
        found = slowstart.slowed(last.config, found, self._up_since, now)
        return replace(last, health=health, verdicts=found)
