"""Watches what becomes of the backends' clients, and says when one is ejected or put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from agent.config.durations import format_duration
from agent.model import BackendRef, BackendState, Config
from agent.state import haste
from agent.state.haste import Looks, Pace, Reading
from agent.state.outliers import Tally, Watch, follow, judges
from agent.weights.influence import Verdict

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What has become of the backends' clients so far; ``flooded``: services whose new flows are
    mostly of nobody.
    """

    tallies: Mapping[BackendRef, Tally] = field(default_factory=dict)
    flooded: frozenset[str] = frozenset()
    looks: Mapping[BackendRef, Looks] = field(default_factory=dict)  # at open connections


class Outliers:
    """Which backends are ejected, and which are done with their clients too fast.

    An agent that starts knows of none. One that still fails is ejected again in seconds; one that
    is done too fast seems to have been so always.
    """

    def __init__(self) -> None:
        self._watches: dict[BackendRef, Watch] = {}
        self._verdicts: dict[BackendRef, Verdict] = {}
        self._paces: dict[BackendRef, Pace] = {}
        self.hasty: frozenset[BackendRef] = frozenset()  # done too fast to be believed

    def take(
        self, config: Config, outcomes: Outcomes, usable: frozenset[BackendRef], now: float
    ) -> None:
        """The next reading, about once a second."""
        before, self._watches = self._watches, {}
        for service in filter(judges, config.services):
            is_flooded = service.name in outcomes.flooded
            after = follow(service, before, outcomes.tallies, usable, now, flooded=is_flooded)
            self._watches |= after
            for ref, watch in after.items():
                self._tell(ref, before.get(ref, Watch()), watch, service.outlier.eject_s)
        self._verdicts = {
            ref: verdict for ref, verdict in self._verdicts.items() if self._is_ejected(ref)
        }
        self._follow_paces(config, outcomes, usable, now)

    def _follow_paces(
        self, config: Config, outcomes: Outcomes, usable: frozenset[BackendRef], now: float
    ) -> None:
        before, self._paces = self._paces, {}
        readings = {
            ref: Reading(now, looks, outcomes.tallies[ref].closed)
            for ref, looks in outcomes.looks.items()
            if ref in outcomes.tallies
        }
        for service in filter(haste.judges, config.services):
            self._paces |= haste.follow(service, before, readings, usable)
        was, self.hasty = self.hasty, frozenset(r for r, pace in self._paces.items() if pace.hasty)
        for ref in self.hasty - was:
            pace = self._paces[ref]
            log.warning(
                "hasty: connections last much shorter than usual, so its errors may look like"
                " answers, and it gets half an even share",
                backend=str(ref),
                usual_ms=round((pace.usual_s or 0.0) * 1000, 1),
                now_ms=round(pace.last_s * 1000, 1),
            )
        for ref in was - self.hasty:
            log.info("no longer hasty", backend=str(ref))

    def _is_ejected(self, ref: BackendRef) -> bool:
        return ref in self._watches and self._watches[ref].ejected

    def _tell(self, ref: BackendRef, before: Watch, after: Watch, eject_s: float) -> None:
        if after.ejected and not before.ejected:
            lasts = format_duration(after.times * eject_s)
            again = f", ejected {after.ejections} times" if after.ejections > 1 else ""
            why = f"{after.why}; no new flows for {lasts}{again}"
            self._verdicts[ref] = Verdict(why, BackendState.EJECTED)
            log.warning("ejected", backend=str(ref), why=why)
        elif before.ejected and not after.ejected:
            log.info("put back after an ejection", backend=str(ref))

    def verdict(self, ref: BackendRef) -> Verdict:
        """Why a backend gets no new flows, if it is ejected."""
        return self._verdicts.get(ref, Verdict())

    def ejections(self, ref: BackendRef) -> int:
        """How often it has been ejected."""
        watch = self._watches.get(ref)
        return watch.ejections if watch else 0
