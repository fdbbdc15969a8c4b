"""Watches what happens to the backends' clients, and decides on ejections and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.config.durations import format_duration
from agent.config.plan import added_and_removed, gone_backends
from agent.logs import get_logger
from agent.model import BackendRef, BackendState, Config, Service
from agent.state import haste, outliers
from agent.state.haste import Looks, Pace, Reading
from agent.state.outliers import SETTLE_S, Tally, Watch, follow, judges
from agent.weights.influence import Verdict

log = get_logger()


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The outcomes of the backends' clients up to ``at_s``, and up to ``before_s``; ``moved``: the
    backends whose tallies differ between the two.
    """

    tallies: Mapping[BackendRef, Tally] = field(default_factory=dict)
    before: Mapping[BackendRef, Tally] = field(default_factory=dict)
    moved: frozenset[BackendRef] = frozenset()
    before_s: float = 0.0
    at_s: float = 0.0


class Outliers:
    """Which backends are ejected, and which are done with their clients too fast.

    An agent that has just started knows of none. A backend that still fails is ejected again within
    seconds; one that is too fast looks as if it had always been so.

    Only services that have had clients lately are looked at, as there may be thousands of others.
    """

    def __init__(self) -> None:
        self._config: Config | None = None
        self._judged: dict[str, Service] = {}
        self._paced: dict[str, Service] = {}
        self._awake: dict[str, float] = {}  # services that are looked at, and until when
        self._watches: dict[BackendRef, Watch] = {}
        self._verdicts: dict[BackendRef, Verdict] = {}
        self._paces: dict[BackendRef, Pace] = {}
        self.hasty: frozenset[BackendRef] = frozenset()  # finish too fast to be believed

    def take(
        self,
        config: Config,
        outcomes: Outcomes,
        usable: frozenset[BackendRef],
        flooded: frozenset[str] = frozenset(),
        looks: Callable[[BackendRef], Looks | None] = lambda _ref: None,
    ) -> None:
        """Take the next reading, about once a second.

        ``flooded``: services whose new flows are mostly forged. ``looks`` returns the looks at a
        backend's open connections.
        """
        self._follow(config)
        followed = self._judged.keys() | self._paced.keys()
        for name in {ref.service for ref in outcomes.moved} & followed:
            if name in self._judged and name not in self._awake:
                self._begin(self._judged[name], outcomes)
            self._awake[name] = outcomes.at_s + self._rest_s(name)
        for name in self._awake.keys() & self._judged.keys():
            self._take(self._judged[name], outcomes, usable, name in flooded)
        self._verdicts = {
            ref: verdict for ref, verdict in self._verdicts.items() if self._is_ejected(ref)
        }
        self._follow_paces(outcomes, usable, looks)
        self._awake = {
            name: until
            for name, until in self._awake.items()
            if until >= outcomes.at_s or not self._at_rest(name)
        }

    def recovered(self, ref: BackendRef) -> None:
        """Note that a backend's health check has failed and passes again."""
        if ref in self._watches:
            self._watches[ref] = outliers.recovered(self._watches[ref])

    def _follow(self, config: Config) -> None:
        last, self._config = self._config, config
        if config is last:
            return
        self._judged = {service.name: service for service in filter(judges, config.services)}
        self._paced = {one.name: one for one in filter(haste.judges, config.services)}
        for ref in gone_backends(last, config) if last else ():
            self._watches.pop(ref, None)
            self._paces.pop(ref, None)
        for name in {s.name for s in added_and_removed(last, config)[0]} if last else ():
            self._forget_unless(name)
        followed = self._judged.keys() | self._paced.keys()
        self._awake = {name: until for name, until in self._awake.items() if name in followed}

    def _forget_unless(self, name: str) -> None:
        """Forget what is known about a service for each kind of judgement that it no longer has."""
        for kind, known in ((self._judged, self._watches), (self._paced, self._paces)):
            if name not in kind:
                for ref in [ref for ref in known if ref.service == name]:
                    del known[ref]

    def _rest_s(self, name: str) -> float:
        """Return after how long without clients nothing remembered about a service changes."""
        judged = self._judged.get(name)
        return max(judged.outlier.window_s if judged else 0.0, haste.WINDOW_S) + 2 * SETTLE_S

    def _at_rest(self, name: str) -> bool:
        """Return whether time alone changes nothing about a service that has no clients."""
        refs = [
            BackendRef(name, backend.name)
            for service in (self._judged.get(name) or self._paced.get(name),)
            if service
            for backend in service.backends
        ]
        return not any(
            self._is_ejected(ref) or self._watches.get(ref, Watch()).times or ref in self.hasty
            for ref in refs
        )

    def _begin(self, service: Service, outcomes: Outcomes) -> None:
        """Give a service that was at rest the last reading before this one, as if it had been
        looked at all the time.
        """
        for backend in service.backends:
            ref = BackendRef(service.name, backend.name)
            if ref in outcomes.before:
                watch = self._watches.get(ref, Watch())
                last = outliers.Reading(outcomes.before_s, outcomes.before[ref])
                self._watches[ref] = replace(watch, readings=(last,))

    def _take(
        self, service: Service, outcomes: Outcomes, usable: frozenset[BackendRef], flooded: bool
    ) -> None:
        before, now_s = self._watches, outcomes.at_s
        after = follow(service, before, outcomes.tallies, usable, now_s, flooded=flooded)
        for ref, watch in after.items():
            self._tell(ref, before.get(ref, Watch()), watch, service.outlier.eject_s)
        self._watches.update(after)

    def _follow_paces(
        self,
        outcomes: Outcomes,
        usable: frozenset[BackendRef],
        looks: Callable[[BackendRef], Looks | None],
    ) -> None:
        for name in self._awake.keys() & self._paced.keys():
            service = self._paced[name]
            refs = [BackendRef(name, backend.name) for backend in service.backends]
            readings = {
                ref: Reading(outcomes.at_s, seen, outcomes.tallies[ref].closed)
                for ref in refs
                if ref in outcomes.tallies and (seen := looks(ref)) is not None
            }
            self._paces.update(haste.follow(service, self._paces, readings, usable))
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

    @property
    def marked(self) -> Iterable[BackendRef]:
        """The backends that are ejected or hasty."""
        return {*self._verdicts, *self.hasty}

    def verdict(self, ref: BackendRef) -> Verdict:
        """Return why a backend gets no new flows, if it is ejected."""
        return self._verdicts.get(ref, Verdict())

    def ejections(self, ref: BackendRef) -> int:
        """Return how often it has been ejected."""
        watch = self._watches.get(ref)
        return watch.ejections if watch else 0
