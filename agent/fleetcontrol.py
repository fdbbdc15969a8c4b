"""Makes an agent one of a fleet: what it runs of the fleet, reports to it, and changes for all."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from agent.config.edit import with_services
from agent.config.plan import Change, global_changes, plan, settings_change
from agent.config.render import service_document
from agent.config.versions import Act, Author
from agent.core import Core
from agent.dataplane import counters
from agent.errors import ConfigError, ConflictError, NotFoundError, StoreError
from agent.failover.model import Role
from agent.fleet import saved as disk
from agent.fleet.member import Figures, Member, Take
from agent.fleet.overview import Overview
from agent.fleet.reports import MOST_DOWN, Difference, Part, Work, differences, drifted
from agent.fleet.saved import Saved
from agent.fleet.store import Order
from agent.fleet.versions import Active, Document, Documents, FleetVersion, Trial
from agent.logs import get_logger
from agent.model import Config, Service, ServiceState
from agent.state.identities import slot_of
from agent.state.tables import ServiceEntry, TableContents

log = get_logger()

MOST_VERSIONS = 1000  # in one answer


class Written:
    """The services of a fleet as they are stored. Those that have not changed are not written
    anew, because there may be thousands, and another release may have written them.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Service, Document]] = {}

    def of(self, config: Config) -> Documents:
        """Return the services of a configuration as documents."""
        found: dict[str, tuple[Service, Document]] = {}
        for service in config.services:
            kept = self._kept.get(service.name)
            is_same = kept is not None and kept[0] is service
            found[service.name] = kept if kept and is_same else (service, service_document(service))
        return self._remember(found)

    def keep(self, config: Config, documents: Documents) -> None:
        """Remember the documents that the services of ``config`` were made from."""
        self._remember({each.name: (each, documents[each.name]) for each in config.services})

    def _remember(self, found: dict[str, tuple[Service, Document]]) -> Documents:
        self._kept = found
        return {name: document for name, (_, document) in found.items()}


def saved_of(config: Config) -> Saved | None:
    """Return what a balancer ran of its fleet before the agent started. Raises ConfigError."""
    if config.fleet.name is None:
        return None
    return disk.read(disk.path_of(config.state_dir, config.name), config.fleet.name)


def with_saved(config: Config, saved: Saved | None) -> Config:
    """Return the configuration with the services that were saved instead of its own.

    Raises ConfigError if they do not fit the rest of it.
    """
    if saved is None:
        return config
    try:
        return with_services(config, {}, saved.services)
    except ConfigError as error:
        raise ConfigError(
            f"version {saved.version} of the fleet, which ran here, does not fit this file: "
            f"{error.message}",
            where=error.where,
            remedy="take back what was changed in the file; what runs in the kernel goes on",
        ) from error


class FleetControl:
    """One agent's part in its fleet. ``take`` runs a version; ``base`` returns what is to run,
    without what sources have named.
    """

    def __init__(
        self, core: Core, saved: Saved | None, take: Take, base: Callable[[], Config]
    ) -> None:
        config = core.config
        self._core, self._base, self._take = core, base, take
        node = config.fleet.node or socket.gethostname().lower()
        path = disk.path_of(config.state_dir, config.name)
        self.member = Member(config.fleet, node, path, saved, take, self._figures)
        self.written = Written()
        if saved is not None:
            self.written.keep(base(), saved.services)
        self._parts: dict[str, tuple[object, Part]] = {}  # by service, with what they are made of

    # -- changes

    @property
    def shares(self) -> bool:
        """Whether changes made here are made for the whole fleet."""
        return self.member.frozen is None and self.member.has_versions

    async def publish(
        self, after: Config, changes: tuple[Change, ...], act: Act, trial: Trial | None
    ) -> tuple[int, Documents] | None:
        """Write a new version of the fleet's services; return its number and services.

        None: it does not run here, because other balancers try it first. Raises OvertakenError,
        ConflictError or StoreError; nothing is changed then.
        """
        await self.member.reached()
        known = self.member.writable()
        if trial is not None:
            await self._check_trial(trial)
        order = self._order(after, map(str, changes), act, trial)
        number = await self.member.publish(known, order)
        runs_here = trial is None or self.member.node in trial.nodes
        return (number, order.after) if runs_here else None

    async def import_services(self, author: Author) -> int:
        """Write what runs here as the fleet's next version; return its number."""
        member = self.member
        known = member.importable()
        # If the store has lost its content, others may run a newer version than this balancer.
        reports = await member.store.reports()
        above = max([member.version, *(report.version for report in reports.values())])
        after = self._base()
        lines = [f"add service {each.name}" for each in after.services]
        order = self._order(after, lines, Act("import", author), None, above)
        number = await member.publish(known, order)
        await self._take(number, order.after, None)
        return number

    def _order(
        self,
        after: Config,
        changes: Iterable[str],
        act: Act,
        trial: Trial | None,
        above: int = 0,
    ) -> Order:
        author = act.author
        return Order(
            self.written.of(after),
            time.time(),
            self.member.node,
            act.how,
            author.who,
            author.message,
            tuple(changes),
            above + 1,
            trial,
        )

    async def _check_trial(self, trial: Trial) -> None:
        """Raise ConflictError if a balancer that is to try a version cannot."""
        reports = await self.member.store.reports()
        where, remedy = "field canary", "`lbctl fleet status` shows the balancers"
        for node in trial.nodes:
            report = reports.get(node)
            if report is None:
                raise ConflictError(f"no balancer {node} reports", where=where, remedy=remedy)
            if report.frozen is not None:
                raise ConflictError(
                    f"{node} is frozen ({report.frozen})",
                    where=where,
                    remedy="lbctl fleet thaw, there",
                )
        if len(trial.nodes) >= len(reports):
            raise ConflictError(
                "these are all balancers of the fleet", where=where, remedy="name some of them"
            )

    async def end_rollout(self, *, promote: bool, author: Author) -> Active:
        """Promote the version that is being tried, or give it up; return what is active then."""
        known = self.member.known()
        if known.active.rollout is None:
            raise ConflictError(
                "no version is being tried",
                where=f"fleet {self.member.fleet.name}",
                remedy="lbctl apply -f FILE --canary BALANCER begins a rollout",
            )
        end = known.active.promoted if promote else known.active.aborted
        new = end(author.message or "an operator decided it", author.who, time.time())
        await self.member.decide(known, new)
        await self.member.run_wanted()
        return new

    async def forget(self, node: str) -> None:
        """Forget a balancer that is gone for good. Raises NotFoundError or ConflictError."""
        self.member.known()
        where = f"fleet {self.member.fleet.name}"
        if await self.member.store.report_of(node) is not None:
            raise ConflictError(
                f"{node} reports, so it would be back at once",
                where=where,
                remedy="stop its agent first, or remove `fleet` from its file",
            )
        if not await self.member.store.forget(node):
            raise NotFoundError(
                f"no balancer {node} has reported", where=where, remedy="lbctl fleet status"
            )

    async def freeze(self, author: Author) -> None:
        """Take no versions of the fleet any more; changes made here stay here."""
        why = f"{author.message} ({author.who})" if author.message else f"by {author.who}"
        await self.member.freeze(why)

    async def thaw(self) -> None:
        """Follow the fleet again. What was changed here alone is lost, but for local history."""
        if self.member.frozen is None:
            raise ConflictError(
                "this balancer is not frozen",
                where=f"balancer {self.member.node}",
                remedy="lbctl fleet status",
            )
        await self.member.freeze(None)

    # -- queries

    @property
    def active(self) -> Active | None:
        """What was active in the store when it was heard last."""
        return self.member.active

    async def overview(self) -> Overview:
        """Return the whole fleet."""
        status = self.member.status()
        if status.away_since is not None:
            return Overview(status, self.member.active, None)
        try:
            reports = await self.member.reports()
            seen = await self.member.store.seen()
        except StoreError:
            return Overview(self.member.status(), self.member.active, None)
        expected = {each.version: self.member.digest_of(each.version) for each in reports.values()}
        found = {number: digest for number, digest in expected.items() if digest is not None}
        drift = drifted(tuple(reports.values()), found)
        missing = {node: at for node, at in seen.items() if node not in reports}
        return Overview(status, self.member.active, reports, drift, missing)

    async def history(self, most: int) -> tuple[FleetVersion, ...]:
        """Return the newest versions, newest first."""
        self.member.known()
        return await self.member.store.history(most)

    async def version(self, number: int) -> tuple[FleetVersion, Documents]:
        """Return a version and its services. Raises NotFoundError."""
        self.member.known()
        return await self.member.store.version(number)

    async def config_of(self, number: int) -> Config:
        """Return what this balancer would run with a version."""
        _, documents = await self.version(number)
        return with_services(self._base(), self.member.services, documents)

    async def diff(self, old: int, new: int | None) -> tuple[Change, ...]:
        """Return the changes from one version to another; None: what runs here."""
        before = await self.config_of(old)
        after = self._base() if new is None else await self.config_of(new)
        return settings_change(global_changes(before, after)) + plan(before, after)

    async def compare(self, one: str, other: str) -> tuple[Difference, ...]:
        """Return how the services of two balancers differ. Raises NotFoundError."""
        self.member.known()
        parts = await self.member.store.parts((one, other))
        return differences((one, parts[one]), (other, parts[other]))

    # -- reports

    async def _figures(self) -> Figures:
        core = self._core
        situation, contents = core.now.situation, core.now.contents
        down = [n for n, each in situation.services.items() if each.state is ServiceState.DOWN]
        parts = self._parts_of(situation.config, contents)
        rings = hashlib.sha256("".join(part.rings for part in parts.values()).encode())
        return Figures(
            self._role(),
            core.problem,
            rings.hexdigest()[:16],
            tuple(sorted(down)[:MOST_DOWN]),
            self._work(),
            parts,
        )

    def _role(self) -> str:
        view = self._core.pair.view()
        if not view.configured:
            return "alone"
        roles = {router.role for router in view.process.routers} if view.process else set()
        order = (Role.MASTER, Role.BACKUP, Role.FAULT)
        found = next((role for role in order if role in roles), Role.INIT)
        return str(found.value)

    def _work(self) -> Work:
        totals = self._core.observer.totals
        if totals is None:
            return Work()
        backends = dict(zip(counters.BACKEND_TOTALS, totals.backends.sum(axis=1), strict=True))
        services = dict(zip(counters.SERVICE_TOTALS, totals.services.sum(axis=1), strict=True))
        return Work(
            int(backends["opened"] + services["gone_opened"]),
            int(backends["established"] + services["gone_established"]),
            int(services["drops"]),
            int(backends["answers"] - backends["errors"]),
            int(backends["errors"] + backends["hangups"]),
            self._core.observer.first_bytes(),
        )

    def _parts_of(self, config: Config, contents: TableContents) -> Mapping[str, Part]:
        """Return the digests of all services. Those that have not changed are not made again."""
        documents, found = self.member.services, {}
        for service in config.services:
            entry = contents.services.get(slot_of(service.key))
            made_of = (service, documents.get(service.name), entry)
            kept = self._parts.get(service.name)
            if kept is not None and kept[0] == made_of:
                found[service.name] = kept
                continue
            written = documents.get(service.name) or service_document(service)
            found[service.name] = (
                made_of,
                Part(
                    _digest(repr(sorted(_flat(written)))),
                    _digest(repr(_discovered(service))),
                    _ring_digest(entry, contents),
                ),
            )
        self._parts = found
        return {name: part for name, (_, part) in found.items()}


def _flat(written: object, path: str = "") -> list[tuple[str, str]]:
    """Return a document as pairs of a path and a value, whatever the order of its keys."""
    if isinstance(written, Mapping):
        return [pair for key, each in written.items() for pair in _flat(each, f"{path}.{key}")]
    if isinstance(written, list | tuple):
        return [pair for n, each in enumerate(written) for pair in _flat(each, f"{path}.{n}")]
    return [(path, repr(written))]


def _discovered(service: Service) -> list[tuple[str, ...]]:
    found = [each for each in service.backends if each.discovered]
    return sorted((str(b.address), str(b.port), str(b.weight), b.admin.value) for b in found)


def _ring_digest(entry: ServiceEntry | None, contents: TableContents) -> str:
    """Return a digest of a service's ring that does not depend on the ids of its backends."""
    if entry is None:
        return ""
    ids, places = np.unique(np.frombuffer(entry.ring, np.uint16), return_inverse=True)
    held = [contents.backends.get(ident) for ident in ids.tolist()]
    names = [f"{each.address} {each.port}" if each else "" for each in held]
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.uint16)
    rank[order] = np.arange(len(names), dtype=np.uint16)
    return _digest("\n".join(sorted(names)), rank[places].tobytes())


def _digest(text: str, more: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + b"\0" + more).hexdigest()[:12]
