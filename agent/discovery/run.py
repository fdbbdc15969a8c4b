"""Owns the sources of backends: asks them, keeps what they said, and passes it on.

What was said last outlives the agent, so that a restart while a source is away loses no backend.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.discovery import kubernetes, sources
from agent.discovery.answer import Answer, Refused
from agent.errors import ConflictError, DiscoveryError, NotFoundError, SteelyardError
from agent.files import write_atomically
from agent.logs import get_logger
from agent.model import Discover, Service, ServiceKey, Target
from agent.state.sources import (
    Placed,
    SourceState,
    accept,
    departed,
    failed,
    follow,
    from_json,
    to_json,
)

log = get_logger()

TICK_S = 1.0
SWEEP_S = 5.0
RETRY_S = 5.0  # after an answer that cannot be used, at most
MIN_TTL_S = 1.0

type Flows = Callable[[str, Target], int]
type Found = Mapping[str, tuple[Placed, ...]]


@dataclass(frozen=True, slots=True)
class _Question:
    """What services with the same question share."""

    discover: Discover  # with the limits of no service
    family: int

    @staticmethod
    def of(service: Service) -> _Question:
        asked = replace(service.discover, min=0, max=0, most_removed=0.0, drain_s=0.0)
        return _Question(asked, service.key.vip.version)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a question, and when (seconds since the epoch)."""

    at: float
    answer: Answer | None
    problem: str = ""


def path_of(state_dir: Path, name: str) -> Path:
    """Return where an instance keeps what its sources said."""
    return state_dir / f"{name}.discovery.json"


def read(path: Path) -> dict[str, SourceState]:
    """Return what sources said before the agent started. What is damaged is logged, and lost."""
    try:
        return from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.error(
            "what sources of backends said before cannot be read; they are asked anew",
            problem=f"{path}: {error}",
        )
        return {}


def found_in(states: Mapping[str, SourceState]) -> Found:
    """Return the targets that are in use, by service."""
    return {name: state.placed for name, state in states.items() if state.placed}


@dataclass(frozen=True, slots=True)
class SourceView:
    """A service's source, as people see it."""

    service: Service
    state: SourceState
    asked: float | None  # when it was asked last, in seconds since the epoch
    refused: tuple[Refused, ...]  # what of its newest answer is no target


class Discovery:
    """The sources of the services of one instance.

    ``services`` returns the services at present. ``apply`` makes the targets backends, and raises
    SteelyardError if they cannot be. ``flows`` surveys the flow table, and returns a function that
    tells how many open flows a target of a service has.
    """

    def __init__(
        self,
        path: Path,
        states: Mapping[str, SourceState],
        services: Callable[[], tuple[Service, ...]],
        apply: Callable[[Found], Awaitable[None]],
        flows: Callable[[], Awaitable[Flows]],
    ) -> None:
        self._path = path
        self.states = dict(states)
        self._refused: dict[str, tuple[Refused, ...]] = {}
        self._asked: dict[str, float] = {}  # by service
        self._unapplied = ""  # why targets are not backends yet; empty: they are
        self._services, self._apply, self._flows = services, apply, flows
        self._watches: dict[_Question, asyncio.Task[None]] = {}
        self._outcomes: dict[_Question, _Outcome] = {}
        self._judged: dict[str, tuple[Discover, _Outcome]] = {}
        self._keys: dict[str, ServiceKey] = {}  # of the services that have a source
        self._swept = 0.0  # time.monotonic()
        self._passing = asyncio.Lock()
        self._is_unsaved = False
        self._news = asyncio.Event()
        self._applied = found_in(self.states)
        self._saved = self._applied
        self._refused_found: Found | None = None  # what could not be applied, until ``_retry_at``
        self._retry_at = 0.0  # time.monotonic()

    # -- what is known

    def views(self) -> tuple[SourceView, ...]:
        """Return the sources of all services that have one, in their order."""
        return tuple(
            SourceView(
                service,
                self.states.get(service.name, SourceState()),
                self._asked.get(service.name),
                self._refused.get(service.name, ()),
            )
            for service in self._services()
            if service.discover.is_on
        )

    def problems(self) -> tuple[str, ...]:
        """Return a sentence for each source that is not in order."""
        found = [
            f"service {view.service.name}: {view.service.discover.source}: {view.state.problem}; "
            "its targets stay as they are"
            for view in self.views()
            if view.state.problem
        ]
        return (*found, self._unapplied) if self._unapplied else tuple(found)

    async def accept(self, name: str) -> None:
        """Use the answer that looked like a mistake. Raises NotFoundError or ConflictError."""
        service = next((s for s in self._services() if s.name == name), None)
        if service is None or not service.discover.is_on:
            raise NotFoundError(
                f"there is no service {name} with a source of backends",
                where=f"service {name}",
                remedy="`lbctl discovery list` shows the existing ones",
            )
        state = self.states.get(name, SourceState())
        if state.held is None:
            raise ConflictError(
                "there is no answer that waits for being accepted",
                where=f"service {name}",
                remedy=f"`lbctl discovery show {name}` says what its source has named",
            )
        self.states[name] = accept(state, service.discover, state.held, time.time())
        await self._pass_on()
        if self._unapplied:
            raise ConflictError(self._unapplied, where=f"service {name}", remedy="see the message")

    # -- tasks

    async def run(self) -> None:
        """Ask the sources, and make what they name backends, for ever."""
        try:
            while True:
                self._news.clear()
                try:
                    self._aim()
                    self._judge()
                    await self._sweep()
                    await self._pass_on()
                except Exception:  # the task's root: a defect here must not end the agent
                    log.exception("discovery broke; backends stay as they are")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._news.wait()
        finally:
            for task in self._watches.values():
                task.cancel()

    def _aim(self) -> None:
        """Ask exactly the sources that services have now, and forget those of others."""
        services = {s.name: s for s in self._services() if s.discover.is_on}
        wanted = {_Question.of(service) for service in services.values()}
        for question in self._watches.keys() - wanted:
            self._watches.pop(question).cancel()
            self._outcomes.pop(question, None)
        for question in wanted - self._watches.keys():
            name = f"discovery of {question.discover.source}"
            self._watches[question] = asyncio.create_task(self._watch(question), name=name)
        self._follow_names(services)
        for known in (self.states, self._refused, self._asked, self._judged):
            for name in known.keys() - services.keys():
                del known[name]

    def _follow_names(self, services: Mapping[str, Service]) -> None:
        """Keep what is known of a service that has only another name now."""
        gone = {key: name for name, key in self._keys.items() if name not in services}
        for name, service in services.items():
            old = gone.get(service.key)
            if name not in self.states and old in self.states:
                self.states[name] = self.states.pop(old)
        self._keys = {name: service.key for name, service in services.items()}

    async def _watch(self, question: _Question) -> None:
        """Keep the newest outcome of a question, for ever."""
        work = self._ask if question.discover.kubernetes is None else self._follow
        while True:
            try:
                await work(question)
            except DiscoveryError as error:
                outcome = _Outcome(time.time(), None, error.message)
            except Exception as error:  # the task's root: the source is asked again
                log.exception("a source broke", source=question.discover.source)
                outcome = _Outcome(time.time(), None, f"a defect of the agent: {error!r}")
            else:
                continue
            self._note(question, outcome)
            await asyncio.sleep(_pause_s(question.discover, outcome))

    async def _ask(self, question: _Question) -> None:
        """Ask a source once, and wait until it has to be asked again."""
        discover = question.discover
        stamp = await self._stamp(discover)
        try:
            outcome = _Outcome(time.time(), await sources.ask(discover, question.family))
        except DiscoveryError as error:
            outcome = _Outcome(time.time(), None, error.message)
        self._note(question, outcome)
        if discover.file is None:
            await asyncio.sleep(_pause_s(discover, outcome))
            return
        while await self._stamp(discover) == stamp:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(TICK_S)

    async def _follow(self, question: _Question) -> None:
        """Keep what a source says from moment to moment, until it fails."""
        answers = kubernetes.answers(question.discover, question.family)
        async with contextlib.aclosing(answers):
            async for answer in answers:
                self._note(question, _Outcome(time.time(), answer))

    def _note(self, question: _Question, outcome: _Outcome) -> None:
        self._outcomes[question] = outcome
        self._news.set()

    async def _stamp(self, discover: Discover) -> object:
        """Return what changes with the file that is the source, if it is one."""
        if discover.file is None:
            return None
        return await asyncio.to_thread(sources.stamp, discover.file)

    def _judge(self) -> None:
        """Decide what news of sources change, and what new limits do."""
        for service in self._services():
            outcome = self._outcomes.get(_Question.of(service)) if service.discover.is_on else None
            if outcome is None or self._judged.get(service.name) == (service.discover, outcome):
                continue
            self._judged[service.name] = service.discover, outcome
            self._asked[service.name] = outcome.at
            before = self.states.get(service.name, SourceState())
            if outcome.answer is None:
                after = failed(before, outcome.problem, outcome.at)
            else:
                answer = outcome.answer
                after = follow(before, service.discover, answer.targets, outcome.at)
                self._refused[service.name] = answer.refused
            self.states[service.name] = after
            _log(service, before, after)

    async def _sweep(self) -> None:
        """Forget the targets that have drained. Looking for flows costs, so it is done seldom."""
        if time.monotonic() - self._swept < SWEEP_S:
            return
        self._swept = time.monotonic()
        if all(each.left is None for state in self.states.values() for each in state.placed):
            return
        flows = await self._flows()  # one survey for all services
        for service in self._services():
            if (state := self.states.get(service.name)) is not None:
                of = functools.partial(flows, service.name)
                self.states[service.name] = departed(state, service.discover, time.time(), of)

    async def _pass_on(self) -> None:
        """Make the targets backends if they have changed, and keep them on disk."""
        async with self._passing:
            found = found_in(self.states)
            if found == self._refused_found and time.monotonic() < self._retry_at:
                return
            if found != self._applied:
                try:
                    await self._apply(found)
                except SteelyardError as error:
                    self._refused_found, self._retry_at = found, time.monotonic() + RETRY_S
                    if self._unapplied != _sentence(error):
                        self._unapplied = _sentence(error)
                        log.error("discovered backends cannot be used", problem=str(error))
                    return
                self._applied = found
            self._unapplied, self._refused_found = "", None
            if found != self._saved:
                await self._save(found)

    async def _save(self, found: Found) -> None:
        """Keep the targets. Times of answers that named the same are not worth a write."""
        text = json.dumps(to_json(self.states), indent=1) + "\n"
        try:
            await asyncio.to_thread(write_atomically, self._path, text)
        except OSError as error:
            if not self._is_unsaved:
                log.error("what sources said cannot be saved", problem=f"{self._path}: {error}")
            self._is_unsaved = True
        else:
            self._saved, self._is_unsaved = found, False


def _pause_s(discover: Discover, outcome: _Outcome) -> float:
    """Return how long to wait before the next question, a little different each time."""
    pause_s = discover.interval_s
    if outcome.answer is None:
        pause_s = min(pause_s, RETRY_S)
    elif outcome.answer.valid_s is not None:
        pause_s = min(pause_s, max(outcome.answer.valid_s, MIN_TTL_S))
    return pause_s * random.uniform(0.9, 1.1)  # noqa: S311 (not for secrets)


def _sentence(error: SteelyardError) -> str:
    return f"{error.where}: {error.message}" if error.where else error.message


def _log(service: Service, before: SourceState, after: SourceState) -> None:
    """Log that a source begins or ceases to be in order."""
    about = {"service": service.name, "source": service.discover.source}
    if after.problem and after.problem != before.problem:
        log.warning(
            "the answer of a source is not used; its targets stay",
            problem=after.problem,
            remedy=f"lbctl discovery accept {service.name}" if after.held is not None else None,
            **about,
        )
    elif before.problem and not after.problem:
        log.info("a source is in order again", targets=len(after.named), **about)
