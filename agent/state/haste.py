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
from dataclasses import dataclass, replace

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
    result = {}
    for ref, pace in after.items():
        others = {other: seen for other, seen in after.items() if other != ref and other in usable}
        result[ref] = _judged(pace, others, weights, ref)
    return result


def _read(pace: Pace, reading: Reading) -> Pace:
    kept = [old for old in pace.readings if old.at_s >= reading.at_s - WINDOW_S]
    if kept and (reading.ended < kept[-1].ended or reading.looks.times < kept[-1].looks.times):
        kept = []  # the totals have begun again
    return replace(pace, readings=(*kept, reading))


def _judged(
    pace: Pace,
    others: Mapping[BackendRef, Pace],
    weights: Mapping[BackendRef, int],
    ref: BackendRef,
) -> Pace:
    least_s, telling = (LEAST_AGAIN_S, TELLING_AGAIN) if pace.hasty else (LEAST_S, TELLING)
    stretch: _Stretch | None = None
    for since in reversed(pace.readings[:-1]):
        stretch = _Stretch(since, pace.readings[-1])
        if stretch.seconds < least_s or stretch.ended < telling:
            continue
        is_known = pace.usual_s is not None and pace.ended >= KNOWN
        if not is_known:
            break
        assert pace.usual_s is not None  # noqa: S101 (it is known)
        if pace.hasty:
            is_hasty = stretch.lasted_s < USUAL * pace.usual_s
            return replace(pace, hasty=is_hasty, last_s=stretch.lasted_s)
        if stretch.lasted_s >= SHORT * pace.usual_s:
            break
        fair = weights[ref] * _open_by_weight(others, weights, since.at_s)
        if stretch.open >= FEW * fair:
            break
        # One that lasts is seen again and again, which is one sight of it.
        sights = min(stretch.looks, stretch.seconds / pace.usual_s)
        if fair * sights >= EXPECTED:
            return replace(pace, hasty=True, last_s=stretch.lasted_s)
    else:
        return pace
    return _followed(pace, stretch)


def _open_by_weight(
    others: Mapping[BackendRef, Pace], weights: Mapping[BackendRef, int], since_s: float
) -> float:
    """Open connections of the others for a weight of 1, since then, in the mean."""
    total = 0.0
    for pace in others.values():
        first = next((r for r in pace.readings if r.at_s >= since_s), pace.readings[-1])
        total += _Stretch(first, pace.readings[-1]).open
    return total / max(sum(weights[other] for other in others), 1)


def _followed(pace: Pace, stretch: _Stretch) -> Pace:
    """The usual time goes by what is no haste."""
    newest = pace.readings[-1].ended - pace.readings[-2].ended
    part = min(1.0, newest / (_REMEMBERED if pace.ended >= KNOWN else KNOWN))
    lasted_s = stretch.lasted_s
    usual_s = lasted_s if pace.usual_s is None else pace.usual_s + part * (lasted_s - pace.usual_s)
    ended = min(pace.ended + newest, KNOWN)
    return replace(pace, usual_s=usual_s, ended=ended, last_s=lasted_s)
