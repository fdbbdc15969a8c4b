"""Owns the readings of the data plane: samples counters and the flow table, and makes snapshots."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.companion.watch import Companions
from agent.dataplane import counters, latency, score, survey
from agent.dataplane.abi import FlowState, Reason
from agent.dataplane.contents import nat_ports
from agent.dataplane.latency import LatencyWindow
from agent.dataplane.program import Dataplane
from agent.logs import get_logger
from agent.metrics.objectives import Objectives
from agent.model import (
    Backend,
    BackendRef,
    BackendState,
    Config,
    Protocol,
    Scheduler,
    Service,
)
from agent.rebalancing import Rebalancer
from agent.rings.maglev import shares
from agent.state import nat_blocks, ranking, silence, zones
from agent.state.assemble import BackendParts, ServiceParts, backend_snapshot, service_snapshot
from agent.state.fleetview import FleetStatus
from agent.state.guardview import Guarded
from agent.state.identities import slot_of
from agent.state.loads import counts_waiting
from agent.state.matrix import Matrix, matrix
from agent.state.outliers import Tally
from agent.state.queries import ListQuery
from agent.state.rates import Counters, OpenedWindow, rates, total
from agent.state.roster import Flags, Numbers, Roster
from agent.state.situation import Situation, state_of
from agent.state.snapshot import (
    BackendSnapshot,
    DataplaneSnapshot,
    FailoverView,
    Load,
    NatPorts,
    Page,
    Rates,
    ServiceRow,
    ServiceSnapshot,
    Snapshot,
)
from agent.state.sources import SourceState
from agent.state.synflood import Syns
from agent.state.tables import ServiceSlot, TableContents
from agent.state.tierview import TierStatus
from agent.weighing.outliers import Outcomes
from agent.weighing.weigher import Weigher

log = get_logger()

# Fewer unanswered bytes than this come from clients that have vanished.
MUCH_UNANSWERED_BYTES = 1 << 18
SILENCES_EVERY_S = 5.0
_PART = 16  # backends of one batch, after which other tasks may run: about 5 ms
_STATES = {
    state.name.lower(): state
    for state in (FlowState.EMBRYONIC, FlowState.ACKED, FlowState.ESTABLISHED, FlowState.CLOSING)
}


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What a snapshot contains about the agent itself."""

    version: str
    name: str
    pid: int
    started: float  # seconds since the epoch
    config_path: str
    driver: str
    config_problem: str = ""
    changes_since_file: int = 0
    reconcile_problem: str = ""
    unsaved_problem: str = ""
    audit_problem: str = ""
    defects: int = 0
    events: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by event and level
    link_problems: tuple[str, ...] = ()
    vip_problems: tuple[str, ...] = ()
    sources: Mapping[str, SourceState] = field(default_factory=dict)  # of backends, by service
    discovery_problems: tuple[str, ...] = ()
    failover: FailoverView = field(default_factory=FailoverView)
    guard: Guarded = field(default_factory=Guarded)
    fleet: FleetStatus | None = None
    tier: TierStatus | None = None


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A sample of the counters, with its time and the roster that orders it."""

    at: float
    roster: Roster
    totals: counters.Totals


class Observer:
    """Reads one data plane. ``sample`` is called about once a second."""

    def __init__(
        self,
        dataplane: Dataplane,
        weigher: Weigher,
        rebalancer: Rebalancer,
        resets: Mapping[BackendRef, int],
        companions: Companions,
        held: Callable[[Service], int | None],
    ) -> None:
        """``held`` returns how many clients of a service wait for a backend."""
        self._held = held
        self._dataplane = dataplane
        self._weigher = weigher
        self._rebalancer = rebalancer
        self._resets = resets
        self._companions = companions
        self._sampled: _Sampled | None = None
        # Rates of the last second. A backend or service that is not in them had no traffic.
        self._backend_rates: dict[BackendRef, Rates] = {}
        self._drop_rates: dict[str, Rates] = {}
        self._window = OpenedWindow()
        self._latencies = LatencyWindow()
        self.objectives = Objectives()
        self.survey_cpu_s = 0.0  # CPU time of the last survey
        self.syns: Mapping[str, Syns] = {}  # by service, as of the last sample
        self.outcomes: Outcomes = Outcomes()  # of the backends' clients, as of the last sample
        self._nat_ports: tuple[NatPorts, ...] = ()
        self._nat_problems: dict[ServiceSlot, str] = {}
        self._unanswered: frozenset[BackendRef] = frozenset()
        self._silences: dict[str, silence.Watch] = {}
        self._silences_at = 0.0
        # Services to which no client gets a connection, with the number of recent attempts.
        self.unconnected: Mapping[str, int] = {}
        self.survey = self._read_survey()

    @property
    def totals(self) -> counters.Totals | None:
        """The totals of all backends and services as of the last sample."""
        return None if self._sampled is None else self._sampled.totals

    def first_bytes(self) -> tuple[int, ...]:
        """Return how many answers of all backends began within each bucket of time."""
        if self._sampled is None:
            return ()
        table, ids = self._dataplane.tables.backend_latency, self._sampled.roster.ids
        return tuple(table[latency.FIRST_BYTE][ids].sum(axis=0, dtype=np.int64).tolist())

    def _read_survey(self) -> survey.Survey:
        started = time.thread_time()
        tables, clock = self._dataplane.tables, self._dataplane.clock
        now = self._dataplane.now_jiffies() >> clock.shift
        patience_ns = latency.patience_ns(tables.backend_latency)
        found = survey.survey(tables, now, patience_ns=patience_ns)
        self._nat_ports = nat_ports(tables, found.nat_used)
        self.survey_cpu_s = time.thread_time() - started
        return found

    async def look_at_flows(self) -> survey.Survey:
        """Survey the flow table, in a thread because it takes milliseconds."""
        self.survey = await asyncio.to_thread(self._read_survey)
        self._look_at_ports()
        return self.survey

    def _look_at_answers(self, situation: Situation) -> None:
        """Log when a backend starts to leave many requests unanswered, and when it stops."""
        known, unanswered = situation.roster, self.survey.unanswered
        found = {
            ref: int(unanswered[known.ids[known.place[ref]]])
            for ref in known.those(unanswered[known.ids] >= MUCH_UNANSWERED_BYTES)
        }
        for ref in found.keys() - self._unanswered:
            log.warning(
                "requests have waited for too long, and weigh no more: the backend does not answer"
                " them, or somebody sends data in the name of clients",
                backend=str(ref),
                bytes=found[ref],
            )
        for ref in self._unanswered - found.keys():
            log.info("no request has waited for too long any more", backend=str(ref))
        self._unanswered = frozenset(found)

    def _look_at_ports(self) -> None:
        """Log when the ports towards a server run out, and when there are enough again."""
        problems = nat_blocks.exhausted(self._nat_ports, self._nat_problems)
        for server in problems.keys() - self._nat_problems.keys():
            log.warning("fullnat is short of ports", problem=problems[server])
        for server in self._nat_problems.keys() - problems.keys():
            log.info("fullnat has ports again", server=nat_blocks.described(server))
        self._nat_problems = problems

    def sample(self, situation: Situation, at: float) -> None:
        """Take one sample of the counters; ``at`` is a monotonic time in seconds.

        Values that have not changed since the last sample stay the same objects, because there may
        be thousands.
        """
        known, tables, last = situation.roster, self._dataplane.tables, self._sampled
        now = counters.totals(tables, known.ids, known.service_ids)
        before = now if last is None else _as_in(known, last, now)
        seconds = at - last.at if last else 0.0
        backends, services = now.moved(before)
        self._sampled = _Sampled(at, known, now)
        self._backend_rates = {
            known.refs[n]: rates(_of_backend(before, n), _of_backend(now, n), seconds)
            for n in np.flatnonzero(backends).tolist()
        }
        self._drop_rates = {
            known.names[n]: rates(_of_service(before, n), _of_service(now, n), seconds)
            for n in np.flatnonzero(services).tolist()
        }
        self.syns = _syns(known, now)
        last_outcomes: Outcomes = self.outcomes
        tallies = _renewed(last_outcomes.tallies, known.refs, backends, _tallies(now))
        moved = frozenset(self._backend_rates)
        self.outcomes = Outcomes(tallies, last_outcomes.tallies, moved, last_outcomes.at_s, at)
        opened = now.backends[counters.BACKEND_TOTALS.index("opened")].tolist()
        self._window = self._window.add(at, dict(zip(known.refs, opened, strict=True)))
        if self._latencies.is_due(at):
            self._latencies = self._latencies.add(at, tables.backend_latency, known.ids)
            self.objectives.look(situation.config, known, tables.backend_latency, at)
        self._look_at_answers(situation)
        if at - self._silences_at >= SILENCES_EVERY_S:
            self._silences_at = at
            self._look_at_connections(situation.config, at)

    def _look_at_connections(self, config: Config, at: float) -> None:
        """Log when no client gets a connection to a service, and when that is over."""
        self._silences = silence.follow_all(self._silences, at, self.syns)
        tcp = {each.name for each in config.services if each.key.protocol is Protocol.TCP}
        found = {n: each.begun for n, each in self._silences.items() if each.begun and n in tcp}
        for name in found.keys() - self.unconnected.keys():
            log.error("nobody gets a connection", service=name, begun=found[name])
        for name in self.unconnected.keys() - found.keys():
            log.info("connections are established, or none is begun any more", service=name)
        self.unconnected = found

    async def snapshot(
        self,
        situation: Situation,
        contents: TableContents,
        facts: AgentFacts,
        at: float,
        chosen: Collection[str] | None = None,
    ) -> Snapshot:
        """Return a snapshot of all services, or only of those in ``chosen``.

        Other tasks run between its batches, because ten thousand backends take seconds. So the
        counts of each batch are from a different moment.
        """
        part = situation.config.services
        if chosen is not None:
            part = tuple(service for service in part if service.name in chosen)
        actual = self._window.shares() if part else {}
        services = [await self._service(situation, each, contents, actual) for each in part]
        nobodys = counters.read(self._dataplane.tables, [], [0]).services[0]
        return Snapshot(
            at=at,
            version=facts.version,
            name=facts.name,
            pid=facts.pid,
            started=facts.started,
            config_path=facts.config_path,
            config_problem=facts.config_problem,
            changes_since_file=facts.changes_since_file,
            reconcile_problem=facts.reconcile_problem,
            unsaved_problem=facts.unsaved_problem,
            audit_problem=facts.audit_problem,
            defects=facts.defects,
            events=facts.events,
            link_problems=facts.link_problems,
            vip_problems=facts.vip_problems,
            sources=facts.sources,
            discovery_problems=facts.discovery_problems,
            failover=facts.failover,
            guard=facts.guard,
            fleet=facts.fleet,
            tier=facts.tier,
            dataplane=self._dataplane_snapshot(facts.driver, nobodys.passed),
            services=tuple(services),
            service_states=Counter(tracked.state for tracked in situation.services.values()),
            backend_states=Counter(found.state for found in situation.verdicts.values()),
            rates=total([*self._backend_rates.values(), *self._drop_rates.values()]),
        )

    async def page_of_backends(
        self, situation: Situation, contents: TableContents, query: ListQuery, at: float
    ) -> Page:
        """Return the backends that a list shows."""
        chosen, matched = ranking.backends(situation, self._figures(situation), query)
        shown, actual = frozenset(chosen), self._window.shares()
        made: dict[BackendRef, tuple[Service, BackendSnapshot]] = {}
        for service in situation.config.services:
            refs = {BackendRef(service.name, each.name): each for each in service.backends}
            listed = [each for ref, each in refs.items() if ref in shown]
            found = await self._backends(situation, service, listed, contents, actual)
            made |= {BackendRef(service.name, one.backend.name): (service, one) for one in found}
        searched = [s for s in situation.config.services if query.service in ("", s.name)]
        every = sum(len(service.backends) for service in searched)
        return Page(at, tuple(made[ref] for ref in chosen), (), matched, every)

    def page_of_services(self, situation: Situation, query: ListQuery, at: float) -> Page:
        """Return the services that a list shows."""
        known, figures = situation.roster, self._figures(situation)
        chosen, matched = ranking.services(situation, figures, query)
        configured = {each.name: each for each in situation.config.services}
        sums, place = figures.by_service(known), {name: n for n, name in enumerate(known.names)}
        table = self._dataplane.tables.backend_latency
        answers = latency.recent_first_bytes(table, self._latencies, known.ids)
        rows = []
        for name in chosen:
            service, n = configured[name], place[name]
            refs = [BackendRef(name, each.name) for each in service.backends]
            state, reason = state_of(service, situation.verdicts)
            lost = self._drop_rates.get(name, Rates())
            moved = (self._backend_rates[ref] for ref in refs if ref in self._backend_rates)
            counts, seen = counts_waiting(service), self._silences.get(name)
            is_tcp = service.key.protocol is Protocol.TCP
            rows.append(
                ServiceRow(
                    service,
                    state,
                    reason,
                    situation.services[name].since,
                    sum(situation.verdicts[ref].state is BackendState.UP for ref in refs),
                    len(refs),
                    int(sums.flows[n]),
                    total([*moved, lost]),
                    int(sums.waiting[n]) if counts else None,
                    latency.together(answers[known.service == n]) if counts else None,
                    seen.handshakes if seen is not None and is_tcp else None,
                )
            )
        return Page(at, (), tuple(rows), matched, len(known.names))

    def matrix(self, situation: Situation) -> Matrix:
        """Return all backends, by server and service."""
        return matrix(situation, self._figures(situation))

    def _figures(self, situation: Situation) -> ranking.Figures:
        """Return the figures of all backends by which lists are sorted."""
        known, tables = situation.roster, self._dataplane.tables
        new = np.zeros(len(known.refs))
        for ref, one in self._backend_rates.items():
            if ref in known.place:
                new[known.place[ref]] = one.new_flows_per_s
        rows = tables.backend_load[known.ids]
        waiting = np.maximum(rows["waiting"].astype(np.int64) + rows["waiting_fix"], 0)
        times = latency.p99_buckets(tables.backend_latency, self._latencies, known.ids)
        flows = self.survey.live[known.ids]
        return ranking.Figures((new * 1000).astype(np.int64), flows, waiting, times)

    async def _backends(
        self,
        situation: Situation,
        service: Service,
        chosen: Sequence[Backend],
        contents: TableContents,
        actual: Mapping[BackendRef, float],
    ) -> tuple[BackendSnapshot, ...]:
        """Return snapshots of some backends of a service."""
        if not chosen:
            return ()
        expected = self._expected(situation, service, contents)
        # Whether the service had any new flow in the last minute.
        came = any(actual.get(BackendRef(service.name, each.name)) for each in service.backends)
        made: list[BackendSnapshot] = []
        for part in itertools.batched(chosen, _PART):
            await asyncio.sleep(0)
            made += self._part(situation, service, part, expected, actual if came else None)
        return tuple(made)

    def _part(
        self,
        situation: Situation,
        service: Service,
        chosen: Sequence[Backend],
        expected: Mapping[int, float],
        actual: Mapping[BackendRef, float] | None,
    ) -> list[BackendSnapshot]:
        """Return the snapshots of one batch of backends. ``actual`` None: there was no new flow."""
        ids = [situation.ids.backend_id(service, each) for each in chosen]
        readings = counters.read(self._dataplane.tables, ids, [])
        backends: list[BackendSnapshot] = []
        for backend, ident in zip(chosen, ids, strict=True):
            ref = BackendRef(service.name, backend.name)
            parts = BackendParts(
                id=ident,
                verdict=situation.verdicts[ref],
                since=situation.backends[ref].since,
                health=situation.health[ref],
                hop=situation.hops.get(backend.address),
                share_expected=expected.get(ident, 0.0),
                share_actual=None if actual is None else actual.get(ref, 0.0),
                flows=int(self.survey.live[ident]),
                counts=readings.of_backend(ident),
                rates=self._backend_rates.get(ref, Rates()),
                load=self._load(service, ref, ident),
            )
            backends.append(backend_snapshot(backend, parts))
        return backends

    def _expected(
        self, situation: Situation, service: Service, contents: TableContents
    ) -> Mapping[int, float]:
        """Return the share of new flows that each backend of a service should get, by its id."""
        entry = contents.services.get(slot_of(service.key))
        if service.scheduler is not Scheduler.LEAST_CONN:
            return shares(np.frombuffer(entry.ring, dtype=np.uint16)) if entry else {}
        ids = _backend_ids(situation, service)  # the ring of least-conn has every backend once
        found = [situation.verdicts[ref] for ref in ids]
        by_name = zones.expected(zones.levels(service, found, None))
        return {ids[BackendRef(service.name, n)]: one for n, one in by_name.items()}

    async def _service(
        self,
        situation: Situation,
        service: Service,
        contents: TableContents,
        actual: Mapping[BackendRef, float],
    ) -> ServiceSnapshot:
        service_id = situation.ids.service_id(service)
        entry = contents.services.get(slot_of(service.key))
        backends = await self._backends(situation, service, service.backends, contents, actual)
        found = [situation.verdicts[BackendRef(service.name, b.name)] for b in service.backends]
        counted = counters.read(self._dataplane.tables, [], [service_id]).services[service_id]
        counts = counted.gone
        for one in backends:
            counts = counters.add(counts, one.counts)
        lost = self._drop_rates.get(service.name, Rates())
        of_service = ServiceParts(
            id=service_id,
            since=situation.services[service.name].since,
            counts=counts,
            drops=counted.drops,
            not_recorded=counted.not_recorded,
            rates=total([*(one.rates for one in backends), lost]),
            replied=counted.replied,
            not_replied=counted.not_replied,
            skew=self._rebalancer.skews.get(service.name),
            draws=entry.draws if entry and entry.draws else None,
            spill_over=zones.spills(situation.config.zones, service, found),
            challenges=bool(entry and entry.challenge),
            cookies=bool(entry and entry.cookies),
            cookies_taken=counted.cookies,
            cookies_problem=self._companions.problem_of(service),
            cookies_keys=self._companions.key_names(service),
            first_byte=self._weigher.first_byte(service),
            home=self._weigher.home(service),
            slo=self.objectives.of(service),
            held=self._held(service),
            first_byte_p95_s=self._first_byte_p95_s(service, backends),
        )
        return service_snapshot(service, of_service, backends)

    def _first_byte_p95_s(
        self, service: Service, backends: Sequence[BackendSnapshot]
    ) -> float | None:
        """Return the time within which 95 % of the last minute's answers began."""
        if not counts_waiting(service):
            return None
        ids = np.array([each.id for each in backends], np.int64)
        return latency.p95_s(self._dataplane.tables.backend_latency, self._latencies, ids)

    def _load(self, service: Service, ref: BackendRef, ident: int) -> Load:
        """Return the load of a backend, and how long it takes to answer."""
        tables, seen = self._dataplane.tables, self.survey
        now = self._dataplane.now_jiffies()
        row = score.as_of(tables.backend_load[ident : ident + 1], now)[0]
        load = Load(
            open=int(seen.open[ident]),
            score=score.shown(service.scheduler, row),
            busy=int(seen.busy[ident]),
            idle_resets=self._rebalancer.resets[ref],
            resets=self._resets.get(ref, 0),
            ejections=self._weigher.ejections(ref),
            hot=bool(row["is_hot"]),
            reported=self._weigher.reported(service, ref, time.monotonic()),
            learned=self._weigher.learned(ref),
        )
        if not counts_waiting(service):
            return load
        times = tables.backend_latency[ident]
        first_byte, handshake = (
            latency.summary(tables.backend_latency, self._latencies, ident, kind)
            for kind in latency.FIELDS
        )
        return replace(
            load,
            waiting_bytes=score.waiting_bytes(row),
            unanswered_bytes=int(seen.unanswered[ident]),
            errors=int(times["errors"]) if service.forward.is_nat else None,
            hangups=int(times["hangups"]) if service.forward.is_nat else None,
            awaiting=int(seen.awaiting[ident]),
            first_byte=first_byte,
            handshake=handshake,
        )

    def _dataplane_snapshot(self, driver: str, passed: dict[str, int]) -> DataplaneSnapshot:
        dataplane, seen = self._dataplane, self.survey
        attached = dataplane.is_attached()
        program = dataplane.program
        return DataplaneSnapshot(
            interface=dataplane.interface,
            ifindex=dataplane.attachment.ifindex,
            attached=attached,
            hook=dataplane.attachment.mode.value if attached else "none",
            hook_reason=dataplane.attachment.reason,
            driver=driver,
            program_id=program.info.id,
            abi=dataplane.abi_version,
            features=dataplane.features.names,
            compile_ms=program.compile_s * 1000,
            instructions=program.info.instructions,
            jited_bytes=program.info.jited_bytes,
            verified_insns=program.info.verified_insns,
            flow_slots=len(dataplane.tables.flows),
            flows_by_state={name: seen.state_count(state) for name, state in _STATES.items()},
            passed={name: n for name, n in passed.items() if name != Reason.NONE.label},
            backend_interfaces=tuple(one.interface for one in dataplane.attachments[1:]),
            nat_ports=self._nat_ports,
            nat_problems=tuple(self._nat_problems.values()),
            events_lost=int(dataplane.tables.trace["lost"][0]),
        )


def _as_in(known: Roster, last: _Sampled, now: counters.Totals) -> counters.Totals:
    """Return the last totals in the order of another roster.

    Backends and services that the last sample did not have get the totals of now, because what they
    counted before is unknown.
    """
    if last.roster is known:
        return last.totals
    was = [last.roster.place.get(ref, -1) for ref in known.refs]
    order = {name: n for n, name in enumerate(last.roster.names)}
    places = [order.get(name, -1) for name in known.names]
    return counters.Totals(
        _picked(last.totals.backends, was, now.backends),
        _picked(last.totals.services, places, now.services),
    )


def _picked(values: Numbers, places: list[int], otherwise: Numbers) -> Numbers:
    """Return the columns at these places; where a place is -1, the column of ``otherwise``.

    ``values`` and ``otherwise`` have a row for each counter.
    """
    at = np.array(places, np.int64)
    return np.where(at >= 0, values[:, at], otherwise) if values.size else otherwise


def _of_backend(totals: counters.Totals, number: int) -> Counters:
    packets, size, opened = totals.backends[:3, number].tolist()
    return Counters(packets, size, opened)


def _of_service(totals: counters.Totals, number: int) -> Counters:
    return Counters(drops=int(totals.services[0, number]))


def _syns(known: Roster, now: counters.Totals) -> dict[str, Syns]:
    """Return for each service how many SYNs opened a flow, and how many flows were established,
    challenged and verified.
    """
    opened, established = (
        known.by_service(now.backends[counters.BACKEND_TOTALS.index(name)])
        for name in ("opened", "established")
    )
    _, challenged, verified, gone_opened, gone_established = now.services
    columns = (opened + gone_opened, established + gone_established, challenged, verified)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {name: Syns(*row) for name, row in zip(known.names, rows, strict=True)}


def _tallies(now: counters.Totals) -> Callable[[int], Tally]:
    """Return a function that makes the tally of the backend at a place."""
    fields = ("opened", "established", "answers", "errors", "hangups", "closed")
    rows = now.backends[[counters.BACKEND_TOTALS.index(name) for name in fields]]
    return lambda number: Tally(*rows[:, number].tolist())


def _renewed[Key, Value](
    before: Mapping[Key, Value], keys: Sequence[Key], moved: Flags, make: Callable[[int], Value]
) -> dict[Key, Value]:
    """Return a value for each key: the one from before, unless its counts have changed."""
    return {
        key: make(n) if is_moved or key not in before else before[key]
        for n, (key, is_moved) in enumerate(zip(keys, moved.tolist(), strict=True))
    }


def _backend_ids(situation: Situation, service: Service) -> dict[BackendRef, int]:
    return {
        BackendRef(service.name, backend.name): situation.ids.backend_id(service, backend)
        for backend in service.backends
    }
