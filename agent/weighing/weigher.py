"""Owns what is known of the backends' load beside the packet path's own sums: what they report
and how fast they turn out to be. Gives the passes their influences.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from agent.dataplane.program import Dataplane
from agent.model import BackendRef, Config, NodeKind, Scheduler, Service, TelemetryKind
from agent.state.identities import Identities
from agent.state.loads import counts_waiting
from agent.state.outliers import Tally
from agent.state.snapshot import Home, LearnedSpeed, Reported
from agent.telemetry.asks import Topic
from agent.telemetry.report import AgentCheck, EngineReport, Models, NodeReport
from agent.weighing.heads import Heads
from agent.weighing.learning import Learning
from agent.weighing.outliers import Outcomes, Outliers
from agent.weighing.reports import Heard, Reports
from agent.weighing.scores import Scores
from agent.weights import influence, score
from agent.weights.influence import Influence, Verdict
from agent.weights.speeds import advance

CAPACITY_EVERY_S = 10.0
# A GPU that wanted a reset may take its host's exporter along: its last word holds so long.
CONDEMNED_S = 300.0


class Weigher:
    """One data plane's. ``wake`` is called when weights or eligibility may have changed."""

    def __init__(self, dataplane: Dataplane, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._learning = Learning(dataplane.tables)
        self._heads = Heads(dataplane.tables, dataplane.clock.hz)
        self._scores = Scores(dataplane, self._learning.request_bytes)
        self._reports = Reports(self._scores, wake)
        self._draws: dict[str, int] = {}
        self._clocks: dict[BackendRef, float] = {}  # shares that throttling leaves
        self._clocks_at = 0.0
        self._last: tuple[Mapping[BackendRef, Influence], Mapping[str, int]] = ({}, {})
        self._usable: frozenset[BackendRef] = frozenset()  # as of the last sample
        self._outliers = Outliers()

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run, by name."""
        return {"telemetry": self._reports.run(), "scores": self._scores.run()}

    def adopt(self, config: Config, weights: Mapping[BackendRef, int], now: float) -> None:
        """After a restart: what the last agent had found holds until there are new samples."""
        self._learning.adopt(config, weights, now)

    def aim(self, config: Config, now: float) -> None:
        """Look after exactly these backends from now on."""
        self._reports.aim(config, now)

    def place(self, config: Config, ids: Identities) -> None:
        """After a pass: where in the tables they are."""
        self._scores.place(config, ids)
        self._learning.place(config, ids)
        self._heads.place(config, ids)

    def sample(
        self,
        config: Config,
        usable: Iterable[BackendRef],
        rtts: Mapping[BackendRef, float | None],
        tallies: Mapping[BackendRef, Tally],
        flooded: frozenset[str],
        now: float,
    ) -> None:
        """About once a second. Whatever changes by itself, by learning or as reports grow old,
        asks for a pass here.
        """
        self._usable = frozenset(usable)
        outcomes = Outcomes(tallies, flooded, self._scores.looks)
        self._outliers.take(config, outcomes, self._usable, now)
        self._scores.tick(rtts, now)
        self._learning.sample(self._usable, now, self._outliers.hasty)
        self._scores.hold(self._outliers.hasty)
        self._heads.sample()
        self._follow_draws(config, now)
        if now - self._clocks_at >= CAPACITY_EVERY_S:
            self._clocks_at = now
            self._follow_clocks(config, now)
        found = (self.influences(config, now), self._draws)
        if found != self._last:
            self._last = found
            self._wake()

    def _follow_clocks(self, config: Config, now: float) -> None:
        """Small steps towards what throttling leaves of each backend."""
        before, self._clocks = self._clocks, {}
        for service, ref in _nodes(config):
            if service.node.kind is NodeKind.NONE:
                continue
            heard = self._reports.heard(ref, Topic.NODE)
            wanted = 1.0
            if isinstance(heard.report, NodeReport) and heard.is_fresh(now):
                wanted = influence.clock_share(heard.report)
            share = advance(before.get(ref, 1.0), wanted)
            if share != 1.0:
                self._clocks[ref] = share

    # -- what passes want to know

    def influences(self, config: Config, now: float) -> dict[BackendRef, Influence]:
        """What reports and learned speed do to every backend."""
        return {ref: self._influence(service, ref, now) for service, ref in _nodes(config)}

    def _influence(self, service: Service, ref: BackendRef, now: float) -> Influence:
        out = self._out(service, ref, now)
        engine = self._reports.heard(ref, Topic.ENGINE)
        share = 1.0
        if isinstance(engine.report, AgentCheck) and engine.report.weight_share is not None:
            share = engine.report.weight_share
        learned = self._learning.learned(ref)
        factors, notes = influence.factors(
            learned.weight_share, learned.confidence, self._clocks.get(ref, 1.0), share
        )
        if service.telemetry.kind is not TelemetryKind.NONE and not engine.is_fresh(now):
            notes = (*notes, influence.STALE)
        if ref in self._outliers.hasty:
            notes = (*notes, influence.HASTY)
        return Influence(out.out, out.state, factors, notes, learned.bytes_per_connection)

    def _out(self, service: Service, ref: BackendRef, now: float) -> Verdict:
        """Why it gets no new flows, if anything says so."""
        node = self._reports.heard(ref, Topic.NODE)
        if isinstance(node.report, NodeReport) and now - node.asked_at < CONDEMNED_S:
            verdict = influence.of_gpus(node.report)
            if verdict.out:
                return verdict
        engine = self._reports.heard(ref, Topic.ENGINE)
        if isinstance(engine.report, AgentCheck):
            verdict = influence.of_agent_check(engine.report)
            if verdict.out:
                return verdict
        if service.model is not None:
            said = self._reports.heard(ref, Topic.MODELS).report
            models = said if isinstance(said, Models) else None
            since = self._reports.asked_since(ref, Topic.MODELS)
            waited_s = 0.0 if since is None else now - since
            verdict = influence.of_models(service.model, models, waited_s)
            if verdict.out:
                return verdict
        return self._outliers.verdict(ref)

    @property
    def draws(self) -> Mapping[str, int]:
        """How many backends are compared, by service of least-load, as of the last sample."""
        return self._draws

    def _follow_draws(self, config: Config, now: float) -> None:
        """One is by the weights alone: so where telemetry is mostly lost and no request bytes
        are seen, as scores say little then.
        """
        before, self._draws = self._draws, {}
        for service in config.services:
            if service.scheduler is not Scheduler.LEAST_LOAD:
                continue
            if self._is_blind(service, now):
                self._draws[service.name] = 1
                continue
            ratio = self._scores.ratio(service.name)
            last = before.get(service.name, service.draws)
            self._draws[service.name] = score.draws(service.draws, ratio, last)

    def _is_blind(self, service: Service, now: float) -> bool:
        return (
            not counts_waiting(service)
            and score.tells_queues(service)
            and self._most_are_silent(service, now)
        )

    def _most_are_silent(self, service: Service, now: float) -> bool:
        """Of those that get new flows: the others may be off."""
        refs = [ref for ref in self._usable if ref.service == service.name]
        heard = [self._reports.heard(ref, Topic.ENGINE).is_fresh(now) for ref in refs]
        return 2 * sum(heard) < len(heard)

    # -- what people want to know

    def reported(self, service: Service, ref: BackendRef, now: float) -> Reported | None:
        """What a backend's engine and GPUs say; None: nobody asks them."""
        if service.telemetry.kind is TelemetryKind.NONE and service.node.kind is NodeKind.NONE:
            return None
        engine = self._reports.heard(ref, Topic.ENGINE)
        node = self._reports.heard(ref, Topic.NODE)
        queue = engine.report if isinstance(engine.report, EngineReport) else EngineReport()
        host = NodeReport()
        if isinstance(node.report, NodeReport) and now - node.asked_at < CONDEMNED_S:
            host = node.report
        return Reported(
            asked=service.telemetry.kind is not TelemetryKind.NONE,
            fresh=engine.is_fresh(now),
            age_s=_age(engine, now),
            every_s=engine.pace_s or None,
            running=queue.running,
            waiting=queue.waiting,
            kv_usage=queue.kv_usage,
            gpu_share=queue.gpu_share,
            prompt_tokens=queue.prompt_tokens,
            cached_tokens=queue.cached_tokens,
            cached_share=self._reports.cached_share(ref),
            dropped=queue.dropped + host.dropped,
            problem=engine.failure,
            gpus=host.gpus,
            gpus_problem=node.failure,
            gpus_age_s=_age(node, now),
        )

    def ejections(self, ref: BackendRef) -> int:
        """How often a backend has been ejected since the agent began."""
        return self._outliers.ejections(ref)

    def first_byte(self, service: Service) -> str | None:
        """What the times of its answers are times of; None: it has none."""
        found = self._heads.first_byte(service)
        return found.value if found else None

    def home(self, service: Service) -> Home | None:
        """What the homes of its clients are worth; None: they have none."""
        return self._learning.homes.home(service)

    def learned(self, ref: BackendRef) -> LearnedSpeed | None:
        """What has been learned of a backend; None: its service does not learn."""
        if not self._learning.learns(ref):
            return None
        learned, estimate = self._learning.learned(ref), self._learning.estimate(ref)
        return LearnedSpeed(
            weight_share=learned.weight_share,
            bytes_per_connection=learned.bytes_per_connection,
            confidence=estimate.confidence,
            seconds_per_byte=estimate.seconds_per_byte,
            seconds_per_connection=estimate.seconds_per_connection,
            base_seconds=estimate.base_seconds,
            samples=estimate.samples,
        )


def _nodes(config: Config) -> Iterable[tuple[Service, BackendRef]]:
    for service in config.services:
        for backend in service.backends:
            yield service, BackendRef(service.name, backend.name)


def _age(heard: Heard, now: float) -> float | None:
    return now - heard.asked_at if heard.report is not None else None
