"""Wires the agent together: the only place where health, next hops, tables and API meet."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from agent import __version__
from agent.api.server import ApiServer
from agent.config.edit import Edit, apply_edit
from agent.config.load import read_text
from agent.config.plan import Change, global_changes, plan
from agent.config.store import LoadedRunning, RunningStore
from agent.dataplane.explain import DataplaneView, explain
from agent.dataplane.flows import Names, query_flows
from agent.dataplane.program import Dataplane
from agent.errors import ConfigError, SteelyardError
from agent.health import rules
from agent.health.monitor import HealthMonitor, Target
from agent.lock import InstanceLocks
from agent.metrics import collector
from agent.metrics.observer import AgentFacts, Observer
from agent.model import Address, BackendRef, Config, Health, HealthStatus, NextHop
from agent.network.nexthop import NextHops
from agent.network.vips import Vips
from agent.notify import Notifier
from agent.reconcile.reconciler import Pass, Reconciler
from agent.state.assemble import track
from agent.state.desired import Surroundings
from agent.state.identities import slot_of
from agent.state.queries import Explanation, FiveTuple, FlowPage, FlowQuery
from agent.state.situation import Situation, service_states, verdicts
from agent.state.snapshot import Snapshot
from agent.state.tables import TableContents

log = structlog.get_logger()

SAMPLE_S = 1.0
SURVEY_EVERY = 2  # samples
SWEEP_EVERY = 10  # samples
RETRY_S = (0.2, 1.0, 5.0)
NEIGHBOUR_PATIENCE_S = 2.0  # for neighbours that the tables had and the kernel forgot
ADOPTED_HOP_S = 10.0


class Agent:
    """One running agent. Implements ``agent.api.control.Control``."""

    def __init__(self, config_path: Path, loaded: LoadedRunning, store: RunningStore) -> None:
        self._path = config_path
        self._store = store
        self._loaded = loaded
        self._config = loaded.config
        self._facts = AgentFacts(
            version=__version__,
            name=loaded.config.name,
            pid=os.getpid(),
            started=time.time(),
            config_path=str(config_path),
            driver=_driver(loaded.config.interface),
            config_problem=loaded.problem,
            changes_since_file=len(loaded.changes),
        )
        self._notifier = Notifier.from_environment(os.environ, os.getpid())
        self._dirty = asyncio.Event()
        self._changing = asyncio.Lock()  # one change of the configuration at a time
        self._passing = asyncio.Lock()  # one pass of reconcile at a time
        self._monitor = HealthMonitor(self._health_changed)
        self._hops = NextHops(loaded.config.interface, self._dirty.set)
        self._vips = Vips(loaded.config.interface)
        self._dataplane: Dataplane
        self._reconciler: Reconciler
        self._observer: Observer
        self._adopted_hops: dict[Address, NextHop] = {}
        self._situation: Situation
        self._contents: TableContents

    # -- the life of the agent

    async def run(self, stop: asyncio.Event) -> None:
        """Balance until ``stop``. The data plane goes on afterwards, as it is."""
        locks = InstanceLocks(self._config.name, self._config.interface)
        self._dataplane = Dataplane(self._config)
        await asyncio.to_thread(self._dataplane.load, self._config.services)
        self._reconciler = Reconciler(self._dataplane.tables, time.monotonic)
        self._contents = self._reconciler.read()
        self._monitor.set_targets(self._targets(self._adopt()))
        self._hops.set_addresses(self._addresses())
        server = ApiServer(
            self,
            self._config.socket,
            self._config.socket_group,
            self._config.metrics_listen,
            metrics=collector.render,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(work, name=name)
                for name, work in self._background().items()
            ]
            await self._begin()
            try:
                await server.start()
                self._notifier.ready(self._status_line())
                log.info("ready", **self._summary())
                await stop.wait()
                self._notifier.stopping("the data plane goes on")
                log.info("stopping; the data plane goes on")
            finally:
                await server.stop()
                for task in running:
                    task.cancel()
        del locks

    def _background(self) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "health": self._monitor.run(),
            "next hops": self._hops.run(),
            "reconcile": self._reconcile_for_ever(),
            "sample": self._sample_for_ever(),
            "watchdog": self._watchdog_for_ever(),
        }

    async def _begin(self) -> None:
        """From adopted tables to a running data plane, without a packet seeing a worse state."""
        await self._wait_for_hops()
        await self._pass()
        self._observer = Observer(self._dataplane)
        self._observer.sample(self._situation, time.monotonic())
        self._dataplane.attach()
        log.info(
            "attached",
            interface=self._config.interface,
            mode=self._dataplane.attachment.mode.value,
            why=self._dataplane.attachment.reason,
        )
        await self._sync_vips()

    async def _wait_for_hops(self) -> None:
        """Wait for the first answers of netlink, and a little for neighbours that were known."""
        await self._hops.ready()
        deadline = time.monotonic() + NEIGHBOUR_PATIENCE_S
        while time.monotonic() < deadline and any(
            self._hops.get(address).mac is None for address in self._addresses()
        ):
            await asyncio.sleep(0.02)

    async def _watchdog_for_ever(self) -> None:
        interval = self._notifier.watchdog_interval_s
        while interval is not None:
            self._notifier.watchdog()
            await asyncio.sleep(interval)

    async def _sample_for_ever(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(SAMPLE_S)
            count += 1
            if not hasattr(self, "_observer"):
                continue
            self._observer.sample(self._situation, time.monotonic())
            if count % SURVEY_EVERY == 0:
                found = await self._observer.look_at_flows()
                if count % SWEEP_EVERY == 0:
                    self._reconciler.sweep(found)
            if not self._dataplane.is_attached():
                self._reattach()

    def _reattach(self) -> None:
        """Somebody took the program off: put it back, unless another one sits there now."""
        try:
            self._dataplane.attach()
            log.warning("attached again: the program was off", interface=self._config.interface)
        except SteelyardError as error:
            self._facts = replace(self._facts, reconcile_problem=str(error))

    # -- what is, and what should be

    def _adopt(self) -> dict[BackendRef, HealthStatus]:
        """What the pinned tables say of the backends that are configured."""
        now = time.time()
        held = {(e.service_id, e.address): e for e in self._contents.backends.values()}
        found = {}
        for service in self._config.services:
            entry = self._contents.services.get(slot_of(service.key))
            for backend in service.backends:
                kept = held.get((entry.id, backend.address)) if entry else None
                if kept is None:
                    continue
                if kept.usable or kept.alive:
                    health = Health.UP if kept.usable else Health.CHECKING
                    self._adopted_hops[backend.address] = NextHop(
                        address=backend.address,
                        ifindex=kept.ifindex,
                        mac=kept.mac,
                        source_mac=kept.source_mac,
                        mtu=kept.mtu,
                        on_link=True,
                        source=kept.source,
                        reason="as before the restart",
                    )
                else:
                    health = Health.DOWN
                found[BackendRef(service.name, backend.name)] = rules.adopted(health, now)
        return found

    def _targets(self, initial: dict[BackendRef, HealthStatus]) -> dict[BackendRef, Target]:
        targets = {}
        for service in self._config.services:
            port = service.health.port or service.key.port
            for backend in service.backends:
                ref = BackendRef(service.name, backend.name)
                targets[ref] = Target(service.health, backend.address, port, initial.get(ref))
        return targets

    def _addresses(self) -> set[Address]:
        return {b.address for service in self._config.services for b in service.backends}

    def _hop_of(self, address: Address) -> NextHop:
        """What netlink says; shortly after a restart, what the tables had."""
        hop = self._hops.get(address)
        if hop.mac is None and time.time() - self._facts.started < ADOPTED_HOP_S:
            adopted = self._adopted_hops.get(address)
            if adopted is not None:
                return replace(adopted, ifindex=hop.ifindex or self._ifindex)
        return hop

    @property
    def _ifindex(self) -> int:
        return self._dataplane.ifindex

    def _look_around(self, config: Config) -> tuple[dict[Address, NextHop], Any]:
        hops = {address: self._hop_of(address) for address in self._addresses()}
        return hops, verdicts(config, self._monitor.statuses(), hops)

    def _health_changed(self, ref: BackendRef, old: HealthStatus, new: HealthStatus) -> None:
        log.info(
            "health", backend=str(ref), old=old.health.value, new=new.health.value, why=new.reason
        )
        self._dirty.set()

    async def _reconcile_for_ever(self) -> None:
        failures = 0
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not hasattr(self, "_observer"):
                await asyncio.sleep(0.05)  # the first pass is under way
                self._dirty.set()
                continue
            try:
                await self._pass()
                await self._sync_vips()
            except (SteelyardError, OSError) as error:
                self._facts = replace(self._facts, reconcile_problem=str(error))
                wait = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                log.error("reconcile failed", problem=str(error), retry_s=wait)
                asyncio.get_running_loop().call_later(wait, self._dirty.set)
            else:
                failures = 0
                self._facts = replace(self._facts, reconcile_problem="")

    async def _pass(self) -> Pass:
        """Make the tables what they should be, now."""
        async with self._passing:
            config = self._config
            hops, found = self._look_around(config)

            def surroundings() -> Surroundings:
                return Surroundings(found, hops, self._ifindex, self._dataplane.clock.ticks)

            if hasattr(self, "_observer"):
                await asyncio.to_thread(self._dataplane.ensure_features, config.services)
            done = await self._reconciler.run(config, surroundings)
            self._contents = done.contents
            self._settle(config, done, hops, found)
            return done

    def _settle(self, config: Config, done: Pass, hops: dict[Address, NextHop], found: Any) -> None:
        """Note what is true now, and log what changed."""
        now = time.time()
        before = getattr(self, "_situation", None)
        backends = {}
        for ref, verdict in found.items():
            old = before.backends.get(ref) if before else None
            backends[ref] = track(old, verdict.state, now)
            if old is not None and old.state is not verdict.state:
                log.info(
                    "backend",
                    backend=str(ref),
                    old=old.state.value,
                    new=verdict.state.value,
                    why=verdict.reason,
                )
        services = {}
        for name, (state, reason) in service_states(config, found).items():
            was = before.services.get(name) if before else None
            services[name] = track(was, state, now)
            if was is not None and was.state is not state:
                log.info(
                    "service", service=name, old=was.state.value, new=state.value, why=reason
                )
        self._situation = Situation(
            config, done.ids, self._monitor.statuses(), hops, found, backends, services
        )
        if done.steps:
            self._notifier.status(self._status_line())

    async def _sync_vips(self) -> None:
        if self._config.manage_vips:
            wanted = frozenset(service.key.vip for service in self._config.services)
            await self._vips.sync(wanted)

    def _status_line(self) -> str:
        up = sum(v.usable for v in self._situation.verdicts.values())
        return (
            f"{len(self._config.services)} services, {up} of "
            f"{len(self._situation.verdicts)} backends up on {self._config.interface}"
        )

    def _summary(self) -> dict[str, object]:
        return {
            "name": self._config.name,
            "interface": self._config.interface,
            "services": len(self._config.services),
            "features": ",".join(self._dataplane.features.names),
            "compile_ms": round(self._dataplane.program.compile_s * 1000),
        }

    # -- agent.api.control.Control

    def snapshot(self) -> Snapshot:
        """Everything, as of now."""
        situation = replace(self._situation, health=self._monitor.statuses())
        fresh = verdicts(situation.config, situation.health, situation.hops)
        situation = replace(situation, verdicts=fresh)
        return self._observer.snapshot(situation, self._contents, self._facts, time.time())

    def config(self) -> Config:
        """The running configuration."""
        return self._config

    def file_changes(self) -> tuple[Change, ...]:
        """What the running configuration has that the file does not."""
        return plan(self._loaded.file_config, self._config)

    async def edit(self, edit: Edit, dry_run: bool) -> tuple[Change, ...]:
        """Change the running configuration, or say what would change."""
        async with self._changing:
            new = apply_edit(self._config, edit)
            changes = plan(self._config, new)
            self._reconciler.identities(new)  # refuses what the tables cannot hold
            if changes and not dry_run:
                since_file = plan(self._loaded.file_config, new)
                self._store.save(new, self._loaded.file_digest, since_file)
                self._facts = replace(self._facts, changes_since_file=len(since_file))
                await self._take(new, changes)
            return changes

    async def reload(self) -> tuple[Change, ...]:
        """Read the configuration file again. A bad one changes nothing, and status says so."""
        async with self._changing:
            self._notifier.reloading()
            try:
                return await self._reload()
            except SteelyardError as error:
                self._facts = replace(self._facts, config_problem=str(error))
                log.error("reload refused; the last good configuration stays", problem=str(error))
                raise
            finally:
                self._notifier.ready(self._status_line())

    async def _reload(self) -> tuple[Change, ...]:
        loaded = self._store.load(read_text(self._path), str(self._path))
        fixed = global_changes(self._config, loaded.file_config)
        needs_restart = [change.field for change in fixed if change.needs_restart]
        if needs_restart:
            raise ConfigError(
                f"a reload cannot change {', '.join(needs_restart)}",
                where=str(self._path),
                remedy="restart the agent: no flow moves meanwhile",
            )
        changes = plan(self._config, loaded.config)
        self._reconciler.identities(loaded.config)
        for dropped in loaded.dropped:
            log.warning("the file changed, so a runtime change is dropped", change=dropped)
        self._loaded = loaded
        self._facts = replace(
            self._facts,
            config_problem=loaded.problem,
            changes_since_file=len(loaded.changes),
        )
        await self._take(loaded.config, changes)
        return changes

    async def _take(self, config: Config, changes: tuple[Change, ...]) -> None:
        """Run with another configuration; returns when the tables hold it."""
        self._config = config
        for change in changes:
            log.info("change", change=str(change))
        self._monitor.set_targets(self._targets({}))
        self._hops.set_addresses(self._addresses())
        try:
            await self._pass()
            await self._sync_vips()
        except (SteelyardError, OSError):
            self._dirty.set()  # accepted all the same: the loop goes on trying
            raise

    def flows(self, query: FlowQuery) -> FlowPage:
        """Recorded flows that match."""
        dataplane = self._dataplane
        return query_flows(
            dataplane.tables,
            self._names(),
            query,
            dataplane.keys,
            dataplane.clock,
            dataplane.now_jiffies(),
        )

    def explain(self, tuple5: FiveTuple) -> Explanation:
        """What the data plane would do with the next packet of a flow, and why."""
        dataplane = self._dataplane
        view = DataplaneView(
            dataplane.tables,
            self._contents,
            self._names(),
            dataplane.keys,
            dataplane.clock,
            dataplane.now_jiffies(),
        )
        return explain(view, tuple5)

    def _names(self) -> Names:
        ids = self._situation.ids
        services, salts, backends = {}, {}, {}
        for service in self._situation.config.services:
            ident, salt = ids.services[slot_of(service.key)]
            services[ident], salts[ident] = service.name, salt
            for backend in service.backends:
                ref = BackendRef(service.name, backend.name)
                backends[ids.backends[ident, backend.address]] = ref
        return Names(services, backends, salts)


def _driver(interface: str) -> str:
    """The driver's name, for people; empty where the kernel does not say."""
    link = Path("/sys/class/net") / interface / "device" / "driver"
    return link.resolve().name if link.exists() else ""
