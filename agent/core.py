"""Owns the balancing itself: each pass turns health and next hops into the shared tables."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.alerts import Alerts
from agent.companion.watch import Companions
from agent.config.defaults import check_port
from agent.config.plan import added_and_removed, changed, gone_backends, part_of
from agent.config.seed import pick_seed
from agent.dataplane import survey
from agent.dataplane.events import lexicon_of
from agent.dataplane.program import Dataplane
from agent.dataplane.trace import Tracer, rings_of
from agent.dataplane.trueup import TrueUp
from agent.detecting import Detecting
from agent.errors import DataplaneError, SteelyardError
from agent.failover.plan import concerns
from agent.floods import Floods
from agent.flowsync import carry
from agent.guarding import Guarding
from agent.health.monitor import HealthMonitor, Target
from agent.history import History
from agent.holding import Holding
from agent.limiting import Limiting
from agent.logs import get_logger
from agent.metrics.observer import Observer
from agent.model import (
    Address,
    Backend,
    BackendRef,
    Config,
    Health,
    HealthStatus,
    Network,
    NextHop,
    Service,
)
from agent.network.claims import Watch
from agent.network.host import Host
from agent.network.nexthop import NextHops
from agent.network.paths import Paths
from agent.pair import detour
from agent.pair.agentstatus import AgentStatus, up_of
from agent.pair.pair import Pair
from agent.rebalancing import Rebalancer
from agent.reconcile.adopt import Adopted, adopt
from agent.reconcile.passes import Passes, Scope, joined
from agent.reconcile.reconciler import Reconciler
from agent.resetting import Ownership, Resetter
from agent.state.blocks import Block, Blocks
from agent.state.claims import Owner
from agent.state.desired import Surroundings, differing
from agent.state.guardview import Blocked
from agent.state.identities import Identities, member_of
from agent.state.situation import Situation, emptied, situation, verdicts
from agent.state.synflood import cookies_in
from agent.state.tables import TableContents
from agent.state.transitions import transitions
from agent.state.way import way_of
from agent.warming import Warming
from agent.weighing.weigher import Weigher

log = get_logger()

SAMPLE_S = 1.0
AUDIT_S = 30.0
SWEEP_EVERY = 10  # surveys
SURVEY_SHARE = 20  # surveys take at most one in so many seconds of a CPU's time
FIRST_CHECKS_S = 3.0
SPEEDS_TOLD_S = 5.0
ADOPTED_HOP_S = 10.0  # for neighbours that the kernel forgot while the agent was away


@dataclass(slots=True)
class Now:
    """The situation and the table contents after the last pass."""

    situation: Situation
    contents: TableContents


class Core:
    """The balancing of one instance; from ``start`` on, ``tasks`` keep it up to date."""

    now: Now
    observer: Observer
    tracer: Tracer

    def __init__(self, config: Config) -> None:
        self.config = config
        self.passes = Passes(self._pass_and_host)
        self._attach_problem = ""
        self._pin_problem = ""  # why something that was unpinned cannot be pinned again
        self.dataplane = Dataplane(config)
        self._hops = NextHops(config.interfaces, self._hops_changed, self._way_back)
        self._paths = Paths(self._hops.get, lambda: self.config)
        self._monitor = HealthMonitor(
            self._health_changed,
            self._hops.doubt,
            self._hops.blocked,
            self._served,
            self._paths.ask,
        )
        self.watch = Watch(config.interface, self._vips, self._owner_of)
        self._host = Host(config, lambda: self.passes.wake(()), self._owner_of)
        self.guarding = Guarding(config, self.dataplane)
        self.limiting = Limiting(self.dataplane)
        self.detecting = Detecting(
            self.dataplane,
            lambda service: self.pair.serves(service),
            lambda: self.guarding.blocks,
            self.guarding.lists_of,
            self._block_threats,
        )
        self.alerts = Alerts(
            self.dataplane,
            lambda: self.guarding.blocks,
            self.guarding.lists_of,
            lambda: self.detecting.sources,
            self._block_threats,
        )
        self._holding = Holding(self.dataplane)
        self.companions = Companions(self.dataplane, self._companions_changed)
        self._takeovers: set[asyncio.Task[None]] = set()  # of other balancers' blocks
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
        self._situation: Situation | None = None  # as of the last pass
        self._around: Surroundings | None = None  # as of the last pass
        self._warming: Warming
        # Some verdicts, and the backends that are usable according to them.
        self._usable: tuple[object, frozenset[BackendRef]] = None, frozenset()
        self._audit_at = 0.0  # the index of the service that is audited next
        # The inputs of the last ``up_of``, and its result.
        self._up_counts: tuple[object, Mapping[str, tuple[int, int]]] = None, {}

    # -- life cycle

    async def load(self) -> None:
        """Create or adopt the tables and the program; attach nothing yet."""
        sync = self.config.failover.sync.is_on
        await asyncio.to_thread(self.guarding.load)
        blocks = self._blocks_sources(self.config)
        load = self.dataplane.load
        await asyncio.to_thread(load, self.config.services, sync=sync, blocks=blocks)
        await asyncio.to_thread(carry.prepare, self.dataplane)
        self._reconciler = Reconciler(self.dataplane.tables, time.monotonic)
        self._trueup = TrueUp(self.dataplane.tables)
        self.weigher = Weigher(self.dataplane, self.passes.wake)
        self.tracer = Tracer(
            self.dataplane.tables.trace,
            lambda: rings_of(self.dataplane.program),
            lexicon_of(lambda: self.now.situation),
        )
        self.pair = Pair(
            self.dataplane,
            self._status,
            lambda: self.now.contents,
            self._hops.get,
            self._is_complete,
            lambda: self.guarding.blocks,
            self._blocked_elsewhere,
            lambda speeds: self.weigher.hear(speeds, time.monotonic()),
        )
        ownership = Ownership(self.pair.serves, self.pair.others)
        self._resetter = Resetter(self.dataplane, ownership)
        held = self._reconciler.read()
        self._adopted = adopt(self.config, held, time.time())
        self._floods = Floods(self.config, held)
        self.companions.adopt(cookies_in(self.config, held))
        self._warming = Warming(self._adopted.up, lambda: self.passes.wake(()))
        await self.pair.aim(self.config)
        self._pick_seed = await asyncio.to_thread(pick_seed, self.config)
        self.weigher.adopt(self.config, self._adopted.weights, time.monotonic())
        self._adopted_until = time.monotonic() + ADOPTED_HOP_S
        asyncio.get_running_loop().call_later(ADOPTED_HOP_S, self.passes.wake)
        self._aim(replace(self.config, services=()), self._adopted.health)

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the tasks that have to run during ``start`` and afterwards, by name."""
        return {
            "paths": self._paths.run(),
            "health": self._monitor.run(),
            "claims": self.watch.run(),
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
                    "threats": self.detecting.run(lambda: self.now.situation),
                    "alerts": self.alerts.run(self._seen),
                    "waiting clients": self._holding.run(self._seen),
                    "companions": self.companions.run(),
                    "speeds": self._tell_speeds(),
                }
            ).items()
        }

    async def _tell_speeds(self) -> None:
        """Tell the other balancers what was learned, for ever: who takes over balances, and gives
        clients their homes, as this one does.
        """
        while True:
            await asyncio.sleep(SPEEDS_TOLD_S)
            try:
                for speeds in self.weigher.speeds():
                    self.pair.tell_speeds(speeds)
                    await asyncio.sleep(0)  # thousands of backends take a while
            except Exception:  # the task's root: a defect here must not end the agent
                log.exception("telling the learned speeds broke")

    def _seen(self) -> tuple[Situation, TableContents]:
        return self.now.situation, self.now.contents

    async def _once_started(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await self._started.wait()
            await work
        finally:
            work.close()  # if the agent is told to stop before it has started

    async def start(self) -> None:
        """Bring the data plane from the adopted tables to the desired state.

        No packet sees a worse state on the way.
        """
        await self._hops.ready()
        if self.dataplane.takes_over and not self._adopted.health:
            await self._first_checks()
        await self._pass()
        self.rebalancer = Rebalancer(self.dataplane)
        resets = self._resetter.resets
        self.observer = Observer(
            self.dataplane,
            self.weigher,
            self.rebalancer,
            resets,
            self.companions,
            self._holding.waiting,
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
        except Exception as error:  # noqa: BLE001 (it balances already, and keeps trying)
            self.passes.failed(error)

    async def _first_checks(self) -> None:
        """Wait until the health checks have found which backends are up.

        The tables are new, because they have another ABI, and the old program goes on balancing
        meanwhile.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_CHECKS_S):
                while any(s.health is Health.CHECKING for s in self.health().values()):
                    await self.passes.woken()

    async def take(self, config: Config) -> Mapping[BackendRef, int]:
        """Run with another configuration; return when the tables hold it.

        The result is how many flows were reset, by removed backend. After an error the new
        configuration is kept all the same, and passes go on trying.
        """
        running = self.config
        moves_vips = concerns(running) != concerns(config)
        self.config = config
        await self.pair.aim(config)
        self._pick_seed = await asyncio.to_thread(pick_seed, config)
        self._aim(running)
        before, reset = self.now.situation, Counter[BackendRef]()
        try:
            reset.update(await self._resetter.remove(before, config))
            await self._pass_and_host(frozenset())
            reset.update(await self._resetter.remove(before, config))
        except (SteelyardError, OSError) as error:
            self.passes.failed(error)
            raise
        except Exception as error:
            self.passes.failed(error)
            raise DataplaneError(
                self.passes.problem,
                where="the new configuration",
                remedy="it is kept, and will be tried again; the log has the traceback",
            ) from error
        finally:
            if moves_vips:
                await self.pair.mastership.reload()
        return reset

    async def block(self, new: tuple[Block, ...], *, confirmed: bool) -> Blocked:
        """Drop what these sources send from now on, here and on the other balancers, and end their
        flows.
        """
        await self.guarding.block(new, confirmed=confirmed)
        prefixes = [each.prefix for each in new]
        informed = self._announce_blocks(prefixes)
        return Blocked(await self._refuse(), informed)

    async def _block_threats(self, new: tuple[Block, ...]) -> None:
        """Block sources because of what they do."""
        what = f"{', '.join(str(each.prefix) for each in new)} blocked"
        async with self.guarding.recording("lb-agent", "blocks", what):
            await self.block(new, confirmed=False)

    async def unblock(self, prefixes: tuple[Network, ...]) -> int:
        """Serve these sources again, here and on the other balancers; return how many of those
        were informed.
        """
        await self.guarding.unblock(prefixes)
        return self._announce_blocks(prefixes)

    def _announce_blocks(self, prefixes: Iterable[Network]) -> int:
        """Send the state of blocks to the other balancers; return to how many."""
        known = self.guarding.blocks
        # A block of one second may be over by now.
        return self.pair.tell_blocks({each: known[each] for each in prefixes if each in known})

    async def _refuse(self) -> int:
        """Make the program drop what blocked sources send, and end their flows; return how many."""
        if not self.dataplane.features.guard:
            await self._pass()
        return sum((await self._resetter.end_blocked(self.now.situation)).values())

    def _blocked_elsewhere(self, received: Blocks) -> None:
        """Take over blocks that another balancer has made or undone."""

        async def take() -> None:
            await self._started.wait()
            try:
                if await self.guarding.take_over(received):
                    await self._refuse()
            except (SteelyardError, OSError) as error:
                log.error("blocks of another balancer are not taken over", problem=str(error))
            except Exception:  # this task's root
                log.exception("taking over blocks broke")

        task = asyncio.create_task(take())
        self._takeovers.add(task)
        task.add_done_callback(self._takeovers.discard)

    # -- queries

    @property
    def problem(self) -> str:
        """What is not as it should be at present; empty: nothing."""
        own = self._attach_problem or self._pin_problem or self.passes.problem
        return own or self.guarding.problem

    @property
    def link_problems(self) -> tuple[str, ...]:
        """The interfaces that receive no packets, in words."""
        return self._hops.troubles()

    def identities(self, config: Config) -> Identities:
        """Return the ids of a configuration; DataplaneError if the tables cannot hold it."""
        return self._reconciler.identities(config)

    def emptied(self, new: Config) -> frozenset[str]:
        """Return the services that have a usable backend now, but would have none with another
        configuration.
        """
        now = self.now.situation
        names = changed(now.config, new)
        part = new if names is None else part_of(new, names)
        return emptied(now, part, self.health(), self.weigher.influences)

    def health(self) -> dict[BackendRef, HealthStatus]:
        """Return the current health of every backend."""
        return self._monitor.statuses()

    # -- tasks

    def _hops_changed(self, addresses: Collection[Address] | None) -> None:
        if addresses is None:
            self.passes.wake()
            return
        self.passes.wake(
            service.name
            for service in self.config.services
            if any(backend.address in addresses for backend in service.backends)
        )

    def _vips(self) -> set[Address]:
        """Return the VIPs that can be put on an interface: those that are not prefixes."""
        return {s.key.vip for s in self.config.services if s.key.vip_bits is None}

    def vip_problems(self) -> tuple[str, ...]:
        """Return which VIPs are missing here, and which other hosts answer for those present."""
        return (*self._host.problems(), *self.watch.problems())

    def _owner_of(self, mac: str) -> Owner | None:
        """Return the configured host on the segment that has a MAC; None: there is none."""

        def has(address: Address) -> bool:
            hop = self._hops.get(address)
            return hop.on_link and hop.mac == mac

        for service in self.config.services:
            for backend in service.backends:
                if has(backend.address):
                    return Owner(f"{backend.name} ({backend.address})")
        peers = (each for each in self.config.failover.sync.peers if has(each))
        return next((Owner(str(each), is_balancer=True) for each in peers), None)

    def _companions_changed(self) -> None:
        self.passes.wake(s.name for s in self.config.services if s.gives_cookies)

    def _way_back(self) -> None:
        log.info("an interface takes packets again: everybody is checked soon")
        self._monitor.resume()

    def _health_changed(self, ref: BackendRef, old: HealthStatus, new: HealthStatus) -> None:
        # The next pass logs the consequences.
        log.debug(
            "health", backend=str(ref), old=old.health.value, new=new.health.value, why=new.reason
        )
        if old.health is Health.DOWN and new.health is Health.UP:
            self.weigher.recovered(ref)
        self.passes.wake((ref.service,))

    def _served(self, ref: BackendRef) -> int:
        """Return how many requests of clients a backend has answered without an error."""
        if not self._started.is_set() or ref not in self.observer.outcomes.tallies:
            return 0
        tally = self.observer.outcomes.tallies[ref]
        return tally.answers - tally.errors

    async def _reconcile(self) -> None:
        await self._started.wait()
        await self.passes.run()

    async def _pass_and_host(self, scope: Scope) -> None:
        await self._pass(scope)
        await self._sync_host()

    async def _sample(self) -> None:
        await self._started.wait()
        while True:
            await asyncio.sleep(SAMPLE_S)
            try:
                await self._sample_once(time.monotonic())
            except Exception:  # this task's root: statistics must not end the balancing
                log.exception("sampling broke")

    async def _sample_once(self, now: float) -> None:
        # The pins come first: with `hook: external` the program is called by them.
        lacking = self.dataplane.lacks_pins
        self._pin_problem = await asyncio.to_thread(self.dataplane.keep_pins) if lacking else ""
        if self.dataplane.is_attached():
            self._attach_problem = ""
        else:
            await self._attach_again()
        self.observer.sample(self.now.situation, now)
        if flooded := self._floods.take(self.config, self.observer.syns, now):
            self.passes.wake(flooded)
        await self._audit()
        # From here on, neither of these reads a ring buffer of a replaced program.
        self.tracer.refresh()
        self.pair.refresh()
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
        """Feed the weigher with outcomes, and with round trips measured by the health checks."""
        last = self.now.situation
        if last.verdicts is not self._usable[0]:
            usable = frozenset(ref for ref, verdict in last.verdicts.items() if verdict.usable)
            self._usable = last.verdicts, usable
        flooded, outcomes = self._floods.services, self.observer.outcomes
        self.weigher.sample(last.config, self._usable[1], self._rtt_s, outcomes, flooded, now)

    def _rtt_s(self, ref: BackendRef) -> float | None:
        try:
            found = self._monitor.status(ref).latency_ms
        except KeyError:
            return None  # it was removed since the last pass
        return None if found is None else found / 1000

    async def _audit(self) -> None:
        """Run a pass over the services whose turn it is, although nothing is known to have changed.

        Every service gets its turn within ``AUDIT_S``. So foreign changes to the tables, and events
        that we missed, are corrected.
        """
        services = self.config.services
        first = self._audit_at if self._audit_at < len(services) else 0.0
        self._audit_at = first + len(services) * SAMPLE_S / AUDIT_S
        due = frozenset(each.name for each in services[int(first) : int(self._audit_at)])
        if not due:
            return
        try:
            await self._pass(due)
        except Exception as error:  # noqa: BLE001 (the retry covers all of them)
            self.passes.failed(error)

    async def _attach_again(self) -> None:
        """Attach the program again after it was detached, unless another one is attached now."""
        try:
            await asyncio.to_thread(self.dataplane.attach)
        except (SteelyardError, OSError) as error:
            if str(error) != self._attach_problem:
                log.error("detached by somebody else", problem=str(error))
            self._attach_problem = str(error)
        else:
            why = "the program was gone from the interface"
            log.warning("attached again", interface=self.config.interface, why=why)
            self._attach_problem = ""

    # -- a pass

    def _aim(
        self, before: Config, initial: Mapping[BackendRef, HealthStatus] | None = None
    ) -> None:
        """Point health checks and next hops at the backends that have changed since ``before``.

        ``initial``: the known health of backends; None: a renamed backend keeps its health.
        """
        config = self.config
        come, gone = added_and_removed(before, config)
        old = {_ref(s, b): member_of(s, b) for s in gone for b in s.backends}
        new = {_ref(s, b): (s, b) for s in come for b in s.backends}
        if initial is None:
            health = {member: self._monitor.status(ref) for ref, member in old.items()}
            members = {ref: member_of(*pair) for ref, pair in new.items()}
            initial = {ref: health[m] for ref, m in members.items() if m in health}
        targets = {
            ref: Target(s.health, b.address, check_port(s, b), initial.get(ref), way_of(s, b))
            for ref, (s, b) in new.items()
        }
        self._monitor.change(targets, old.keys() - new.keys())
        self.weigher.aim(config, time.monotonic())
        self.companions.aim(config)
        now, then = ({b.address for s in one for b in s.backends} for one in (come, gone))
        if now != then or config.failover is not before.failover:
            self._hops.set_addresses(_addresses(config) | detour.addresses(config))

    def _hop(self, address: Address) -> NextHop:
        """Return the next hop from netlink, or shortly after a restart the one in the tables."""
        hop = self._hops.get(address)
        if hop.mac is None and time.monotonic() < self._adopted_until:
            return self._adopted.hops.get(address, hop)
        return hop

    async def _pass(self, scope: Scope = None) -> None:
        """Bring the tables up to date for the services in ``scope``.

        Services whose configuration has changed since the last pass, and those whose weights grow,
        are added to them. For all others, the results of the last pass still hold.
        """
        async with self._passing:
            config, past = self.config, self._situation
            scope = joined(scope, self._warming.due(time.monotonic()))
            scope = joined(scope, changed(past.config, config) if past else None)
            part = config if scope is None else part_of(config, scope)
            now = time.monotonic()
            hops = {address: self._hop(address) for address in _addresses(part)}
            health = self._monitor.statuses()
            self.weigher.refresh(part.services, now)
            found = verdicts(part, health, hops, self.weigher.influences)
            found = self._warming.take(config, part, found, now)
            if past is not None and scope is not None:
                hops = {**_still(past, config), **hops}
                # Keep the health as old as the verdicts, or they would seem as new as the checks.
                health = {**past.health, **{ref: health[ref] for ref in found}}
                found = {**past.verdicts, **found}
                for ref in gone_backends(past.config, config):
                    del found[ref], health[ref]
            await self._ensure_features(config)
            if self.guarding.is_behind(config):
                ids = self._reconciler.identities(config)
                await self.guarding.sync(config, ids)
                self.limiting.sync(config, ids)
            around = Surroundings(
                found,
                hops,
                self.dataplane.ifindex,
                self.dataplane.clock.ticks,
                self.weigher.draws,
                self._pick_seed,
                self._floods.services,
                self.companions.ready(config, found),
            )
            last, self._around = self._around, None
            scope = joined(scope, differing(last, around) if last else None)
            done = await self._reconciler.run(config, around, scope)
            self._around = around
            at = time.time()
            fresh = situation(self._past, config, done.ids, health, hops, found, at, past, part)
            for line in transitions(self._past, past, fresh, part):
                log.log(line.level.number, line.event, **line.fields)
            self._past, self._situation = fresh.past, fresh
            self.now = Now(fresh, done.contents)
            self._holding.passed(fresh)
            if past is None or past.config is not config or past.ids is not done.ids:
                self.weigher.place(config, done.ids)
            self.tracer.refresh()
            self.pair.refresh()
            self.pair.mastership.wake()

    async def _ensure_features(self, config: Config) -> None:
        if not self._started.is_set():
            return
        sync, blocks = config.failover.sync.is_on, self._blocks_sources(config)
        needed = self.dataplane.ensure_features
        await asyncio.to_thread(needed, config.services, sync=sync, blocks=blocks)

    def _blocks_sources(self, config: Config) -> bool:
        """Return whether the program has to support blocks, whatever the services want."""
        return self.guarding.is_used or config.suricata.blocks

    async def _sync_host(self) -> None:
        await self._host.sync(lambda: (self.config, self.dataplane.attachment.mode))

    # -- for the other balancers

    async def say_goodbye(self) -> None:
        """Announce that this agent ends."""
        if self._started.is_set():  # otherwise nobody knows of it yet
            await self.pair.say_goodbye()

    def _status(self) -> AgentStatus:
        """Return what the failover process needs to know about this agent."""
        attached = self.dataplane.is_attached()
        why = "" if attached else self.problem or "not attached"
        blocked, now = self._blocked(), self.now.situation
        counted_of, up = self._up_counts
        if (now.verdicts, blocked) != counted_of:  # mostly the same object
            up = up_of(now, blocked)
        self._up_counts = (now.verdicts, blocked), up  # the newest object: compared fast next time
        return AgentStatus(attached, why, up)

    def _blocked(self) -> frozenset[BackendRef]:
        """Return the backends that cannot be reached because of an interface of this host."""
        blocked = self._hops.all_blocked(asyncio.get_running_loop().time())
        if not blocked:
            return frozenset()
        return frozenset(
            _ref(service, backend)
            for service in self.now.situation.config.services
            for backend in service.backends
            if backend.address in blocked
        )

    def _is_complete(self) -> bool:
        """Return whether the last pass knew what the health checks know now."""
        found, known = self.health(), self.now.situation.health
        return found.keys() == known.keys() and all(
            status.health is known[ref].health for ref, status in found.items()
        )

    def refreshed(self) -> Situation:
        """Return the situation with the newest results of the health checks."""
        last = self.now.situation
        health = self.health()
        if health.keys() != last.health.keys():
            return last  # a change is under way
        was = last.health
        other = {ref.service for ref, status in health.items() if _differs(status, was[ref])}
        part = part_of(last.config, frozenset(other))
        found = verdicts(part, health, last.hops, self.weigher.influences)
        found = self._warming.slowed(part, found, time.monotonic())
        return replace(last, health=health, verdicts={**last.verdicts, **found})


def _differs(one: HealthStatus, other: HealthStatus) -> bool:
    """Return whether two statuses differ in health or reason, not just in the last check's time."""
    return one is not other and (one.health, one.reason) != (other.health, other.reason)


def _addresses(config: Config) -> set[Address]:
    return {backend.address for service in config.services for backend in service.backends}


def _ref(service: Service, backend: Backend) -> BackendRef:
    return BackendRef(service.name, backend.name)


def _still(past: Situation, config: Config) -> Mapping[Address, NextHop]:
    """Return the past next hops of the addresses that are still configured."""
    come, gone = (
        {backend.address for service in services for backend in service.backends}
        for services in added_and_removed(past.config, config)
    )
    if not gone - come:
        return past.hops
    wanted = _addresses(config)
    return {address: hop for address, hop in past.hops.items() if address in wanted}
