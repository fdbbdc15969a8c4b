"""Decides which backends finish connections suspiciously fast ("hasty" backends). Pure.

Under TLS, and where answers do not pass the balancer, an error cannot be told from an answer. A
backend that returns errors immediately has hardly any open connection, so schedulers that compare
backends see it as idle and send it nearly everything. Such a backend is hasty: its connections
are much shorter than is usual for it, and few are open compared with the other backends. Short
connections from an outsider do not make a backend hasty, because those of its clients stay open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.model import BackendRef, Scheduler, Service

WINDOW_S = 10.0  # the longest time that is looked at
LEAST_S, LEAST_AGAIN_S = 2.0, 5.0  # the shortest time to judge by; that for a hasty backend
# How many ended connections it takes to judge; fewer for a hasty backend, which gets few.
TELLING, TELLING_AGAIN = 20, 5
# At an even share so many open connections would have been seen, so seeing few is no accident.
EXPECTED = 25.0
KNOWN = 64  # ended connections from which on the usual duration is known
SHORT = 0.25  # hasty: connections last at most this part of the usual duration
USUAL = 0.5  # no longer hasty: they last this part of it again
FEW = 0.25  # hasty: at most this part of what the others have open, by weight
_REMEMBERED = 256  # connections over which the usual duration is averaged


@dataclass(frozen=True, slots=True)
class Looks:
    """How often a backend's open connections were counted, and the sum of these counts."""

    times: int = 0
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """Totals at one moment. ``ended``: connections that have ended."""

    at_s: float
    looks: Looks
    ended: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the connections of a backend last.

    ``readings``: oldest first. ``usual_s``: the usual duration; None: no connection has ended.
    ``ended``: how many connections that is based on, at most ``KNOWN``. ``last_s``: their duration
    now.
    """

    readings: tuple[Reading, ...] = ()
    usual_s: float | None = None
    ended: int = 0
    hasty: bool = False
    last_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The newest stretch of time of a backend, from one of its readings on."""

    since: Reading
    until: Reading

    @property
    def seconds(self) -> float:
        return self.until.at_s - self.since.at_s

    @property
    def ended(self) -> int:
        return self.until.ended - self.since.ended

    @property
    def looks(self) -> int:
        return self.until.looks.times - self.since.looks.times

    @property
    def open(self) -> float:
        """The mean number of open connections."""
        seen = self.until.looks.seen - self.since.looks.seen
        return seen / self.looks if self.looks else 0.0

    @property
    def lasted_s(self) -> float:
        """The mean duration of a connection (Little's law)."""
        return self.open * self.seconds / self.ended if self.ended else 0.0


def judges(service: Service) -> bool:
    """Return whether idle-looking backends get more flows, and others can be picked instead."""
    return service.scheduler is Scheduler.LEAST_LOAD and len(service.backends) > 1


def follow(
    service: Service,
    before: Mapping[BackendRef, Pace],
    readings: Mapping[BackendRef, Reading],
    usable: frozenset[BackendRef],
) -> dict[BackendRef, Pace]:
    """Return the backends' paces after another reading, about a second after the last."""
    weights = {BackendRef(service.name, each.name): each.weight for each in service.backends}
    after = {
        ref: _read(before.get(ref, Pace()), readings[ref]) for ref in weights if ref in readings
    }
    candidates = _Candidates({ref: pace for ref, pace in after.items() if ref in usable}, weights)
    return {
        ref: _judged(pace, ref, candidates) if ref in candidates.paces else pace
        for ref, pace in after.items()
    }


@dataclass(slots=True)
class _Candidates:
    """The backends that get new flows. The sums since a moment are computed once for all."""

    paces: Mapping[BackendRef, Pace]
    weights: Mapping[BackendRef, int]
    _since: dict[float, tuple[float, int]] = field(default_factory=dict)

    def others(self, ref: BackendRef, since_s: float) -> tuple[float, int]:
        """Return the mean number of open connections on the others, and how many ended there."""
        if since_s not in self._since:
            found = [_stretch(pace, since_s) for pace in self.paces.values()]
            self._since[since_s] = sum(one.open for one in found), sum(one.ended for one in found)
        own = _stretch(self.paces[ref], since_s)
        total, ended = self._since[since_s]
        return max(total - own.open, 0.0), ended - own.ended

    def share_of(self, ref: BackendRef) -> float:
        """Return a backend's weight relative to the total weight of the others."""
        others = sum(self.weights[other] for other in self.paces) - self.weights[ref]
        return self.weights[ref] / others if others else 0.0


def _stretch(pace: Pace, since_s: float) -> _Stretch:
    first = next((r for r in pace.readings if r.at_s >= since_s), pace.readings[-1])
    return _Stretch(first, pace.readings[-1])


def _read(pace: Pace, reading: Reading) -> Pace:
    kept = [old for old in pace.readings if old.at_s >= reading.at_s - WINDOW_S]
    if kept and (reading.ended < kept[-1].ended or reading.looks.times < kept[-1].looks.times):
        kept = []  # the totals have been reset
    return replace(pace, readings=(*kept, reading))


def _judged(pace: Pace, ref: BackendRef, candidates: _Candidates) -> Pace:
    least_s, telling = (LEAST_AGAIN_S, TELLING_AGAIN) if pace.hasty else (LEAST_S, TELLING)
    for since in reversed(pace.readings[:-1]):
        stretch = _Stretch(since, pace.readings[-1])
        if stretch.seconds < least_s or stretch.ended < telling:
            continue
        if pace.usual_s is None or pace.ended < KNOWN:
            return _followed(pace, stretch)
        if stretch.lasted_s >= (USUAL if pace.hasty else SHORT) * pace.usual_s:
            return _followed(pace, stretch)
        others_open, ended = candidates.others(ref, since.at_s)
        if pace.hasty:
            # If connections have become as short on the others, the requests have become shorter.
            is_short = stretch.lasted_s * ended < USUAL * others_open * stretch.seconds
            if is_short or not ended:
                return replace(pace, last_s=stretch.lasted_s)
            return _followed(pace, stretch)
        fair = others_open * candidates.share_of(ref)
        if stretch.open >= FEW * fair:
            return _followed(pace, stretch)
        # A connection that lasts is counted again and again, but that is only one observation.
        sights = min(stretch.looks, stretch.seconds / pace.usual_s)
        if fair * sights >= EXPECTED:
            return replace(pace, hasty=True, last_s=stretch.lasted_s)
    return pace


def _followed(pace: Pace, stretch: _Stretch) -> Pace:
    """Update the usual duration from a stretch in which the backend was not hasty."""
    newest = pace.readings[-1].ended - pace.readings[-2].ended
    part = min(1.0, newest / (_REMEMBERED if pace.ended >= KNOWN else KNOWN))
    lasted_s = stretch.lasted_s
    usual_s = lasted_s if pace.usual_s is None else pace.usual_s + part * (lasted_s - pace.usual_s)
    ended = min(pace.ended + newest, KNOWN)
    return replace(pace, usual_s=usual_s, ended=ended, hasty=False, last_s=lasted_s)
