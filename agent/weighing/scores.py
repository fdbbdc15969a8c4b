"""Owns the agent's part of the load scores: engines' reports, and substitutes for missing ones."""

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
RATIO_HELD_S = 30.0  # how long a ratio holds while no backend reports
# Ray exports its figures every 10 s (metrics_report_interval_ms), and LMDeploy takes its own that
# often (log_interval). So a figure is as old as the page has been unchanged, whatever the time of
# the request.
EXPORTED_S = {TelemetryKind.RAY_SERVE: 12.0, TelemetryKind.LMDEPLOY: 12.0}
_REPORT = ("queue", "report_open", "report_embryonic", "is_hot", "report_until")
_STAND_IN_PERIODS = 5  # how long a substitute counts if the agent is gone


@dataclass(slots=True)
class _Place:
    """Where a backend's load is in the tables, and what was reported about it.

    ``at``: its row in ``_Columns``. ``queue``: requests, as last reported.
    """

    ident: int
    service: Service
    at: int = 0
    open_when_asked: int = 0
    embryonic_when_asked: int = 0
    waiting_when_asked: int = 0  # bytes
    queue: float = 0.0
    figures: EngineReport | None = None  # the newest figures that differed from those before
    figures_at: float = 0.0
    open_at_figures: tuple[int, int] = (0, 0)  # open and embryonic


class _Columns:
    """Values of all backends as arrays of one length, because there may be thousands of backends
    and there are five looks a second. The backends of a service are adjacent.

    ``until``: when the report becomes too old; ``away``: what the way to the backend weighs, in
    connections; ``times`` and ``seen``: the number of looks at the open connections, and the sum
    of what they saw. By the number of the service: ``requests_each``, for how many requests a
    connection is taken, and ``kappa``.
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
        """Copy the rows of backends that stay; ``kept`` has their places before and now."""
        was, now = np.array(kept, np.int64).reshape(-1, 2).T
        for name in ("until", "away", "times", "seen"):
            getattr(self, name)[now] = getattr(before, name)[was]


class Scores:
    """The load scores of one data plane. Times are on the event loop's clock."""

    def __init__(self, dataplane: Dataplane, request_bytes: Callable[[str], float]) -> None:
        """``request_bytes`` returns the size of a service's usual request."""
        self._dataplane = dataplane
        self._request_bytes = request_bytes
        self._places: dict[BackendRef, _Place] = {}
        self._columns = _Columns({})
        self._ratios: dict[str, tuple[float, float]] = {}  # and the time of the last report
        self._hasty: frozenset[BackendRef] = frozenset()
        self._periods = 0  # how often ``stand_in`` has run

    async def run(self) -> None:
        """Write substitutes for missing reports until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.stand_in(loop.time())
            except Exception:  # the task's root: a defect here must not stop balancing
                log.exception("standing in for reports broke")
            await asyncio.sleep(STAND_IN_EVERY_S)

    def place(self, config: Config, ids: Identities) -> None:
        """Note after a pass where the loads of the backends are."""
        before, self._places = self._places, {}
        asked = {service.name for service in config.services if score.reports_queues(service)}
        self._ratios = {name: one for name, one in self._ratios.items() if name in asked}
        rows = self._dataplane.tables.backend_load
        kept: list[tuple[BackendRef, int]] = []  # backends that stay, and where they were
        renewed: list[BackendRef] = []  # backends that are asked in another way from now on
        for service in config.services:
            if not score.is_scored(service):
                # It may have been scored until now. Jiffies wrap around, and an old report would
                # then count again.
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
        """Note the load at the time when a report is requested, which it will describe."""
        place = self._places.get(ref)
        if place is not None:
            row = self._dataplane.tables.backend_load[place.ident]
            place.open_when_asked = int(row["open"]) + int(row["open_fix"])
            place.embryonic_when_asked = int(row["embryonic"]) + int(row["embryonic_fix"])
            place.waiting_when_asked = int(row["waiting"]) + int(row["waiting_fix"])

    def reported(
        self, ref: BackendRef, report: EngineReport, asked_at: float, fresh_s: float
    ) -> None:
        """Write an engine's report. The packet path ignores it by itself once it is older than
        ``fresh_s``.
        """
        place = self._places.get(ref)
        if place is None or report.queue is None:
            return
        queue = report.queue
        if report.running is None:
            # Waiting requests are among the open connections; those on the others may be running.
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
        """Update round trips, and the ratio of requests to our connections, about once a second."""
        columns, rows = self._columns, self._dataplane.tables.backend_load
        far = np.array([service.rtt_per_connection_s > 0 for _, service in columns.services], bool)
        columns.away[~far[columns.service]] = 0.0
        for at in np.flatnonzero(far[columns.service]).tolist():
            ref = columns.refs[at]
            each_s = self._places[ref].service.rtt_per_connection_s
            columns.away[at] = score.rtt_connections(rtt_s(ref), each_s)
        sums: dict[str, tuple[float, int]] = {}
        for at in np.flatnonzero(columns.until > now).tolist():
            ref = columns.refs[at]
            queue, open_ = sums.get(ref.service, (0.0, 0))
            open_ += int(counted(rows[columns.ids[at]]))
            sums[ref.service] = (queue + self._places[ref].queue, open_)
        for service, (queue, open_) in sums.items():
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
        """Update the values that all backends of a service share while they do not report."""
        columns = self._columns
        each = [score.requests_each(self.ratio(name)) for name, _ in columns.services]
        columns.requests_each = np.array(each)
        kappas = (
            score.kappa(self._request_bytes(name), bytes_held(one))
            for name, one in columns.services
        )
        columns.kappa = np.fromiter(kappas, np.int64, len(columns.services))

    def stand_in(self, now: float) -> None:
        """Write substitutes for backends without a current report.

        Their connections are counted, each as so many requests as a connection of the backends that
        report. As after a report, connections opened since then weigh more (``score.kappa``).
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
        """Return the looks at a backend's open connections, made five times a second; None: it is
        not looked at.
        """
        place, columns = self._places.get(ref), self._columns
        if place is None:
            return None
        return Looks(int(columns.times[place.at]), int(columns.seen[place.at]))

    def hold(self, hasty: frozenset[BackendRef]) -> None:
        """Ignore the scores of these backends. They are passed over, except for half of an even
        share, which shows when they are normal again.
        """
        self._hasty = hasty

    def _passes_over(self, ref: BackendRef) -> bool:
        if ref not in self._hasty or ref not in self._places:
            return False
        return self._periods % (2 * self._columns.counts[ref.service]) != 0

    def ratio(self, service: str) -> float | None:
        """Return the ratio of requests in a service's engines to connections of this balancer, over
        the last half minute; None: no reports.
        """
        held = self._ratios.get(service)
        return held[0] if held else None

    def _jiffies_in(self, seconds: float) -> int:
        """Return the time so many seconds from now, in the packet path's jiffies (32 bits)."""
        jiffies = max(2, round(seconds * self._dataplane.clock.hz))
        return (self._dataplane.now_jiffies() + jiffies) & 0xFFFFFFFF


def _open_then(place: _Place, report: EngineReport, asked_at: float) -> tuple[int, int]:
    """Return the open connections, and how many of them were embryonic, at the time that the
    report's figures describe.
    """
    exported_s = EXPORTED_S.get(place.service.telemetry.kind, 0.0)
    # Tokens are left out of the comparison, because LMDeploy updates those at once.
    figures = replace(report, prompt_tokens=None, cached_tokens=None)
    if figures != place.figures or asked_at - place.figures_at >= exported_s:
        place.figures, place.figures_at = figures, asked_at
        place.open_at_figures = place.open_when_asked, place.embryonic_when_asked
    return place.open_at_figures
