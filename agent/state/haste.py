"""Decides which backends are done with their clients suspiciously fast, as one is that answers with
errors which nobody can read. Pure.

Under TLS, and where answers do not pass the balancer, an error looks like an answer, and hardly any
connection is open at a backend that gives errors at once: to schedulers that compare, it looks
idle, and gets nearly everything. Such a backend is hasty: its connections last much shorter than
they usually do there, and few are open beside the others. A stranger's short connections do not
make it so, because those of its clients stay open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.model import BackendRef, Scheduler, Service

WINDOW_S = 10.0  # that is looked at, at most
LEAST_S, LEAST_AGAIN_S = 2.0, 5.0  # at least; of a hasty backend
TELLING, TELLING_AGAIN = 20, 5  # connections that ended tell; of a hasty backend, which gets few
EXPECTED = 25.0  # so many open ones would have been seen at an even share: none is no accident
KNOWN = 64  # from so many on that ended, it has a usual time
SHORT = 0.25  # of the usual time: they last so long at most
USUAL = 0.5  # as long again: it is as it was
FEW = 0.25  # of what the others have open by weight
_REMEMBERED = 256  # connections by which the usual time goes


@dataclass(frozen=True, slots=True)
class Looks:
    """How often the open connections of a backend were looked at, and all that were seen."""

    times: int = 0
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """Totals at one moment. ``ended``: connections."""

    at_s: float
    looks: Looks
    ended: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the connections of a backend last.

    ``readings``: oldest first. ``usual_s`` None: none has ended. ``ended``: of which the usual time
    is, at most ``KNOWN``. ``last_s``: how long they last now.
    """

    readings: tuple[Reading, ...] = ()
    usual_s: float | None = None
    ended: int = 0
    hasty: bool = False
    last_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The newest seconds of a backend, from a reading on."""

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
        """The mean."""
        seen = self.until.looks.seen - self.since.looks.seen
        return seen / self.looks if self.looks else 0.0

    @property
    def lasted_s(self) -> float:
        """A connection, in the mean (Little's law)."""
        return self.open * self.seconds / self.ended if self.ended else 0.0


def judges(service: Service) -> bool:
    """Whether a backend that looks idle gets more, and can be passed over."""
    return service.scheduler is Scheduler.LEAST_LOAD and len(service.backends) > 1


def follow(
    service: Service,
    before: Mapping[BackendRef, Pace],
    readings: Mapping[BackendRef, Reading],
    usable: frozenset[BackendRef],
) -> dict[BackendRef, Pace]:
    """The backends of a service after another reading, about a second after the last."""
    weights = {BackendRef(service.name, each.name): each.weight for each in service.backends}
    after = {
        ref: _read(before.get(ref, Pace()), readings[ref]) for ref in weights if ref in readings
    }
    beside = _All({ref: pace for ref, pace in after.items() if ref in usable}, weights)
    return {
        ref: _judged(pace, ref, beside) if ref in beside.paces else pace
        for ref, pace in after.items()
    }


@dataclass(slots=True)
class _All:
    """The backends that get new flows. Sums since one moment are made once for all of them."""

    paces: Mapping[BackendRef, Pace]
    weights: Mapping[BackendRef, int]
    _since: dict[float, tuple[float, int]] = field(default_factory=dict)

    def others(self, ref: BackendRef, since_s: float) -> tuple[float, int]:
        """What the others have open, in the mean, and how many ended there, since then."""
        if since_s not in self._since:
            found = [_stretch(pace, since_s) for pace in self.paces.values()]
            self._since[since_s] = sum(one.open for one in found), sum(one.ended for one in found)
        own = _stretch(self.paces[ref], since_s)
        there, ended = self._since[since_s]
        return max(there - own.open, 0.0), ended - own.ended

    def share_of(self, ref: BackendRef) -> float:
        """Its weight beside that of the others together."""
        others = sum(self.weights[other] for other in self.paces) - self.weights[ref]
        return self.weights[ref] / others if others else 0.0


def _stretch(pace: Pace, since_s: float) -> _Stretch:
    first = next((r for r in pace.readings if r.at_s >= since_s), pace.readings[-1])
    return _Stretch(first, pace.readings[-1])


def _read(pace: Pace, reading: Reading) -> Pace:
    kept = [old for old in pace.readings if old.at_s >= reading.at_s - WINDOW_S]
    if kept and (reading.ended < kept[-1].ended or reading.looks.times < kept[-1].looks.times):
        kept = []  # the totals have begun again
    return replace(pace, readings=(*kept, reading))


def _judged(pace: Pace, ref: BackendRef, beside: _All) -> Pace:
    least_s, telling = (LEAST_AGAIN_S, TELLING_AGAIN) if pace.hasty else (LEAST_S, TELLING)
    for since in reversed(pace.readings[:-1]):
        stretch = _Stretch(since, pace.readings[-1])
        if stretch.seconds < least_s or stretch.ended < telling:
            continue
        if pace.usual_s is None or pace.ended < KNOWN:
            return _followed(pace, stretch)
        if stretch.lasted_s >= (USUAL if pace.hasty else SHORT) * pace.usual_s:
            return _followed(pace, stretch)
        there, ended = beside.others(ref, since.at_s)
        if pace.hasty:
            # Where connections have become as short elsewhere, so are the requests.
            is_short = stretch.lasted_s * ended < USUAL * there * stretch.seconds
            if is_short or not ended:
                return replace(pace, last_s=stretch.lasted_s)
            return _followed(pace, stretch)
        fair = there * beside.share_of(ref)
        if stretch.open >= FEW * fair:
            return _followed(pace, stretch)
        # One that lasts is seen again and again, which is one sight of it.
        sights = min(stretch.looks, stretch.seconds / pace.usual_s)
        if fair * sights >= EXPECTED:
            return replace(pace, hasty=True, last_s=stretch.lasted_s)
    return pace


def _followed(pace: Pace, stretch: _Stretch) -> Pace:
    """The usual time goes by what is no haste."""
    newest = pace.readings[-1].ended - pace.readings[-2].ended
    part = min(1.0, newest / (_REMEMBERED if pace.ended >= KNOWN else KNOWN))
    lasted_s = stretch.lasted_s
    usual_s = lasted_s if pace.usual_s is None else pace.usual_s + part * (lasted_s - pace.usual_s)
    ended = min(pace.ended + newest, KNOWN)
    return replace(pace, usual_s=usual_s, ended=ended, hasty=False, last_s=lasted_s)
