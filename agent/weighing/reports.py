"""Owns what the servers reported: asks them, and keeps the newest words."""

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
    """The newest report of one target, and what went wrong since.

    Times are of the monotonic clock; ``fresh_s``: how long a report counts; ``pace_s``: how often
    it is asked.
    """

    report: Report | None = None
    asked_at: float = 0.0
    failure: str = ""  # why there was none since; empty: there was
    fresh_s: float = 0.0
    pace_s: float = 0.0

    def is_fresh(self, now: float) -> bool:
        return self.report is not None and now - self.asked_at <= self.fresh_s


SILENT = Heard()
TOKENS_EVERY_S, TOKENS_KEPT_S = 5.0, 60.0


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What an engine had been asked at a moment, and what of it its prefix cache held."""

    at: float
    prompt: float
    cached: float


class Reports:
    """Asks while ``run`` runs. ``on_word`` is called when a report may change weights or
    eligibility: not for queues, which go to the scores at once.
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
        """Ask about exactly the configured backends. What another server or another kind of
        source said does not go on counting.
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
            if key in self._targets and _speaker(target) == _speaker(self._targets[key])
        }
        self._since = {key: self._since[key] if key in kept else now for key in targets}
        self._heard = {
            key: replace(heard, fresh_s=_fresh_s(targets[key], heard.pace_s))
            for key, heard in self._heard.items()
            if key in kept
        }
        asked = {ref for ref, topic in kept if topic is Topic.ENGINE}
        self._tokens = {ref: told for ref, told in self._tokens.items() if ref in asked}
        self._targets = targets
        self._monitor.set_targets(targets)

    def heard(self, ref: BackendRef, topic: Topic) -> Heard:
        """The newest word of one backend."""
        return self._heard.get((ref, topic), SILENT)

    def asked_since(self, ref: BackendRef, topic: Topic) -> float | None:
        """Since when this one has been asked; None: it is not."""
        return self._since.get((ref, topic))

    def cached_share(self, ref: BackendRef) -> float | None:
        """Of the prompt tokens of the last minute, those that the engine's prefix cache held; None:
        it does not say, or nothing was asked.
        """
        told = self._tokens.get(ref)
        if not told:
            return None
        prompt = told[-1].prompt - told[0].prompt
        return min((told[-1].cached - told[0].cached) / prompt, 1.0) if prompt > 0 else None

    def _take_tokens(self, ref: BackendRef, report: EngineReport, at: float) -> None:
        if report.prompt_tokens is None or report.cached_tokens is None:
            self._tokens.pop(ref, None)
            return
        told, now = (
            self._tokens.setdefault(ref, deque()),
            _Tokens(at, report.prompt_tokens, report.cached_tokens),
        )
        if told and (now.prompt < told[-1].prompt or now.cached < told[-1].cached):
            told.clear()  # another engine, or it began anew
        if len(told) > 1 and at - told[-2].at < TOKENS_EVERY_S:
            told.pop()  # the newest, and one each few seconds
        told.append(now)
        while len(told) > 1 and at - told[1].at >= TOKENS_KEPT_S:
            told.popleft()

    # -- what the monitor calls

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
        elif _word(report) != _word(before.report):
            self._on_word(key[0])


def asks(service: Service) -> bool:
    """Whether its servers are asked about their load, their GPUs or their models."""
    return (
        service.telemetry.kind is not TelemetryKind.NONE
        or service.node.kind is not NodeKind.NONE
        or service.model is not None
    )


def _fresh_s(target: Target, pace_s: float) -> float:
    return score.FRESH_PERIODS * max(target.question.interval_s, pace_s)


def _speaker(target: Target) -> tuple[object, ...]:
    """Who speaks there, and of what."""
    question = target.question
    what = question.source if isinstance(question, ModelLoaded) else question.kind
    return target.address, target.port, what


def _word(report: Report | None) -> object:
    """What of a report asks for a pass at once; clocks of GPUs are followed in time."""
    return influence.of_gpus(report) if isinstance(report, NodeReport) else report


def _targets(service: Service, backend: Backend) -> list[tuple[Topic, Target]]:
    """What one backend is asked."""
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
