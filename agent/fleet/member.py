"""Keeps one balancer at its fleet's version: follows the store, reports, and judges rollouts.

It never acts on an empty answer, and goes on with the version that it has while the store is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent import __version__
from agent.errors import (
    CompactedError,
    ConflictError,
    LeaseLostError,
    OvertakenError,
    SteelyardError,
    StoreError,
    UnreadableError,
)
from agent.fleet import saved as disk
from agent.fleet.reports import (
    NODES,
    PARTS,
    Part,
    Report,
    Work,
    write_parts,
    write_report,
)
from agent.fleet.rollout import Step, judge
from agent.fleet.saved import Saved
from agent.fleet.store import FleetStore, Known, Order
from agent.fleet.versions import Active, Documents, FleetVersion, digest_of
from agent.logs import get_logger
from agent.model import Fleet
from agent.state.fleetview import FleetStatus

log = get_logger()

POLL_S = 2.0  # on average, between looks at what is active beside the watch
SILENT_S = 0.5  # a watch that is so much behind another member is given up
AGAIN_S, MOST_AGAIN_S = 0.2, 5.0  # pauses after the store has failed: the first, the longest
BRIEF_S = 6.0  # a change waits for so long after the store has failed; an election takes 1 to 2 s
REFUSED_AGAIN_S = 15.0  # a version that was refused is tried again
WINDOW_S = 60.0  # reports cover about this time
KEEP_ALIVES = 3  # within the time of a lease
SEEN_EVERY_S = 60.0  # a balancer notes in the store that it reports
_NO_REPORT = Report("", "", "", 0.0, "", 0, 0.0)

type Take = Callable[[int, Documents, FleetVersion | None], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a balancer reports about itself, besides what its membership knows."""

    role: str
    problem: str
    rings: str
    down: tuple[str, ...]
    work: Work  # totals
    parts: Mapping[str, Part]


class _SilentError(Exception):
    """A watch is open, and does not tell what another member does."""


class Member:
    """One balancer of a fleet. ``take`` runs a version, and raises SteelyardError if it cannot.

    ``figures`` returns what is reported.
    """

    def __init__(
        self,
        fleet: Fleet,
        node: str,
        path: Path,
        saved: Saved | None,
        take: Take,
        figures: Callable[[], Awaitable[Figures]],
    ) -> None:
        self.fleet, self.node = fleet, node
        self._path = path
        self._take, self._figures = take, figures
        self._ident = secrets.token_hex(8)
        self.version = 0 if saved is None else saved.version
        self.since = time.time() if saved is None else saved.since
        self.frozen = None if saved is None else saved.frozen
        self.services: Documents = {} if saved is None else saved.services
        self._digest = digest_of(self.services)
        first = random.randrange(max(len(fleet.etcd.endpoints), 1))  # noqa: S311 (no secret)
        self.store = FleetStore(fleet, first)
        self._beside = FleetStore(fleet, first + 1)
        self._known: Known | None = None
        self._overtaken_at = -1  # the revision that our last change began with, if it was too old
        self._news = asyncio.Condition()
        self._learned = asyncio.Event()  # since the wanted version was run last
        self._refused: tuple[int, str] | None = None
        self._away = "the store was not reached yet"
        self._away_since: float | None = time.time()
        self._reached = asyncio.Event()  # the store answers
        self._unreadable: UnreadableError | None = None
        self._namesake_at: float | None = None  # when another's report was found under our name
        self._missed_since: float | None = None  # when the store did not take a report first
        self._seen_at = -SEEN_EVERY_S  # when that was noted
        self._unseen = ""  # why the others do not see this balancer
        self._unsaved = ""
        self._rollout_since: tuple[int, float] = 0, 0.0  # a version, and when it was seen first
        self._window = _Window()
        self._taking, self._saving = asyncio.Lock(), asyncio.Lock()

    # -- what is known

    def status(self) -> FleetStatus:
        """Return how the balancer stands to its fleet now."""
        known = self._known
        active = known.active if known is not None and known.exists else None
        rollout = None if active is None else active.rollout
        return FleetStatus(
            self.fleet.name or "",
            self.node,
            self.version,
            self.since,
            None if active is None else active.of(self.node),
            None if active is None else active.stable,
            None if active is None else active.newest,
            () if rollout is None else rollout.nodes,
            self.frozen,
            None if self._refused is None else self._refused[0],
            self.problem(),
            self._away_since,
        )

    def problem(self) -> str:
        """Return why this balancer does not follow its fleet; empty: it does."""
        if self._away:
            what = f"version {self.version} stays" if self.version else "its own services stay"
            return f"the fleet's store cannot be used: {self._away}; {what}"
        if self._unreadable is not None:
            return self._unreadable_words()
        if self._namesake_at is not None:
            return (
                f"another balancer of the fleet is called {self.node}, too: give each its own "
                "`fleet.node`"
            )
        if self._unseen:
            return (
                "the fleet's store does not take this balancer's report, so the others do not see "
                f"it: {self._unseen}"
            )
        if self._unsaved:
            return self._unsaved
        known = self._known
        if known is not None and (lost := self._lost(known)):
            return lost
        if self.frozen is not None:
            return (
                f"this balancer is frozen at version {self.version}: {self.frozen}; "
                "`lbctl fleet thaw` ends that"
            )
        if self._refused is not None:
            number, why = self._refused
            return f"version {number} of the fleet is refused here, {self.version} stays: {why}"
        return ""

    def _unreadable_words(self) -> str:
        error = self._unreadable
        if error is None:
            return ""
        stays = f"version {self.version} stays" if self.version else "its own services stay"
        return f"{error.where}: {error.message} ({error.remedy}); {stays}"

    def _lost(self, known: Known) -> str:
        """Return why the store's content is not believed; empty: it is."""
        if self.version <= known.active.newest:
            return ""
        has = f"versions up to {known.active.newest}" if known.exists else "nothing of this fleet"
        return (
            f"the fleet's store has {has}, and this balancer runs version {self.version}, which "
            "stays; if the store was lost, `lbctl fleet import` writes it again"
        )

    def writable(self) -> Known:
        """Return what a change begins with. Raises ConflictError or StoreError if there can be
        none.
        """
        known = self._known
        if self._away or known is None:
            raise StoreError(
                f"the fleet's store cannot be used, so nothing was changed: {self._away}",
                where=f"fleet {self.fleet.name}",
                remedy="repair it; in an emergency, `lbctl fleet freeze` makes changes here alone "
                "possible",
            )
        self._check_readable()
        if lost := self._lost(known):
            raise ConflictError(lost, where=f"fleet {self.fleet.name}", remedy="see the message")
        if known.active.rollout is not None:
            rollout = known.active.rollout
            raise ConflictError(
                f"version {rollout.version} is being tried on {', '.join(rollout.nodes)}, and "
                "nothing can be changed meanwhile",
                where=f"fleet {self.fleet.name}",
                remedy="lbctl rollout promote, or lbctl rollout abort",
            )
        if known.exists and self.version != known.active.stable:
            behind = f"this balancer runs version {self.version}, not {known.active.stable}"
            if self._refused is None:
                raise OvertakenError(
                    f"{behind}, which it is taking now",
                    where=f"fleet {self.fleet.name}",
                    remedy="try again in a moment",
                )
            raise ConflictError(
                f"{behind}, the fleet's: {self._refused[1]}",
                where=f"fleet {self.fleet.name}",
                remedy="make the change on another balancer",
            )
        return known

    def importable(self) -> Known:
        """Return what an import begins with: the store may have lost its content.

        Raises ConflictError or StoreError.
        """
        known = self.known()
        if not known.exists or self._lost(known):
            return known
        stable, where = known.active.stable, f"fleet {self.fleet.name}"
        if self.frozen is None:
            raise ConflictError(
                f"the fleet has versions already, and {stable} is the stable one",
                where=where,
                remedy="change them by `lbctl apply -f FILE`",
            )
        if self.version != stable or known.active.rollout is not None:
            raise ConflictError(
                f"the fleet has changed since this balancer was frozen at version {self.version}",
                where=where,
                remedy="`lbctl fleet diff` shows the differences; make them by `lbctl apply`",
            )
        return known

    def digest_of(self, number: int) -> str | None:
        """Return the digest of a version's services, if the version is known here."""
        documents = None if self._known is None else self._known.log.documents(number)
        return None if documents is None else digest_of(documents)

    @property
    def wanted(self) -> int:
        """The version that should run here, as far as it is known; 0: none."""
        return 0 if self._known is None else self._known.active.of(self.node)

    @property
    def has_versions(self) -> bool:
        """Whether this balancer runs a version of the fleet, or is to."""
        return self.version > 0 or (self._known is not None and self._known.exists)

    @property
    def active(self) -> Active | None:
        """What was active in the store when it was heard last; None: nothing."""
        return self._known.active if self._known is not None and self._known.exists else None

    def known(self) -> Known:
        """Return what is known of the store. Raises StoreError if it is away."""
        if self._away or self._known is None:
            raise StoreError(
                f"the fleet's store cannot be used: {self._away}",
                where=f"fleet {self.fleet.name}",
                remedy="repair it, and try again",
            )
        self._check_readable()
        return self._known

    def _check_readable(self) -> None:
        """Raise StoreError if what is known may be old, because a key cannot be read."""
        if (error := self._unreadable) is not None:
            raise StoreError(
                f"{error.message}; nothing was changed", where=error.where, remedy=error.remedy
            )

    # -- changes

    async def reached(self) -> None:
        """Wait for the store if it has failed just now, as it does while it elects a leader."""
        if self._away_since is None or self._known is None:
            return
        left_s = self._away_since + BRIEF_S - time.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left_s, BRIEF_S)):
                await self._reached.wait()

    async def publish(self, known: Known, order: Order) -> int:
        """Write a new version, and return its number. Raises OvertakenError, or StoreError.

        The caller runs it, and says so by ``took``.
        """
        try:
            new, entry = await self.store.add(known, order)
        except OvertakenError:
            self._overtaken_at = known.revision
            raise
        await self._learn(new)
        return entry.number

    async def decide(self, known: Known, new: Active) -> None:
        """Make another version active. Raises OvertakenError, or StoreError."""
        await self._learn(await self.store.set_active(known, new))

    async def caught_up(self, timeout_s: float = 5.0) -> None:
        """Wait until this balancer runs the version that it should, at most ``timeout_s``.

        If another balancer was faster, that includes to hear of its change.
        """

        def is_there() -> bool:
            known = self._known
            if known is None or known.revision == self._overtaken_at:
                return False
            return self.version == known.active.of(self.node)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(is_there)

    async def took(self, number: int, documents: Documents) -> None:
        """Note that a version runs here, or what was changed here while it is frozen."""
        if number != self.version:
            self._window.restart()
            self.version, self.since = number, time.time()
        self.services, self._refused = documents, None
        self._digest = digest_of(documents)
        await self._save()
        async with self._news:
            self._news.notify_all()

    async def freeze(self, why: str | None) -> None:
        """Take no further versions, or with None take them again."""
        self.frozen = why
        await self._save()
        if why is not None:
            log.warning("this balancer takes no versions of its fleet", at=self.version, why=why)
            return
        log.info("this balancer follows its fleet again", at=self.version)
        await self.run_wanted(again=True)

    async def _save(self) -> None:
        name = self.fleet.name or ""
        # Freezing may come while a version is taken, and the newer state has to be written last.
        async with self._saving:
            state = Saved(max(self.version, 0), self.since, self.services, self.frozen)
            try:
                await asyncio.to_thread(disk.write, self._path, name, state)
                self._unsaved = ""
            except OSError as error:
                problem = f"the version that runs cannot be saved: {self._path}: {error.strerror}"
                if problem != self._unsaved:
                    what = "a restart without the store would run an older version"
                    log.error(what, problem=problem)
                self._unsaved = problem

    # -- tasks

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the tasks that keep the balancer at its fleet's version, by name."""
        return {
            "fleet": self._follow(),
            "fleet versions": self._keep_running(),
            "fleet reports": self._report(),
        }

    async def close(self) -> None:
        """Close the connections."""
        await self.store.close()
        await self._beside.close()

    async def _follow(self) -> None:
        """Follow the store for ever."""
        pause_s = AGAIN_S
        while True:
            begun = time.monotonic()
            try:
                await self._follow_once()
            except (CompactedError, _SilentError):
                pause_s = AGAIN_S  # everything is read again
            except UnreadableError as error:
                self._misread(error)
            except StoreError as error:
                self._lose(error)
            except Exception:  # the task's root: a defect here must not end the agent
                log.exception("following the fleet broke; it begins anew")
            if time.monotonic() - begun > MOST_AGAIN_S:
                pause_s = AGAIN_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            pause_s = min(pause_s * 2, MOST_AGAIN_S)

    async def _follow_once(self) -> None:
        """Read everything, and follow the changes until the store fails."""
        before = self._known
        known = await self.store.read()
        self._find()
        self._unreadable = None
        # Unless something was learned meanwhile, this is what counts, even if it is older: the
        # store may have been lost and written anew.
        await self._learn(known, is_whole=self._known is before)
        work = (self._watch(known), self._look_beside())
        tasks = [asyncio.create_task(each) for each in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, known: Known) -> None:
        async with contextlib.aclosing(self.store.follow(known)) as changes:
            async for known in changes:
                self._find()
                await self._learn(known)
        raise StoreError("the watch has ended", where="the fleet's store", remedy="it is resumed")

    async def _look_beside(self) -> None:
        """Ask another member what is active: the watch of a member that hangs is open, and silent.

        Raises _SilentError if the watch is behind.
        """
        while True:
            await asyncio.sleep(POLL_S * random.uniform(0.75, 1.25))  # noqa: S311 (no secret)
            try:
                found = await self._beside.active()
            except StoreError as error:
                self._lose(error)
                continue
            self._find()
            newest = max((row.revision for row in found.rows), default=0)
            if self._revision() >= newest:
                continue
            await asyncio.sleep(SILENT_S)
            if self._revision() < newest:
                log.info("the member of the store that is watched is silent: it is left")
                raise _SilentError

    async def _keep_running(self) -> None:
        """Run what is active here, and try again what was refused, for ever.

        It does not keep the watch from learning what comes next, and is not broken off when that
        ends: a version would be half taken.
        """
        refused_at, again = time.monotonic(), False
        while True:
            self._learned.clear()
            try:
                await self.run_wanted(again)
            except Exception:  # the task's root: a defect here must not end the agent
                log.exception("running the fleet's version broke; it is tried again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFUSED_AGAIN_S):
                    await self._learned.wait()
            again = self._refused is not None and time.monotonic() - refused_at >= REFUSED_AGAIN_S
            if again or self._refused is None:
                refused_at = time.monotonic()

    def _revision(self) -> int:
        return 0 if self._known is None else self._known.revision

    def _lose(self, error: StoreError) -> None:
        self._reached.clear()
        if not self._away:
            self._away_since = time.time()
            log.warning("the fleet's store cannot be used; what runs stays", problem=str(error))
        self._away = _with_remedy(error)

    def _misread(self, error: UnreadableError) -> None:
        self._find()
        if self._unreadable is None or str(self._unreadable) != str(error):
            log.error("the fleet's versions cannot be read; what runs stays", problem=str(error))
        self._unreadable = error

    def _find(self) -> None:
        if self._away:
            log.info("the fleet's store can be used", fleet=self.fleet.name)
        self._away, self._away_since = "", None
        self._reached.set()

    async def _learn(self, known: Known, *, is_whole: bool = False) -> None:
        """Take over what is known of the store, unless something newer is known already.

        ``is_whole``: it was read after all that is known.
        """
        if known.revision < self._revision() and known.exists and not is_whole:
            return
        async with self._news:
            self._known = known
            self._news.notify_all()
        self._learned.set()
        rollout = known.active.rollout
        number = rollout.version if rollout is not None else 0
        if number != self._rollout_since[0]:
            self._rollout_since = number, time.monotonic()

    async def run_wanted(self, again: bool = False) -> None:
        """Run the version that is active here, unless it runs already, and unchanged.

        ``again``: also one that was refused. It counts as refused until it runs.
        """
        async with self._taking:
            known = self._known
            if known is None or not known.exists or self.frozen is not None:
                return
            number = known.active.of(self.node)
            if self._refused is not None and self._refused[0] != number:
                self._refused = None  # nobody asks for that version any more
            if not number or self._lost(known) or (self._refused is not None and not again):
                return
            documents = known.log.documents(number)
            if documents is None:
                return  # its key comes with the next change of the watch
            if number == self.version and documents == self.services:
                self._refused = None
                return  # what was changed here alone while it was frozen is undone
            try:
                await self._take(number, documents, known.log.entry(number))
            except SteelyardError as error:
                self._refused = number, f"{error.where}: {error.message}".removeprefix(": ")
                log.error("a version of the fleet is refused", version=number, problem=str(error))
            except Exception as error:
                self._refused = number, f"a defect of the agent: {error!r}"
                log.exception("a version of the fleet broke", version=number)

    # -- reports

    async def _report(self) -> None:
        """Report for ever, and judge the rollout."""
        lease, kept_at, last = 0, 0.0, _NO_REPORT
        parts: Mapping[str, Part] | None = None
        while True:
            await asyncio.sleep(self.fleet.report_s * random.uniform(0.9, 1.1))  # noqa: S311
            if self._away:
                continue
            is_reported = False
            try:
                figures = await self._figures()
                report = self._made(figures)
                if not lease:
                    lease, parts = await self.store.client.grant(round(self.fleet.lease_s)), None
                    kept_at, last = 0.0, _NO_REPORT
                # A report does not prolong its lease, so its time counts from the last keep-alive.
                due = time.monotonic() - kept_at > self.fleet.lease_s / KEEP_ALIVES
                if due and kept_at:
                    await self._look_for_namesake()
                if due or _is_news(last, report) or self._rollout_since[0]:
                    await self.store.client.put(NODES + self.node, write_report(report), lease)
                    last, self._missed_since, self._unseen = report, None, ""
                if due:  # not before the report, so an old one does not stay if no other is taken
                    await self.store.client.keep_alive(lease)
                    kept_at = time.monotonic()
                if parts != figures.parts:
                    packed = write_parts(figures.parts)
                    await self.store.client.put(PARTS + self.node, packed, lease)
                    parts = figures.parts
                is_reported = True
                await self._note_seen(report.at)
                await self._judge()
            except LeaseLostError:
                lease = 0
            except StoreError as error:
                if is_reported:
                    log.debug("the rollout could not be judged", problem=error.message)
                else:
                    self._miss(error)
            except Exception:  # the task's root
                log.exception("reporting to the fleet broke")

    async def _note_seen(self, at: float) -> None:
        """Note that this balancer reports where it stays when the lease has ended."""
        if time.monotonic() - self._seen_at >= SEEN_EVERY_S:
            await self.store.note_seen(self.node, at)
            self._seen_at = time.monotonic()

    def _miss(self, error: StoreError) -> None:
        """Note why the store did not take the report; log it once the others miss it."""
        now = time.monotonic()
        if self._missed_since is None:
            self._missed_since = now
        if now - self._missed_since <= self.fleet.lease_s:
            return  # the last report still counts
        if not self._unseen:
            log.warning("the fleet's store does not take the report", problem=str(error))
        self._unseen = _with_remedy(error)

    def _made(self, figures: Figures) -> Report:
        now = time.time()
        self._window.add(time.monotonic(), figures.work)
        problem = figures.problem or self._unsaved or self._unreadable_words()
        work, before = self._window.work, self._window.before
        return Report(
            self.node,
            self._ident,
            __version__,
            now,
            figures.role,
            self.version,
            self.since,
            self._refused,
            problem,
            self.frozen,
            self._digest,
            figures.rings,
            figures.down,
            work,
            before,
        )

    async def _look_for_namesake(self) -> None:
        """See whether another balancer has reported under this one's name since our last report.

        Two with one name overwrite each other's reports, so each finds the other's now and then.
        """
        now = time.monotonic()
        try:
            found = await self.store.report_of(self.node)
        except UnreadableError:
            return  # ours takes its place
        if found is not None and found.ident != self._ident:
            if self._namesake_at is None:
                log.error("two balancers of the fleet have one name", node=self.node)
            self._namesake_at = now
        elif self._namesake_at is not None and now - self._namesake_at > self.fleet.lease_s:
            self._namesake_at = None

    async def reports(self) -> dict[str, Report]:
        """Return the balancers' reports. Raises StoreError, after which the store counts as away
        until it answers again.
        """
        try:
            return await self.store.reports()
        except StoreError as error:
            self._lose(error)
            raise

    async def _judge(self) -> None:
        """Promote or give up the rollout if it is time for that."""
        known = self._known
        if known is None or known.active.rollout is None:
            return
        rollout, (_, first_seen) = known.active.rollout, self._rollout_since
        reports = await self.store.reports()
        verdict = judge(rollout, reports, time.monotonic() - first_seen)
        if verdict.step is Step.WAIT:
            return
        is_good = verdict.step is Step.PROMOTE
        end = known.active.promoted if is_good else known.active.aborted
        try:
            await self.decide(known, end(verdict.why, f"lb-agent on {self.node}", time.time()))
        except OvertakenError:
            return  # another balancer was first
        level = log.info if is_good else log.error
        level(
            "the rollout is promoted" if is_good else "the rollout is given up",
            version=rollout.version,
            why=verdict.why,
        )
        await self.run_wanted()


def _with_remedy(error: StoreError) -> str:
    """Return what is wrong with the store, and what helps, on one line."""
    what = f"{error.where}: {error.message}" if error.where else error.message
    return f"{what} ({error.remedy})" if error.remedy else what


def _is_news(last: Report, new: Report) -> bool:
    """Return whether a report says something besides other figures."""
    same = replace(new, at=last.at, work=last.work, before=last.before)
    return same != last


class _Window:
    """What a balancer did in about the last minute, and with the version before."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, Work]] = []
        self.before = Work()

    @property
    def work(self) -> Work:
        """What was done since the version was taken, in about the last minute."""
        if not self._samples:
            return Work()
        return self._samples[-1][1].since(self._samples[0][1])

    def add(self, at: float, totals: Work) -> None:
        """Add a reading of the totals; ``at`` is a monotonic time."""
        self._samples.append((at, totals))
        while len(self._samples) > 2 and at - self._samples[1][0] >= WINDOW_S:
            del self._samples[0]

    def restart(self) -> None:
        """Begin anew, because another version runs now."""
        self.before = self.work
        del self._samples[:-1]
