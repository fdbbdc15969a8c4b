"""Owns what the agent writes of the load scores: engines' reports, and what stands in for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent.dataplane.program import Dataplane
from agent.dataplane.score import common_shares, counted
from agent.logs import get_logger
from agent.model import BackendRef, Config, Service, TelemetryKind
from agent.state.haste import Looks
from agent.state.identities import Identities
from agent.state.loads import KAPPA, bytes_held
from agent.telemetry.report import EngineReport
from agent.weights import score

log = get_logger()

STAND_IN_EVERY_S = 0.2
RATIO_HELD_S = 30.0  # while nobody reports
# Ray exports its figures every 10 s (metrics_report_interval_ms), LMDeploy takes its own that often
# (log_interval): one is as old as its page has been the same, whenever it was asked for.
EXPORTED_S = {TelemetryKind.RAY_SERVE: 12.0, TelemetryKind.LMDEPLOY: 12.0}
_REPORT = ("queue", "report_open", "report_embryonic", "is_hot", "report_until")
_STAND_IN_PERIODS = 5  # so long one counts, should the agent be gone


@dataclass(slots=True)
class _Place:
    """Where the load of a backend is, and what was reported of it. ``at``: its row of ``_Columns``.

    ``queue``: requests, as last reported.
    """

    ident: int
    service: Service
    at: int = 0
    open_when_asked: int = 0
    embryonic_when_asked: int = 0
    waiting_when_asked: int = 0  # bytes
    queue: float = 0.0
    told: EngineReport | None = None  # the newest figures that were others than those before
    told_at: float = 0.0
    open_when_told: tuple[int, int] = (0, 0)  # open and embryonic


class _Columns:
    """What is looked at of all backends at once, in arrays of one length: there may be thousands,
    and five looks a second. Those of a service stand side by side.

    ``until``: when what was reported is old; ``away``: what the way there weighs, in connections;
    ``times`` and ``seen``: looks at the open connections, and their sum. By the number of the
    service: ``requests_each``, what a connection is taken for, and ``kappa``.
    """

    def __init__(self, places: Mapping[BackendRef, _Place]) -> None:
        size = len(places)
        self.refs = tuple(places)
        self.ids = np.fromiter((place.ident for place in places.values()), np.int64, size)
        self.services = tuple({ref.service: place.service for ref, place in places.items()}.items())
        number = {name: n for n, (name, _) in enumerate(self.services)}
        self.service = np.fromiter((number[ref.service] for ref in places), np.int64, size)
        self.counts = Counter(ref.service for ref in places)
        self.until = np.zeros(size)
        self.away = np.zeros(size)
        self.requests_each = np.ones(len(self.services))
        self.kappa = np.full(len(self.services), KAPPA)
        self.times = np.zeros(size, np.int64)
        self.seen = np.zeros(size, np.int64)
        for at, place in enumerate(places.values()):
            place.at = at

    def keep(self, before: _Columns, kept: Sequence[tuple[int, int]]) -> None:
        """Take over the rows of backends that were there; by their places before and now."""
        was, now = np.array(kept, np.int64).reshape(-1, 2).T
        for name in ("until", "away", "times", "seen"):
            getattr(self, name)[now] = getattr(before, name)[was]


class Scores:
    """Of one data plane. Times are of the event loop's clock."""

    def __init__(self, dataplane: Dataplane, request_bytes: Callable[[str], float]) -> None:
        """``request_bytes``: of a usual request of a service."""
        self._dataplane = dataplane
        self._request_bytes = request_bytes
        self._places: dict[BackendRef, _Place] = {}
        self._columns = _Columns({})
        self._ratios: dict[str, tuple[float, float]] = {}  # and when it was told
        self._hasty: frozenset[BackendRef] = frozenset()
        self._periods = 0  # of standing in

    async def run(self) -> None:
        """Stand in for reports until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.stand_in(loop.time())
            except Exception:  # this task's root: it must not end the balancing
                log.exception("standing in for reports broke")
            await asyncio.sleep(STAND_IN_EVERY_S)

    def place(self, config: Config, ids: Identities) -> None:
        """After a pass: where the loads of the backends are."""
        before, self._places = self._places, {}
        telling = {service.name for service in config.services if score.tells_queues(service)}
        self._ratios = {name: one for name, one in self._ratios.items() if name in telling}
        rows = self._dataplane.tables.backend_load
        kept: list[tuple[BackendRef, int]] = []  # those that stay, and where they were
        renewed: list[BackendRef] = []  # asked in another way from now on
        for service in config.services:
            if not score.is_scored(service):
                # Maybe it was until now; jiffies go round, and then old words would count anew.
                own = [ids.backend_id(service, backend) for backend in service.backends]
                rows["kappa"][own] = KAPPA
                for word in _REPORT:
                    rows[word][own] = 0
                continue
            for backend in service.backends:
                ref = BackendRef(service.name, backend.name)
                ident, old = ids.backend_id(service, backend), before.get(ref)
                if old is None or old.ident != ident:
                    old = _Place(ident, service)
                else:
                    kept.append((ref, old.at))
                    if old.service.telemetry.kind is not service.telemetry.kind:
                        renewed.append(ref)
                old.service = service
                self._places[ref] = old
        columns, self._columns = self._columns, _Columns(self._places)
        self._columns.keep(columns, [(at, self._places[ref].at) for ref, at in kept])
        self._columns.until[[self._places[ref].at for ref in renewed]] = 0.0
        self._see_services()

    def asked(self, ref: BackendRef) -> None:
        """A report is being asked for: what it will say is of this moment."""
        place = self._places.get(ref)
        if place is not None:
            row = self._dataplane.tables.backend_load[place.ident]
            place.open_when_asked = int(row["open"]) + int(row["open_fix"])
            place.embryonic_when_asked = int(row["embryonic"]) + int(row["embryonic_fix"])
            place.waiting_when_asked = int(row["waiting"]) + int(row["waiting_fix"])

    def reported(
        self, ref: BackendRef, report: EngineReport, asked_at: float, fresh_s: float
    ) -> None:
        """An engine's report; the packet path gives it up by itself when it is older than
        ``fresh_s``.
        """
        place = self._places.get(ref)
        if place is None or report.queue is None:
            return
        queue = report.queue
        if report.running is None:
            # What waits is among the open connections; the others may run.
            settled = place.open_when_asked - place.embryonic_when_asked
            queue = max(queue, float(settled))
        place.queue = queue
        self._columns.until[place.at] = asked_at + fresh_s
        beta, usual = bytes_held(place.service), self._request_bytes(ref.service)
        hidden = score.hidden_connections(report, usual, place.waiting_when_asked, beta)
        row = self._dataplane.tables.backend_load[place.ident : place.ident + 1]
        open_then, embryonic_then = _open_then(place, report, asked_at)
        row["report_open"] = max(0, open_then)
        row["report_embryonic"] = max(0, embryonic_then)
        row["queue"] = score.fixed(queue + hidden + float(self._columns.away[place.at]))
        row["is_hot"] = score.is_hot(report) or self._passes_over(ref)
        row["kappa"] = score.kappa(usual, beta)
        row["report_until"] = self._jiffies_in(fresh_s)

    def tick(self, rtt_s: Callable[[BackendRef], float | None], now: float) -> None:
        """About once a second: round trips, and what part of the requests is our own."""
        columns, rows = self._columns, self._dataplane.tables.backend_load
        far = np.array([service.rtt_per_connection_s > 0 for _, service in columns.services], bool)
        columns.away[~far[columns.service]] = 0.0
        for at in np.flatnonzero(far[columns.service]).tolist():
            ref = columns.refs[at]
            each_s = self._places[ref].service.rtt_per_connection_s
            columns.away[at] = score.rtt_connections(rtt_s(ref), each_s)
        told: dict[str, tuple[float, int]] = {}
        for at in np.flatnonzero(columns.until > now).tolist():
            ref = columns.refs[at]
            queue, open_ = told.get(ref.service, (0.0, 0))
            open_ += int(counted(rows[columns.ids[at]]))
            told[ref.service] = (queue + self._places[ref].queue, open_)
        for service, (queue, open_) in told.items():
            ratio = score.smoothed(self.ratio(service), queue, open_)
            if ratio is not None:
                self._ratios[service] = ratio, now
        self._ratios = {
            service: (ratio, at)
            for service, (ratio, at) in self._ratios.items()
            if now - at < RATIO_HELD_S
        }
        self._see_services()

    def _see_services(self) -> None:
        """What is the same for all backends of a service, in so far as they do not report."""
        columns = self._columns
        each = [score.requests_each(self.ratio(name)) for name, _ in columns.services]
        columns.requests_each = np.array(each)
        kappas = (
            score.kappa(self._request_bytes(name), bytes_held(one))
            for name, one in columns.services
        )
        columns.kappa = np.fromiter(kappas, np.int64, len(columns.services))

    def stand_in(self, now: float) -> None:
        """What backends without a report that counts would report: their connections, each as
        many requests as one of the others turns out to be.

        So the connections opened since then weigh more there, too (``score.kappa``).
        """
        columns, table = self._columns, self._dataplane.tables.backend_load
        self._periods += 1
        rows = table[columns.ids]
        columns.times += 1
        columns.seen += np.maximum(rows["open"] + rows["open_fix"], 0)
        silent = columns.until <= now
        ids, rows, service = columns.ids[silent], rows[silent], columns.service[silent]
        open_ = counted(rows, common_shares(rows, service, len(columns.services))[service])
        queue = open_ * columns.requests_each[service] + columns.away[silent]
        for word, fix in (("open", "open_fix"), ("embryonic", "embryonic_fix")):
            table[f"report_{word}"][ids] = np.maximum(rows[word] + rows[fix], 0)
        table["queue"][ids] = np.minimum(queue * score.ONE, score.MOST)
        table["is_hot"][ids] = 0
        table["kappa"][ids] = columns.kappa[service]
        table["report_until"][ids] = self._jiffies_in(_STAND_IN_PERIODS * STAND_IN_EVERY_S)
        passed_over = [self._places[ref].ident for ref in self._hasty if self._passes_over(ref)]
        table["is_hot"][passed_over] = 1

    def looks(self, ref: BackendRef) -> Looks | None:
        """How many connections were open whenever somebody looked, five times a second; None:
        nobody looks.
        """
        place, columns = self._places.get(ref), self._columns
        if place is None:
            return None
        return Looks(int(columns.times[place.at]), int(columns.seen[place.at]))

    def hold(self, hasty: frozenset[BackendRef]) -> None:
        """Believe no scores of these: they are passed over but for half of their even share, so
        that it is seen when they are as usual again.
        """
        self._hasty = hasty

    def _passes_over(self, ref: BackendRef) -> bool:
        if ref not in self._hasty or ref not in self._places:
            return False
        return self._periods % (2 * self._columns.counts[ref.service]) != 0

    def ratio(self, service: str) -> float | None:
        """Requests in a service's engines by connections of this balancer, of the last half
        minute; None: nothing is told.
        """
        held = self._ratios.get(service)
        return held[0] if held else None

    def _jiffies_in(self, seconds: float) -> int:
        """The moment so many seconds from now, as the packet path counts."""
        jiffies = max(2, round(seconds * self._dataplane.clock.hz))
        return (self._dataplane.now_jiffies() + jiffies) & 0xFFFFFFFF


def _open_then(place: _Place, report: EngineReport, asked_at: float) -> tuple[int, int]:
    """The connections, and the embryonic ones of them, that the report's figures know of."""
    exported_s = EXPORTED_S.get(place.service.telemetry.kind, 0.0)
    # Not by its tokens: LMDeploy counts those at once.
    figures = replace(report, prompt_tokens=None, cached_tokens=None)
    if figures != place.told or asked_at - place.told_at >= exported_s:
        place.told, place.told_at = figures, asked_at
        place.open_when_told = place.open_when_asked, place.embryonic_when_asked
    return place.open_when_told
