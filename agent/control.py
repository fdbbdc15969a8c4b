"""Implements ``agent.api.control.Control``: what the API may ask of the agent."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.api import views
from agent.auditlog import AuditLog
from agent.config import layers, live
from agent.config.edit import Edit, EditOp, apply_edits, rollback_edit, with_services
from agent.config.load import read_text
from agent.config.origins import Origin, Setting, origins
from agent.config.plan import (
    TABLE_FIELDS,
    Action,
    Change,
    Planner,
    global_changes,
    keeping,
    plan,
    settings_change,
)
from agent.config.reverts import Revert
from agent.config.store import LoadedRunning, RunningStore
from agent.config.versions import Act, Author, Version
from agent.core import Core
from agent.dataplane.explain import DataplaneView, explain
from agent.dataplane.flows import names_of, query_flows, top_sources
from agent.dataplane.trace import Follower
from agent.discovery.run import Discovery, Flows, Found, SourceView, found_in, path_of
from agent.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    OvertakenError,
    SteelyardError,
)
from agent.files import check_trusted
from agent.fleet.saved import Saved
from agent.fleet.versions import Documents, FleetVersion, Trial
from agent.fleetcontrol import FleetControl
from agent.garbage import lasting_objects
from agent.hostfacts import check_accounts, look
from agent.hosttier import HostTier
from agent.journal import Journal
from agent.logs import get_logger
from agent.metrics.observer import AgentFacts
from agent.model import Address, BackendRef, Config, Network
from agent.notify import Notifier
from agent.reverting import Reverting
from agent.state.auditlog import changes_text
from agent.state.causes import Troubles, troubles
from agent.state.events import TraceQuery
from agent.state.guardview import Blocked, BlockOrder, Verdicts
from agent.state.journal import Entry, Query, Tally
from agent.state.matrix import Matrix
from agent.state.moves import Moved, MoveOrder
from agent.state.queries import (
    Explanation,
    FiveTuple,
    FlowPage,
    FlowQuery,
    ListQuery,
    TopPage,
    TopQuery,
)
from agent.state.situation import Situation
from agent.state.snapshot import Page, Snapshot
from agent.state.sources import SourceState

log = get_logger()

SAVE_AGAIN_S = 2.0
RECENT_S = 3600.0
OVERTAKEN_AGAIN = 5  # times that a change is made anew because another balancer was faster
MAX_LOGGED_CHANGES = 50  # changes of one order with a log line each; the history has all
_AGENT = Author("lb-agent")
_HANGUP = Author("SIGHUP")
_START = Act("start", _AGENT)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a file asks for: its base, what would run, and the changes."""

    loaded: LoadedRunning
    config: Config
    changes: tuple[Change, ...]


class AgentControl:
    """Reads and changes one running agent."""

    def __init__(
        self,
        core: Core,
        path: Path,
        loaded: LoadedRunning,
        store: RunningStore,
        facts: AgentFacts,
        notifier: Notifier,
        journal: Journal,
        sources: Mapping[str, SourceState],
        audit: AuditLog,
        saved: Saved | None = None,
    ) -> None:
        """``loaded.config`` has the services that are to run; ``saved`` is of which version."""
        self._core = core
        self._path = path
        self._loaded = loaded
        self._store = store
        self._facts = facts
        self._notifier = notifier
        self._journal = journal
        self._audit = audit
        self._base = replace(core.config, services=loaded.config.services)  # see ``layers``
        self._found = found_in(sources)
        self._own: frozenset[Address] = frozenset()  # addresses of this host
        self.discovery = Discovery(
            path_of(store.path.parent, core.config.name),
            sources,
            lambda: self._base.services,
            self._take_found,
            self._flows_of_targets,
        )
        self.reverting = Reverting(
            store.path.parent / f"{core.config.name}.reverts.json",
            lambda: core.config,
            self._undo,
        )
        self.fleet: FleetControl | None = None
        if core.config.fleet.is_on:
            self.fleet = FleetControl(core, saved, self._take_version, lambda: self._base)
        self.tier = HostTier(core.config.socket)
        self._since_file = Planner()
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """Make one change of the configuration at a time."""
        async with self._lock:
            with lasting_objects():
                yield

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the tasks that have to run once the agent balances, by name."""
        return {
            "discovery": self.discovery.run(),
            "changes for a time": self.reverting.run(),
            "tier": self.tier.run(),
            **(self.fleet.member.tasks() if self.fleet else {}),
        }

    async def snapshot(self, services: Collection[str] | None = None) -> Snapshot:
        """Return a snapshot as of about now, of these services only if any are named."""
        core = self._core
        facts = replace(
            self._facts,
            reconcile_problem=core.problem,
            unsaved_problem=self._store.problem or core.guarding.unsaved,
            audit_problem=self._audit.problem,
            defects=core.passes.defects,
            events=dict(self._journal.counts),
            link_problems=core.link_problems,
            vip_problems=core.vip_problems(),
            sources=dict(self.discovery.states),
            discovery_problems=self.discovery.problems(),
            failover=core.pair.view(),
            fleet=self.fleet.member.status() if self.fleet else None,
            tier=self.tier.status,
            guard=replace(
                core.guarding.view(core.config),
                limits=core.limiting.view(core.config, core.now.situation.ids),
                threats=core.detecting.view({s.name: s for s in core.config.services}),
                threats_blocked=core.detecting.blocked_total,
                alerts=core.alerts.view(),
            ),
        )
        return await core.observer.snapshot(
            core.refreshed(), core.now.contents, facts, time.time(), services
        )

    async def page(self, of: str, query: ListQuery) -> Page:
        """Return a page of backends, or of services if ``of`` is "services"."""
        core = self._core
        now, at = core.refreshed(), time.time()
        if of == "services":
            return core.observer.page_of_services(now, query, at)
        return await core.observer.page_of_backends(now, core.now.contents, query, at)

    def matrix(self) -> Matrix:
        """Return all backends, by server and service."""
        return self._core.observer.matrix(self._core.refreshed())

    def is_attached(self) -> bool:
        """Return whether our program is attached to every interface."""
        return self._core.dataplane.is_attached()

    def config(self) -> Config:
        """Return the running configuration."""
        return self._core.config

    def file_changes(self) -> tuple[Change, ...]:
        """Return the changes in the running configuration that are not in the file."""
        return self._since_file.plan(self._loaded.file_config, self._base)

    async def edit(
        self,
        *edits: Edit,
        dry_run: bool = False,
        confirmed: bool = False,
        for_s: float | None = None,
        trial: Trial | None = None,
        author: Author = _AGENT,
    ) -> tuple[Change, ...]:
        """Apply all edits to the running configuration or none, or say what would change.

        ``for_s``: how long they hold; None: until they are changed again. ``trial``: which
        balancers of the fleet try them first.
        """
        return await self._unless_overtaken(
            lambda: self._edit(edits, dry_run, confirmed, for_s, trial, author)
        )

    async def _unless_overtaken(
        self, change: Callable[[], Awaitable[tuple[Change, ...]]]
    ) -> tuple[Change, ...]:
        """Make a change; make it anew if another balancer of the fleet was faster."""
        for _ in range(OVERTAKEN_AGAIN):
            try:
                return await change()
            except OvertakenError:
                if self.fleet is not None:
                    await self.fleet.member.caught_up()
        return await change()

    async def _edit(
        self,
        edits: tuple[Edit, ...],
        dry_run: bool,
        confirmed: bool,
        for_s: float | None,
        trial: Trial | None,
        author: Author,
    ) -> tuple[Change, ...]:
        async with self._changing():
            # Edits that name what they remove are intended; only a whole set has to be confirmed.
            asks = any(edit.op is EditOp.SERVICES_APPLY for edit in edits) and not confirmed
            confirm = "lbctl apply --yes" if asks else ""
            running = self._core.config
            base = apply_edits(self._base, list(layers.written(running, edits, self._found)))
            act = Act("edit", author)
            if dry_run:
                return await self._change(base, dry_run, confirm, act, trial)
            before = self.reverting.pending
            after = await self.reverting.begin(running, edits, for_s)
            try:
                made = await self._change(base, dry_run, confirm, act, trial)
            except SteelyardError:
                # What the kernel refused is kept, and tried again.
                await self.reverting.settle(after if self._base is base else before)
                raise
            await self.reverting.settle(after)
            return made

    async def _undo(self, edit: Edit, why: str) -> None:
        """Make an edit that ends a change for a time."""
        async with self._audit.inside(_AGENT.who, "the end of a change for a time", why):
            await self.edit(edit, author=replace(_AGENT, message=why))

    async def rollback(
        self,
        number: int,
        service: str | None,
        dry_run: bool,
        *,
        confirmed: bool = False,
        author: Author = _AGENT,
    ) -> tuple[Change, ...]:
        """Go back to the services of a version, or to one of them, or say what would change."""
        old = await asyncio.to_thread(self._store.version, number)
        confirm = "" if confirmed else f"lbctl history rollback {number} --yes"
        act = Act(f"rollback to {number}", author)
        return await self._unless_overtaken(
            lambda: self._go_back(old, service, dry_run, confirm, act)
        )

    async def fleet_rollback(
        self,
        number: int,
        service: str | None,
        dry_run: bool,
        *,
        confirmed: bool = False,
        author: Author = _AGENT,
    ) -> tuple[Change, ...]:
        """Like ``rollback``, to a version of the fleet. Raises ConflictError without one."""
        fleet = self.in_fleet()
        old = await fleet.config_of(number)
        confirm = "" if confirmed else f"lbctl fleet rollback {number} --yes"
        act = Act(f"rollback to {number}", author)
        return await self._unless_overtaken(
            lambda: self._go_back(old, service, dry_run, confirm, act)
        )

    def in_fleet(self) -> FleetControl:
        """Return this agent's part in its fleet. Raises ConflictError if it belongs to none."""
        if self.fleet is None:
            raise ConflictError(
                "this balancer belongs to no fleet",
                where="fleet",
                remedy="give `fleet` in its file, and restart the agent: docs/fleet.md",
            )
        return self.fleet

    async def _go_back(
        self, old: Config, service: str | None, dry_run: bool, confirm: str, act: Act
    ) -> tuple[Change, ...]:
        async with self._changing():
            base = apply_edits(self._base, [rollback_edit(self._base, old, service)])
            return await self._change(base, dry_run, confirm, act)

    async def _change(
        self, base: Config, dry_run: bool, confirm: str, act: Act, trial: Trial | None = None
    ) -> tuple[Change, ...]:
        """Take another base, and return the changes.

        ``confirm``: the command that confirms a change that would cut open flows; empty: no
        confirmation is needed.
        """
        if trial is not None and not (self.fleet and self.fleet.shares):
            raise ConflictError(
                "only a change of a fleet's version can be tried on some balancers first",
                where="field canary",
                remedy="`lbctl fleet status` says why this one makes none; or leave --canary out",
            )
        new = self._composed(base)
        changes = with_outages(plan(self._core.config, new), self._core.emptied(new))
        self._core.identities(new)  # refuses what the tables cannot hold
        await self._keep_flows(new)
        await self._core.guarding.prepare(new)
        if confirm and not dry_run:
            await self._ask_to_cut(new, confirm)
        if not changes or dry_run:
            return changes
        if self.fleet is not None and self.fleet.shares:
            made = await self.fleet.publish(base, changes, act, trial)
            if made is None:
                return changes
            return await self._run_version(*made, base, new, changes, act)
        if self.fleet is not None and (version := self.fleet.member.version):
            documents = self.fleet.written.of(base)  # frozen: the change is made here alone
            return await self._run_version(version, documents, base, new, changes, act)
        since_file = self._since_file.plan(self._loaded.file_config, base)
        await self._keep(base, since_file, _listing(act, changes))
        self._facts = replace(self._facts, changes_since_file=len(since_file))
        self._base = base
        return await self._take(new, changes, act)

    async def _run_version(
        self,
        number: int,
        documents: Documents,
        base: Config,
        new: Config,
        changes: tuple[Change, ...],
        act: Act,
    ) -> tuple[Change, ...]:
        """Run a version of the fleet in place of the file's services; return the changes."""
        assert self.fleet is not None  # noqa: S101 (only a fleet has versions)
        await self._keep(base, (), _listing(act, changes))
        self._base = base
        self._loaded = _of_fleet(self._loaded, base)
        self._facts = replace(self._facts, changes_since_file=0)
        try:
            return await self._take(new, changes, act) if changes else changes
        finally:  # what the kernel has refused is kept, and tried again
            self.fleet.written.keep(base, documents)
            await self.fleet.member.took(number, documents)

    async def _take_version(
        self, number: int, documents: Documents, entry: FleetVersion | None
    ) -> None:
        """Run a version of the fleet. Raises SteelyardError if it cannot run here."""
        async with self._changing():
            assert self.fleet is not None  # noqa: S101 (it calls this)
            member = self.fleet.member
            if number != member.wanted:
                return  # a newer one was made here while this one waited
            if number == member.version and documents == member.services:
                return  # it was made here
            before = member.services if member.version else {}
            build = functools.partial(with_services, self._base, before, documents)
            base = await asyncio.to_thread(build)
            new = await asyncio.to_thread(self._composed, base)
            changes = plan(self._core.config, new)
            self._core.identities(new)
            await self._keep_flows(new)
            await self._core.guarding.prepare(new)
            who = _AGENT if entry is None else Author(entry.who, entry.message)
            act = Act(f"fleet version {number}", who)
            if not changes:
                await self._run_version(number, documents, base, new, changes, act)
                return
            what = changes_text(views.changes(changes))
            async with self._audit.inside(who.who, act.how, what):
                await self._run_version(number, documents, base, new, changes, act)

    def _composed(self, base: Config) -> Config:
        """Return what runs with another base, and the targets that sources have named."""
        found = layers.renamed(self._core.config, base, self._found)
        running = self._core.config
        composed = keeping(running, layers.compose(base, found, self._own).config)
        layers.check(running, composed)
        return composed

    async def _take_found(self, found: Found) -> None:
        """Make other targets backends. Raises SteelyardError if they cannot be; nothing changes
        then.
        """
        async with self._changing():
            self._own = (await asyncio.to_thread(look)).addresses
            before, self._found = self._found, found
            try:
                # In a thread: rules between services take seconds with thousands of backends.
                new = await asyncio.to_thread(self._composed, self._base)
                self._core.identities(new)
            except SteelyardError:
                self._found = before
                raise
            changes = plan(self._core.config, new)
            if changes:
                what = changes_text(views.changes(changes))
                async with self._audit.inside(_AGENT.who, "discovery", what):
                    await self._take(new, changes, Act("discovery", _AGENT))

    async def _flows_of_targets(self) -> Flows:
        """Return a function that tells how many open flows a target of a service has."""
        flows = await self._open_flows()
        return lambda service, target: flows.get(BackendRef(service, layers.name_of(target)), 0)

    def origins(self, service: str) -> tuple[Setting, ...]:
        """Return where the settings of a service come from. Raises NotFoundError."""
        running = next((s for s in self._core.config.services if s.name == service), None)
        if running is None:
            raise NotFoundError(
                f"there is no service {service!r}", where="services", remedy="lbctl service list"
            )
        written = self._loaded.file_config.services
        base = Origin.FLEET if self.fleet and self.fleet.member.version else Origin.FILE
        return origins(running, next((s for s in written if s.name == service), None), base)

    def reverts(self) -> tuple[Revert, ...]:
        """Return the changes that end by themselves."""
        return self.reverting.pending

    def sources(self) -> tuple[tuple[SourceView, ...], Mapping[str, tuple[layers.LeftOut, ...]]]:
        """Return the sources of backends, and by service which targets are no backends."""
        left_out = layers.compose(self._base, self._found, self._own).left_out
        return self.discovery.views(), left_out

    async def accept_answer(self, service: str) -> None:
        """Use the answer of a service's source that looked like a mistake."""
        await self.discovery.accept(service)

    async def _take(self, new: Config, changes: tuple[Change, ...], act: Act) -> tuple[Change, ...]:
        """Run with a new configuration; return the changes with their effects on open flows."""
        self._log_changes(changes, act)
        return with_resets(changes, await self._core.take(new))

    def _log_changes(self, changes: tuple[Change, ...], act: Act) -> None:
        """Log a line for each change, with its author."""
        about = {
            "by": act.author.who,
            "how": act.how,
            "message": act.author.message or None,
            "version": self._store.versions.newest() or None,
        }
        for change in changes[:MAX_LOGGED_CHANGES]:
            ref = str(BackendRef(change.service, change.backend)) if change.backend else None
            log.info(
                "change",
                change=str(change),
                effect=change.effect or None,
                service=change.service or None,
                backend=ref,
                **about,
            )
        if more := changes[MAX_LOGGED_CHANGES:]:
            log.info("more changes", count=len(more), **about)

    async def _keep(self, new: Config, since_file: tuple[Change, ...], act: Act) -> None:
        """Save a new configuration; a failure is logged only.

        A full disk must not keep an operator from taking a server out.
        """
        was = self._store.problem
        digest = self._loaded.file_digest
        problem = await asyncio.to_thread(self._store.keep, new, digest, since_file, act)
        if problem and problem != was:
            log.error("changes are in memory only: a restart forgets them", problem=problem)
        _log_history_problem(self._store)

    def unsaved(self) -> str:
        """Return why changes are in memory only; empty: they are saved."""
        return self._store.problem

    async def keep_saved(self) -> None:
        """Save changes that could not be saved before, as soon as possible, for ever."""
        while True:
            await asyncio.sleep(SAVE_AGAIN_S)
            if not self._store.problem:
                continue
            async with self._changing():
                if await asyncio.to_thread(self._store.write_held):
                    log.info("the changes that were in memory only are saved")

    def troubles(self) -> Callable[[], Troubles]:
        """Return a function that finds what is wrong now, and may run in any thread."""
        core = self._core
        return functools.partial(
            troubles,
            core.refreshed(),
            core.observer.unconnected,
            core.observer.objectives.watches,
        )

    def recent(self) -> Tally:
        """Return the counts of what the agent has logged in the last hour."""
        return self._journal.tallied(time.time() - RECENT_S)

    def events(self, query: Query) -> tuple[Entry, ...]:
        """Return the journal's entries that match a query."""
        return self._journal.find(query)

    async def versions(self) -> tuple[Version, ...]:
        """Return the versions of the running configuration that are kept, oldest first."""
        return await asyncio.to_thread(self._store.versions.all)

    async def diff(self, old: int, new: int | None) -> tuple[Change, ...]:
        """Return the changes from one version to another; ``new`` None: the running one."""
        running = self._base

        def compare() -> tuple[Change, ...]:
            before = self._store.version(old)
            after = running if new is None else self._store.version(new)
            return settings_change(global_changes(before, after)) + plan(before, after)

        return await asyncio.to_thread(compare)

    async def block(self, order: BlockOrder) -> Blocked:
        """Drop the packets of some sources, and end their flows."""
        return await self._core.block(order.blocks(time.time()), confirmed=order.confirmed)

    async def unblock(self, prefixes: tuple[Network, ...]) -> int:
        """Serve these sources again; return how many other balancers were informed."""
        return await self._core.unblock(prefixes)

    def guard_test(self, address: Address) -> Verdicts:
        """Return what happens to a new flow from an address."""
        core = self._core
        found = core.guarding.test(core.config, address)
        limited = core.limiting.test(core.config, core.now.situation.ids, address)
        # Blocks and lists come before limits.
        more = {name: why for name, why in limited.items() if found.services[name] == "served"}
        return replace(found, services={**found.services, **more})

    async def top_sources(self, query: TopQuery) -> TopPage:
        """Return the sources with the most open flows or waiting bytes."""
        dataplane = self._core.dataplane
        names = names_of(self._core.now.situation)
        return await asyncio.to_thread(top_sources, dataplane.tables, names, query, dataplane.keys)

    async def move(self, order: MoveOrder) -> Moved:
        """Move the VIPs as the operator orders; with ``dry_run``, only say how."""
        return await self._core.pair.move(order)

    async def reload(
        self, *, dry_run: bool = False, confirmed: bool = False, author: Author = _HANGUP
    ) -> tuple[Change, ...]:
        """Read the configuration file again. An invalid one changes nothing, and status says so."""
        if author is not _HANGUP:
            return await self._reload(dry_run, confirmed, author)
        async with self._audit.inside(author.who, "reload") as effect:
            changes = await self._reload(dry_run, confirmed, author)
            effect.text = changes_text(views.changes(changes))
            return changes

    async def _reload(self, dry_run: bool, confirmed: bool, author: Author) -> tuple[Change, ...]:
        async with self._changing():
            if dry_run:
                return (await self._wanted()).changes
            self._notifier.reloading()
            try:
                act = Act("reload", author)
                try:
                    config, changes = await self._accept(confirmed, act)
                except SteelyardError as error:
                    self._facts = replace(self._facts, config_problem=str(error))
                    log.error(
                        "reload refused; the last good configuration stays",
                        problem=str(error),
                        by=author.who,
                    )
                    raise
                if not changes:
                    log.info("reload", why="nothing has changed", by=author.who)
                return await self._take(config, changes, act)
            finally:
                self._notifier.ready(status_line(self._core.now.situation))

    def met_defect(self, error: Exception) -> None:
        """Record that a reload ended with an unexpected error; the agent goes on as before."""
        problem = f"a defect of the agent: {type(error).__name__}: {error}"
        self._facts = replace(self._facts, config_problem=problem)
        self._core.passes.defect("a reload met a defect; what ran goes on", error)

    async def _wanted(self) -> _Wanted:
        """Return what the file asks for now; nothing is changed.

        Raises SteelyardError if it cannot be applied.
        """
        text = read_text(self._path)
        loaded = await asyncio.to_thread(self._store.load, text, str(self._path))
        await asyncio.to_thread(check_accounts, loaded.file_config, text, str(self._path))
        await asyncio.to_thread(check_trusted, self._path, loaded.file_config.admin_groups)
        running = self._core.config
        if self.fleet is not None and self.fleet.member.version:
            services = self.fleet.member.services
            build = functools.partial(with_services, loaded.file_config, {}, services)
            loaded = _of_fleet(loaded, await asyncio.to_thread(build))
        loaded = replace(
            loaded,
            config=keeping(self._base, loaded.config),
            file_config=keeping(self._base, loaded.file_config),
        )
        fixed = global_changes(running, loaded.file_config)
        needs_restart = [change.field for change in fixed if change.needs_restart]
        if needs_restart:
            raise ConfigError(
                f"a reload cannot change {', '.join(needs_restart)}",
                where=str(self._path),
                remedy="restart the agent: new tables are made, and recorded flows are carried over"
                if TABLE_FIELDS.intersection(needs_restart)
                else "restart the agent: no flow moves meanwhile",
            )
        new = self._composed(loaded.config)
        changes = settings_change(fixed) + plan(running, new)
        self._core.identities(new)
        await self._keep_flows(new)
        await self._core.guarding.prepare(new)
        return _Wanted(loaded, new, changes)

    async def _accept(self, confirmed: bool, act: Act) -> tuple[Config, tuple[Change, ...]]:
        wanted = await self._wanted()
        loaded, changes = wanted.loaded, wanted.changes
        if not confirmed:
            await self._ask_to_cut(wanted.config, "lbctl reload --yes")
        await settle(self._store, loaded, replace(act, changes=tuple(map(str, changes))))
        self._loaded, self._base = loaded, loaded.config
        self._facts = replace(
            self._facts,
            config_problem=loaded.problem,
            changes_since_file=len(loaded.changes),
        )
        return wanted.config, changes

    async def _keep_flows(self, new: Config) -> None:
        """Raise ConflictError if there are open flows that a change would break."""
        found = live.flow_breaks(self._core.config, new)
        if found:
            flows: Counter[str] = Counter()
            for backend, number in (await self._open_flows()).items():
                flows[backend.service] += number
            live.refuse_to_cut(found, flows)

    async def _ask_to_cut(self, new: Config, confirm: str) -> None:
        """Raise UnconfirmedError for a change that removes something with open flows."""
        found = live.removals(self._core.config, new)
        if found:
            live.refuse_unconfirmed(found, await self._open_flows(), confirm)

    async def _open_flows(self) -> dict[BackendRef, int]:
        known = self._core.now.situation.roster
        seen = await self._core.observer.look_at_flows()
        return dict(zip(known.refs, seen.live[known.ids].tolist(), strict=True))

    async def flows(self, query: FlowQuery) -> FlowPage:
        """Return the recorded flows that match.

        The search runs in a thread, because there may be millions of them.
        """
        dataplane = self._core.dataplane
        names = names_of(self._core.now.situation)
        return await asyncio.to_thread(
            query_flows,
            dataplane.tables,
            names,
            query,
            dataplane.keys,
            dataplane.clock,
            dataplane.now_jiffies(),
        )

    def follow(self, query: TraceQuery) -> Follower:
        """Follow the data plane's decisions as they happen, until the context is left."""
        return self._core.tracer.follow(query)

    def explain(self, tuple5: FiveTuple) -> Explanation:
        """Return what the data plane would do with the next packet of a flow, and why."""
        dataplane, now = self._core.dataplane, self._core.now
        view = DataplaneView(
            dataplane.tables,
            now.contents,
            names_of(now.situation),
            dataplane.keys,
            dataplane.clock,
            dataplane.now_jiffies(),
        )
        return explain(view, tuple5)


def _listing(act: Act, changes: tuple[Change, ...]) -> Act:
    """Return the act with its changes in words."""
    return replace(act, changes=tuple(map(str, changes)))


def _of_fleet(loaded: LoadedRunning, config: Config) -> LoadedRunning:
    """Return what was loaded with a version of the fleet in place of the file's services."""
    return replace(loaded, config=config, file_config=config, changes=())


def with_outages(changes: tuple[Change, ...], emptied: Collection[str]) -> tuple[Change, ...]:
    """Add to the changes which services they leave without any healthy backend."""
    last: dict[str, Change] = {}
    for change in changes:
        if change.service in emptied and change.action is not Action.ADD:
            last[change.service] = change  # the last change of a service gets the note
    return tuple(
        replace(
            change,
            effect=f"{change.effect}; as things are, no healthy backend of {change.service} is "
            "left".removeprefix("; "),
        )
        if last.get(change.service) is change
        else change
        for change in changes
    )


def with_resets(changes: tuple[Change, ...], reset: Mapping[BackendRef, int]) -> tuple[Change, ...]:
    """Add to the changes how many flows were reset on the backends that they removed."""
    result = []
    for change in changes:
        count = sum(
            number
            for ref, number in reset.items()
            if ref.service == change.service and change.backend in (None, ref.backend)
        )
        if count and change.action is not Action.ADD:
            what = "1 open connection was" if count == 1 else f"{count} open connections were"
            change = replace(change, effect=f"{change.effect}; {what} reset".removeprefix("; "))
        result.append(change)
    return tuple(result)


async def settle(store: RunningStore, loaded: LoadedRunning, act: Act = _START) -> None:
    """Accept a loaded configuration: save it as the last good one, set aside what it replaces,
    and log that.
    """
    if loaded.file_problem:
        log.error(
            "the configuration file is unusable; the last good configuration is used",
            problem=loaded.file_problem,
        )
        return
    await asyncio.to_thread(store.settle, loaded)
    keep, before = store.keep, await asyncio.to_thread(store.versions.newest)
    problem = await asyncio.to_thread(keep, loaded.config, loaded.file_digest, loaded.changes, act)
    _log_history_problem(store)
    if store.versions.newest() != before:
        log.info("configuration", version=store.versions.newest(), how=act.how, by=act.author.who)
    if problem:
        log.warning("a start with a broken file would find no last good one", problem=problem)
    for dropped in loaded.dropped:
        log.warning(
            "the file changed, so a runtime change is dropped",
            change=dropped,
            kept=str(store.previous_path),
        )
    if loaded.problem:
        log.error("the running configuration is unusable; the file is used", problem=loaded.problem)


def _log_history_problem(store: RunningStore) -> None:
    if store.history_problem:
        log.warning("this version is not in the history", problem=store.history_problem)


def status_line(now: Situation) -> str:
    """Return a status line for the service manager."""
    up = sum(verdict.usable for verdict in now.verdicts.values())
    return (
        f"{len(now.config.services)} services, {up} of {len(now.verdicts)} backends up "
        f"on {now.config.interface}"
    )
