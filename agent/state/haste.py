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
from agent.state.outliers import Tally

WINDOW_S = 10.0  # that is looked at, at most
LEAST_S = 2.0
TELLING = 20  # connections that ended tell
TELLING_AGAIN = 5  # of a hasty backend, which gets few
KNOWN = 64  # from so many on, it has a usual time
SHORT = 0.25  # of the usual time: they last so long at most
USUAL = 0.5  # as long again: it is as it was
FEW = 0.25  # of what the others have open by weight
_REMEMBERED = 256  # connections by which the usual time goes


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the connections of a backend last.

    ``readings``: times, open connections, and how many had ended, oldest first. ``usual_s`` None:
    none has ended. ``ended``: of which the usual time is, at most ``KNOWN``.
    """

    readings: tuple[tuple[float, int, int], ...] = ()
    usual_s: float | None = None
    ended: int = 0
    hasty: bool = False
    last_s: float = 0.0  # how long connections last now


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The newest seconds of a backend: their number, the mean of the open connections, and how
    many ended.
    """

    seconds: float
    open: float
    ended: int

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
    tallies: Mapping[BackendRef, Tally],
    usable: frozenset[BackendRef],
    now_s: float,
) -> dict[BackendRef, Pace]:
    """The backends of a service after another reading, about a second after the last."""
    weights = {BackendRef(service.name, each.name): each.weight for each in service.backends}
    after = {
        ref: _read(before.get(ref, Pace()), tallies[ref], now_s)
        for ref in weights
        if ref in tallies
    }
    for ref, pace in after.items():
        stretch = _stretch(pace, now_s)
        if stretch is None:
            continue
        others = {o: after[o] for o in after if o != ref and o in usable}
        since_s = now_s - stretch.seconds
        there = sum(_open(other, since_s) for other in others.values())
        fair = weights[ref] * there / max(sum(weights[o] for o in others), 1)
        is_few = there >= max(len(others), 1) and stretch.open < FEW * fair
        after[ref] = _judged(pace, stretch, is_few=is_few)
    return after


def _read(pace: Pace, tally: Tally, now_s: float) -> Pace:
    kept = [reading for reading in pace.readings if reading[0] >= now_s - WINDOW_S]
    if kept and tally.closed < kept[-1][2]:
        kept = []  # the totals have begun again
    reading = (now_s, max(tally.opened - tally.closed, 0), tally.closed)
    return replace(pace, readings=(*kept, reading))


def _stretch(pace: Pace, now_s: float) -> _Stretch | None:
    """As short as it takes to tell; None: too few connections have ended."""
    telling = TELLING_AGAIN if pace.hasty else TELLING
    for place in reversed(range(len(pace.readings) - 1)):
        at_s, _, ended_before = pace.readings[place]
        ended = pace.readings[-1][2] - ended_before
        if now_s - at_s >= LEAST_S and ended >= telling:
            return _Stretch(now_s - at_s, _open(pace, at_s), ended)
    return None


def _open(pace: Pace, since_s: float) -> float:
    """The mean since then."""
    counts = [count for at_s, count, _ in pace.readings if at_s >= since_s]
    return sum(counts) / len(counts) if counts else 0.0


def _judged(pace: Pace, stretch: _Stretch, *, is_few: bool) -> Pace:
    lasted_s = stretch.lasted_s
    if pace.usual_s is not None and pace.ended >= KNOWN:
        if pace.hasty:
            hasty = lasted_s < USUAL * pace.usual_s
        else:
            hasty = is_few and lasted_s < SHORT * pace.usual_s
        if hasty:
            return replace(pace, hasty=True, last_s=lasted_s)
    newest = pace.readings[-1][2] - pace.readings[-2][2]
    part = min(1.0, newest / (_REMEMBERED if pace.ended >= KNOWN else KNOWN))
    usual_s = lasted_s if pace.usual_s is None else pace.usual_s + part * (lasted_s - pace.usual_s)
    ended = min(pace.ended + newest, KNOWN)
    return replace(pace, usual_s=usual_s, ended=ended, hasty=False, last_s=lasted_s)
