"""Owns the watches over objectives: counts the late answers of services that have some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from agent.config.durations import format_duration
from agent.dataplane import latency
from agent.dataplane.tables import Table
from agent.logs import get_logger
from agent.model import BackendRef, Config, Service
from agent.state.roster import Numbers, Roster
from agent.state.slo import Watch

log = get_logger()

type _Rows = dict[BackendRef, Numbers]  # counts by bucket, for each backend


class Objectives:
    """Follows the times to first bytes. ``look`` is called every few seconds."""

    def __init__(self) -> None:
        self._rows: dict[str, _Rows] = {}  # as of the last look, by service
        self.watches: Mapping[str, tuple[Watch, ...]] = {}  # by service, if it has any

    def look(self, config: Config, known: Roster, table: Table, at_s: float) -> None:
        """Read the counts of the services with objectives.

        Logs when an objective is missed, and when it is met again.
        """
        watches, rows = {}, {}
        for service in config.services:
            if not service.slo:
                continue
            refs = [BackendRef(service.name, each.name) for each in service.backends]
            refs = [ref for ref in refs if ref in known.place]
            ids = known.ids[[known.place[ref] for ref in refs]]
            counts = table[latency.FIRST_BYTE][ids].astype(np.int64)
            before, now = self._rows.get(service.name), dict(zip(refs, counts, strict=True))
            came = np.zeros(counts.shape[1], np.int64) if before is None else _grown(before, now)
            watches[service.name] = tuple(self._followed(service, came, at_s))
            rows[service.name] = now
        self.watches, self._rows = watches, rows

    def of(self, service: Service) -> tuple[Watch, ...]:
        """Return the watches over the service's current objectives."""
        found = self.watches.get(service.name, ())
        return tuple(each for each in found if each.objective in service.slo)

    def _followed(self, service: Service, came: Numbers, at_s: float) -> Iterator[Watch]:
        before = {each.objective: each for each in self.watches.get(service.name, ())}
        for objective in service.slo:
            old = before.get(objective) or Watch.begin(objective, at_s)
            late = latency.above(came, objective.within_s)
            new = old.add(at_s, int(came.sum()), late)
            if new.is_missed is not old.is_missed:
                _say(service, new)
            yield new


def _grown(before: _Rows, now: _Rows) -> Numbers:
    """Return what all backends have counted since ``before``, by bucket.

    A backend that is new, or whose counts decreased, has started at 0.
    """
    grown = [
        row - was if (was := before.get(ref)) is not None and not (row < was).any() else row
        for ref, row in now.items()
    ]
    return np.sum(grown, axis=0) if grown else np.zeros(latency.BUCKETS, np.int64)


def _say(service: Service, watch: Watch) -> None:
    objective, within = watch.objective, format_duration(watch.objective.within_s)
    facts = {
        "service": service.name,
        "objective": f"{objective.name}: {within}",
        "late": f"{watch.late_share or 0:.1%}",
        "may_be_late": f"{objective.budget:.0%}",
    }
    if watch.is_missed:
        log.warning("answers begin too late", **facts)
    else:
        log.info("answers begin in time again", **facts)
