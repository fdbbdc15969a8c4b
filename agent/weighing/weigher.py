"""Owns what is known about the backends' load besides the packet path's own sums: what they report
and how fast they turn out to be. It gives the passes the influences on weights and eligibility.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from agent.config.plan import added_and_removed, gone_backends
from agent.dataplane.program import Dataplane
from agent.model import BackendRef, Config, NodeKind, Scheduler, Service, TelemetryKind
from agent.state.identities import Identities
from agent.state.loads import counts_waiting
from agent.state.roster import same_backends
from agent.state.snapshot import Home, LearnedSpeed, Reported
from agent.telemetry.asks import Topic
from agent.telemetry.report import AgentCheck, EngineReport, Models, NodeReport
from agent.weighing.heads import Heads
from agent.weighing.learning import Learning
from agent.weighing.outliers import Outcomes, Outliers
from agent.weighing.reports import Heard, Reports, asks
from agent.weighing.scores import Scores
from agent.weights import influence, score
from agent.weights.influence import NOTHING, Influence, Verdict
from agent.weights.speeds import Speeds, advance

CAPACITY_EVERY_S = 10.0
# A GPU that needed a reset may have brought its host's exporter down with it, so the last report
# holds for so long.
CONDEMNED_S = 300.0


class Weigher:
    """The weighing of one data plane. ``wake`` is called with the names of services when the
    weights or the eligibility of their backends may have changed.
    """

    def __init__(self, dataplane: Dataplane, wake: Callable[[Iterable[str]], None]) -> None:
        self._wake = wake
        self._learning = Learning(dataplane.tables)
        self._heads = Heads(dataplane.tables, dataplane.clock.hz)
        self._scores = Scores(dataplane, self._learning.request_bytes)
        self._reports = Reports(self._scores, lambda ref: wake((ref.service,)))
        self._draws: dict[str, int] = {}
        self._clocks: dict[BackendRef, float] = {}  # shares of the clocks that throttling leaves
        self._clocks_at = 0.0
        self._influences: dict[BackendRef, Influence] = {}
        self._usable: frozenset[BackendRef] = frozenset()  # as of the last sample
        self._outliers = Outliers()
        self._aimed: Config | None = None
        self._placed: tuple[Config, Identities] | None = None

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the coroutines that have to run, by name."""
        return {"telemetry": self._reports.run(), "scores": self._scores.run()}

    def adopt(self, config: Config, weights: Mapping[BackendRef, int], now: float) -> None:
        """Use what the last agent had found, after a restart, until there are new samples."""
        self._learning.adopt(config, weights, now)

    def hear(self, speeds: Speeds, now: float) -> None:
        """Use what another balancer has learned, where there are no samples here."""
        self._learning.hear(speeds, now)

    def speeds(self) -> Iterator[Speeds]:
        """Return what was learned here, service by service."""
        return self._learning.speeds()

    def aim(self, config: Config, now: float) -> None:
        """Weigh exactly the configured backends from now on."""
        last, self._aimed = self._aimed, config
        for ref in gone_backends(last, config) if last else ():
            self._influences.pop(ref, None)
        self._reports.aim(config, now)

    def place(self, config: Config, ids: Identities) -> None:
        """Note after a pass where the backends are in the tables."""
        last, self._placed = self._placed, (config, ids)
        if last is not None and last[1] is ids and _weighs_alike(last[0], config):
            self._learning.see(added_and_removed(last[0], config)[0])
            return
        self._scores.place(config, ids)
        self._learning.place(config, ids)
        self._heads.place(config, ids)

    def recovered(self, ref: BackendRef) -> None:
        """End a backend's ejection, because its health check has failed and passes again."""
        self._outliers.recovered(ref)

    def sample(
        self,
        config: Config,
        usable: frozenset[BackendRef],
        rtt_s: Callable[[BackendRef], float | None],
        outcomes: Outcomes,
        flooded: frozenset[str],
        now: float,
    ) -> None:
        """Take the samples of about one second. Influences that change by themselves, by learning
        or because reports grow old, request a pass here.
        """
        self._usable = usable
        self._outliers.take(config, outcomes, usable, flooded, self._scores.looks)
        self._scores.tick(rtt_s, now)
        self._learning.sample(usable, now, self._outliers.hasty)
        self._scores.hold(self._outliers.hasty)
        self._heads.sample()
        draws = self._follow_draws(config, now)
        if now - self._clocks_at >= CAPACITY_EVERY_S:
            self._clocks_at = now
            self._follow_clocks(config, now)
        changed = self.refresh(config.services, now) | draws
        if changed:
            self._wake(changed)

    def _follow_clocks(self, config: Config, now: float) -> None:
        """Move the clock shares in small steps towards what throttling leaves of each backend."""
        before, self._clocks = self._clocks, {}
        asked = [s for s in config.services if s.node.kind is not NodeKind.NONE]
        for ref in (BackendRef(s.name, b.name) for s in asked for b in s.backends):
            heard = self._reports.heard(ref, Topic.NODE)
            wanted = 1.0
            if isinstance(heard.report, NodeReport) and heard.is_fresh(now):
                wanted = influence.clock_share(heard.report)
            share = advance(before.get(ref, 1.0), wanted)
            if share != 1.0:
                self._clocks[ref] = share

    # -- for the passes

    @property
    def influences(self) -> Mapping[BackendRef, Influence]:
        """The influences of reports and learned speed on backends as of the last ``refresh``;
        backends that are not named have none.
        """
        return self._influences

    def refresh(self, services: Iterable[Service], now: float) -> set[str]:
        """Determine the influences on the backends of these services, and return the names of the
        services where they have changed.
        """
        marked: dict[str, list[BackendRef]] = {}  # backends that may have an influence
        for ref in (*self._learning.moved, *self._outliers.marked, *self._clocks):
            marked.setdefault(ref.service, []).append(ref)
        held: dict[str, list[BackendRef]] = {}
        for ref in self._influences:
            held.setdefault(ref.service, []).append(ref)
        changed = set()
        for service in services:
            name, refs = service.name, marked.get(service.name, ())
            if asks(service):
                refs = [BackendRef(name, backend.name) for backend in service.backends]
            found = {ref: self._influence(service, ref, now) for ref in refs}
            found = {ref: one for ref, one in found.items() if one != NOTHING}
            before = {ref: self._influences.pop(ref) for ref in held.get(name, ())}
            self._influences |= found
            if found != before:
                changed.add(name)
        return changed

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
        """Return why the backend gets no new flows, if there is a reason."""
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
            report = self._reports.heard(ref, Topic.MODELS).report
            models = report if isinstance(report, Models) else None
            since = self._reports.asked_since(ref, Topic.MODELS)
            waited_s = 0.0 if since is None else now - since
            verdict = influence.of_models(service.model, models, waited_s)
            if verdict.out:
                return verdict
        return self._outliers.verdict(ref)

    @property
    def draws(self) -> Mapping[str, int]:
        """How many backends are compared, by service with least-load, as of the last sample."""
        return self._draws

    def _follow_draws(self, config: Config, now: float) -> set[str]:
        """Update the draws, and return the names of the services where they have changed.

        One draw means picking by the weights alone. It is used where telemetry is mostly lost and
        no request bytes are seen, because scores say little then.
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
        return {name for name, _ in before.items() ^ self._draws.items()}

    def _is_blind(self, service: Service, now: float) -> bool:
        return (
            not counts_waiting(service)
            and score.reports_queues(service)
            and self._most_are_silent(service, now)
        )

    def _most_are_silent(self, service: Service, now: float) -> bool:
        """Return whether most backends that get new flows do not report. The other backends do not
        count, as they may be off.
        """
        own = (BackendRef(service.name, backend.name) for backend in service.backends)
        refs = [ref for ref in own if ref in self._usable]
        heard = [self._reports.heard(ref, Topic.ENGINE).is_fresh(now) for ref in refs]
        return 2 * sum(heard) < len(heard)

    # -- for the operator

    def reported(self, service: Service, ref: BackendRef, now: float) -> Reported | None:
        """Return what a backend's engine and GPUs report; None: they are not asked."""
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
        """Return how often a backend has been ejected since the agent started."""
        return self._outliers.ejections(ref)

    def first_byte(self, service: Service) -> str | None:
        """Return what the service's times to the first byte measure; None: it has no such times."""
        found = self._heads.first_byte(service)
        return found.value if found else None

    def home(self, service: Service) -> Home | None:
        """Return what the homes of the service's clients are worth; None: they have none."""
        return self._learning.homes.home(service)

    def learned(self, ref: BackendRef) -> LearnedSpeed | None:
        """Return what has been learned about a backend; None: its service does not learn."""
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


def _age(heard: Heard, now: float) -> float | None:
    return now - heard.asked_at if heard.report is not None else None


def _weighs_alike(old: Config, new: Config) -> bool:
    """Return whether only settings of single backends have changed between the configurations."""
    return same_backends(old, new) and all(
        before is after or replace(before, backends=()) == replace(after, backends=())
        for before, after in zip(old.services, new.services, strict=True)
    )
