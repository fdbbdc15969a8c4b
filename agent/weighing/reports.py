"""Owns the servers' reports: asks for them, and keeps the newest of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.config.defaults import check_port
from agent.logs import get_logger
from agent.model import (
    Backend,
    BackendRef,
    Config,
    ModelLoaded,
    NodeKind,
    Service,
    TelemetryKind,
)
from agent.telemetry.asks import Target, Topic, usual_port
from agent.telemetry.monitor import Key, TelemetryMonitor
from agent.telemetry.report import EngineReport, Failure, NodeReport, Report
from agent.weighing.scores import Scores
from agent.weights import influence, score

log = get_logger()


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest report of one target, and what has gone wrong since.

    Times are on the monotonic clock. ``fresh_s``: how long a report counts; ``pace_s``: the time
    from one request to the next.
    """

    report: Report | None = None
    asked_at: float = 0.0
    failure: str = ""  # why the latest request brought no report; empty: it brought one
    fresh_s: float = 0.0
    pace_s: float = 0.0

    def is_fresh(self, now: float) -> bool:
        return self.report is not None and now - self.asked_at <= self.fresh_s


SILENT = Heard()
TOKENS_EVERY_S, TOKENS_KEPT_S = 5.0, 60.0


@dataclass(frozen=True, slots=True)
class _Tokens:
    """An engine's count of prompt tokens at a time, and of those that its prefix cache held."""

    at: float
    prompt: float
    cached: float


class Reports:
    """Asks for reports while ``run`` runs.

    ``on_word`` is called when a report may change weights or eligibility. It is not called for
    queues, which are passed to the scores directly.
    """

    def __init__(self, scores: Scores, on_word: Callable[[BackendRef], None]) -> None:
        self._scores = scores
        self._on_word = on_word
        self._monitor = TelemetryMonitor(self._ask, self._take)
        self._heard: dict[Key, Heard] = {}
        self._targets: dict[Key, Target] = {}
        self._since: dict[Key, float] = {}  # when each was first asked
        self._tokens: dict[BackendRef, deque[_Tokens]] = {}

    async def run(self) -> None:
        """Ask until cancelled."""
        await self._monitor.run()

    def aim(self, config: Config, now: float) -> None:
        """Ask about exactly the configured backends from now on. Reports of another server or of
        another kind of source no longer count.
        """
        targets = {
            (BackendRef(service.name, backend.name), topic): target
            for service in config.services
            if asks(service)
            for backend in service.backends
            for topic, target in _targets(service, backend)
        }
        kept = {
            key
            for key, target in targets.items()
            if key in self._targets and _source(target) == _source(self._targets[key])
        }
        self._since = {key: self._since[key] if key in kept else now for key in targets}
        self._heard = {
            key: replace(heard, fresh_s=_fresh_s(targets[key], heard.pace_s))
            for key, heard in self._heard.items()
            if key in kept
        }
        asked = {ref for ref, topic in kept if topic is Topic.ENGINE}
        self._tokens = {ref: counts for ref, counts in self._tokens.items() if ref in asked}
        self._targets = targets
        self._monitor.set_targets(targets)

    def heard(self, ref: BackendRef, topic: Topic) -> Heard:
        """Return the newest report of one backend."""
        return self._heard.get((ref, topic), SILENT)

    def asked_since(self, ref: BackendRef, topic: Topic) -> float | None:
        """Return since when this backend has been asked; None: it is not asked."""
        return self._since.get((ref, topic))

    def cached_share(self, ref: BackendRef) -> float | None:
        """Return the share of the last minute's prompt tokens that the engine's prefix cache held.

        None: it does not report that, or there were no prompts.
        """
        counts = self._tokens.get(ref)
        if not counts:
            return None
        prompt = counts[-1].prompt - counts[0].prompt
        return min((counts[-1].cached - counts[0].cached) / prompt, 1.0) if prompt > 0 else None

    def _take_tokens(self, ref: BackendRef, report: EngineReport, at: float) -> None:
        if report.prompt_tokens is None or report.cached_tokens is None:
            self._tokens.pop(ref, None)
            return
        counts, now = (
            self._tokens.setdefault(ref, deque()),
            _Tokens(at, report.prompt_tokens, report.cached_tokens),
        )
        if counts and (now.prompt < counts[-1].prompt or now.cached < counts[-1].cached):
            counts.clear()  # it is another engine, or it has restarted
        if len(counts) > 1 and at - counts[-2].at < TOKENS_EVERY_S:
            counts.pop()  # keep only one every few seconds, and the newest
        counts.append(now)
        while len(counts) > 1 and at - counts[1].at >= TOKENS_KEPT_S:
            counts.popleft()

    # -- called by the monitor

    def _ask(self, key: Key) -> None:
        ref, topic = key
        if topic is Topic.ENGINE:
            self._scores.asked(ref)

    def _take(
        self, key: Key, report: Report | Failure, asked_at: float, _got_at: float, pace_s: float
    ) -> None:
        before = self._heard.get(key, SILENT)
        if isinstance(report, Failure):
            if not before.failure:
                log.warning("no report", backend=str(key[0]), of=key[1].value, why=report.reason)
            self._heard[key] = replace(before, failure=report.reason)
            return
        if before.failure:
            log.info("reports again", backend=str(key[0]), of=key[1].value)
        fresh_s = _fresh_s(self._targets[key], pace_s)
        self._heard[key] = Heard(report, asked_at, fresh_s=fresh_s, pace_s=pace_s)
        if isinstance(report, EngineReport):
            self._scores.reported(key[0], report, asked_at, fresh_s)
            self._take_tokens(key[0], report, asked_at)
        elif _urgent(report) != _urgent(before.report):
            self._on_word(key[0])


def asks(service: Service) -> bool:
    """Return whether the service's servers are asked about their load, GPUs or models."""
    return (
        service.telemetry.kind is not TelemetryKind.NONE
        or service.node.kind is not NodeKind.NONE
        or service.model is not None
    )


def _fresh_s(target: Target, pace_s: float) -> float:
    return score.FRESH_PERIODS * max(target.question.interval_s, pace_s)


def _source(target: Target) -> tuple[object, ...]:
    """Return what identifies the source of a target's reports: address, port and kind."""
    question = target.question
    what = question.source if isinstance(question, ModelLoaded) else question.kind
    return target.address, target.port, what


def _urgent(report: Report | None) -> object:
    """Return the part of a report whose change requires a pass at once. The clocks of GPUs are
    followed more slowly.
    """
    return influence.of_gpus(report) if isinstance(report, NodeReport) else report


def _targets(service: Service, backend: Backend) -> list[tuple[Topic, Target]]:
    """Return what one backend is asked, by topic."""
    usual = check_port(service, backend)
    found = []
    if service.telemetry.kind is not TelemetryKind.NONE:
        port = service.telemetry.port or usual_port(service.telemetry) or usual
        question = Target(backend.address, port, service.telemetry, verify_tls=False)
        found.append((Topic.ENGINE, question))
    if service.node.kind is not NodeKind.NONE:
        port = service.node.port or usual_port(service.node) or usual
        found.append((Topic.NODE, Target(backend.address, port, service.node)))
    if service.model is not None:
        port = service.model.port or usual
        found.append((Topic.MODELS, Target(backend.address, port, service.model)))
    return found
