"""Decides which backends are outliers, by how many of their clients' requests fail and how many
of their connections are not established. Pure.

This is what Envoy calls outlier detection. A backend is judged by its most recent clients compared
with those of the other backends, so problems that affect all alike, such as a flood or a client
that sends nonsense, eject no backend. An attacker can begin connections to a backend that never
get established, but cannot reduce the number that do; a backend is ejected only if few connections
are established there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.model import BackendRef, Forward, Outlier, Protocol, Service

SETTLE_S = 2.0  # time allowed for the client's ACK: a SYN that is lost is sent again after 1 s
FEWER = 0.25  # of the others' established connections, by weight: fewer is no even share
WORSE = 2.0  # how many times the others' share of failures a backend must have
# The most common cause if the health check passes but clients' connections are not established.
_ON_LO = "is the VIP on its lo? run `lbctl doctor --role backend` there"
_ASKS = {
    Forward.DSR: _ON_LO,
    Forward.IPIP: f"does it unpack ipip, and {_ON_LO}",
    Forward.GUE: f"does it unpack gue, and {_ON_LO}",
    Forward.NAT: "do its answers come back through this balancer?",
    Forward.FULLNAT: "is a firewall in the way?",
}
MOST_TIMES = 10  # an ejection lasts at most so many times as long as the first one
_AT_ONCE_S = 1e-9  # a time before any reading


@dataclass(frozen=True, slots=True)
class Tally:
    """Totals of a backend.

    ``opened``, ``established`` and ``closed`` are connections that began, were established and
    ended; ``answers`` are requests that were answered, ``errors`` those answered with an error
    (429, 5xx), and ``hangups`` requests that the backend left unanswered by a FIN or RST.
    """

    opened: int = 0
    established: int = 0
    answers: int = 0
    errors: int = 0
    hangups: int = 0
    closed: int = 0

    def since(self, before: Tally) -> Tally:
        """Return what was added since ``before``; 0 for a total that has been reset."""
        return Tally(
            max(self.opened - before.opened, 0),
            max(self.established - before.established, 0),
            max(self.answers - before.answers, 0),
            max(self.errors - before.errors, 0),
            max(self.hangups - before.hangups, 0),
            max(self.closed - before.closed, 0),
        )

    def is_less_than(self, before: Tally) -> bool:
        """Return whether a total is smaller than it was, so that all have been reset."""
        return (
            self.opened < before.opened
            or self.established < before.established
            or self.answers < before.answers
            or self.errors < before.errors
            or self.hangups < before.hangups
            or self.closed < before.closed
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.opened + other.opened,
            self.established + other.established,
            self.answers + other.answers,
            self.errors + other.errors,
            self.hangups + other.hangups,
            self.closed + other.closed,
        )

    @property
    def requests(self) -> int:
        """The requests that have ended."""
        return self.answers + self.hangups

    @property
    def failed(self) -> int:
        """The requests that have failed."""
        return self.errors + self.hangups


@dataclass(frozen=True, slots=True)
class Reading:
    """The totals at one moment."""

    at_s: float
    tally: Tally


@dataclass(frozen=True, slots=True)
class Watch:
    """The state of one backend. Times are of a monotonic clock.

    ``readings``: since it was last put back, oldest first. ``until_s``: when it is put back; 0: it
    is not ejected. ``times``: how many times as long as the first ejection the last one was.
    ``quiet_s``: since when nothing was found. ``ejections``: their number since the agent started.
    """

    readings: tuple[Reading, ...] = ()
    until_s: float = 0.0
    times: int = 0
    quiet_s: float = 0.0
    why: str = ""
    ejections: int = 0

    @property
    def ejected(self) -> bool:
        """Whether it gets no new flows."""
        return self.until_s > 0


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found against a backend: the share that failed, and the reason in words."""

    share: float
    why: str


@dataclass(slots=True)
class _Candidates:
    """The backends that get new flows. The sums since a moment are computed once for all."""

    watches: Mapping[BackendRef, Watch]
    weights: Mapping[BackendRef, int]
    _since: dict[float, Tally] = field(default_factory=dict)

    def others(self, ref: BackendRef, at_s: float) -> Tally:
        """Return the sum of the others' totals since ``at_s``."""
        if at_s not in self._since:
            total = Tally()
            for watch in self.watches.values():
                total += _since(watch, at_s)
            self._since[at_s] = total
        return self._since[at_s].since(_since(self.watches[ref], at_s))

    def share_of(self, ref: BackendRef) -> float:
        """Return a backend's weight relative to the total weight of the others."""
        others = sum(self.weights[other] for other in self.watches) - self.weights[ref]
        return _share(self.weights[ref], others)


def _since(watch: Watch, at_s: float) -> Tally:
    first = next((r for r in watch.readings if r.at_s >= at_s), watch.readings[-1])
    return watch.readings[-1].tally.since(first.tally)


def judges(service: Service) -> bool:
    """Return whether the backends of a service are compared at all."""
    is_tcp = service.key.protocol is Protocol.TCP
    return service.outlier.eject_s > 0 and is_tcp and len(service.backends) > 1


def most(outlier: Outlier, backends: int) -> int:
    """Return how many backends may be ejected at the same time: at least one, unless none may."""
    return max(1, int(outlier.max_ejected * backends)) if outlier.max_ejected else 0


def follow(
    service: Service,
    before: Mapping[BackendRef, Watch],
    tallies: Mapping[BackendRef, Tally],
    usable: frozenset[BackendRef],
    now_s: float,
    *,
    flooded: bool = False,
) -> dict[BackendRef, Watch]:
    """Return the backends' states after another reading, about a second after the last.

    ``usable``: the backends that get new flows; ``flooded``: a SYN flood is on, in which most
    connections are never established.
    """
    weights = {BackendRef(service.name, each.name): each.weight for each in service.backends}
    after = {
        ref: _read(service.outlier, before.get(ref, Watch()), tallies[ref], now_s)
        for ref in weights
        if ref in tallies
    }
    watched = {ref: w for ref, w in after.items() if ref in usable and not w.ejected}
    if _all_are_back(service.outlier, watched):
        # A failure that affected all of them counts against none, and the backend that is reached
        # first again is no better than the others.
        watched = {ref: replace(w, readings=w.readings[-1:]) for ref, w in watched.items()}
        after |= watched
    candidates = _Candidates(watched, weights)
    found: dict[BackendRef, _Found] = {}
    for ref in watched if len(watched) > 1 else ():
        what = _requests(service.outlier, ref, candidates)
        if what is None and not flooded:
            what = _handshakes(service, ref, candidates)
        if what is not None:
            found[ref] = what
    ejected = sum(watch.ejected for watch in after.values())
    room = most(service.outlier, len(watched) + ejected) - ejected
    worst = sorted(found, key=lambda ref: found[ref].share, reverse=True)
    for ref in worst[: max(0, min(room, len(watched) - 1))]:
        after[ref] = _eject(service.outlier, after[ref], found[ref], now_s)
    return after


def recovered(watch: Watch) -> Watch:
    """Return the state of a backend whose health check failed and now passes again.

    Earlier failures of its clients no longer count against it. If it is ejected, the next reading
    puts it back (as Envoy's successful_active_health_check_uneject_host does).
    """
    until_s = _AT_ONCE_S if watch.ejected else 0.0
    return replace(watch, readings=watch.readings[-1:], until_s=until_s)


def _all_are_back(outlier: Outlier, watched: Mapping[BackendRef, Watch]) -> bool:
    """Return whether this reading is the first in the window with established connections,
    although enough connections were begun before it to judge a backend by.
    """
    before, now = Tally(), Tally()
    for watch in watched.values():
        if len(watch.readings) > 1:
            before += watch.readings[-2].tally.since(watch.readings[0].tally)
            now += watch.readings[-1].tally.since(watch.readings[-2].tally)
    return before.opened >= outlier.requests and not before.established and now.established > 0


def _read(outlier: Outlier, watch: Watch, tally: Tally, now_s: float) -> Watch:
    if watch.ejected:
        if now_s < watch.until_s:
            return watch
        return replace(watch, readings=(Reading(now_s, tally),), until_s=0.0, quiet_s=now_s, why="")
    oldest = now_s - outlier.window_s - SETTLE_S
    kept = tuple(reading for reading in watch.readings if reading.at_s >= oldest)
    if kept and tally.is_less_than(kept[-1].tally):
        # Another server has the name now, and what the last one had is no beginning of its own:
        # fewer would seem to be established than began.
        kept = ()
    if watch.times and now_s - watch.quiet_s >= outlier.eject_s:
        watch = replace(watch, times=watch.times - 1, quiet_s=now_s)
    return replace(watch, readings=(*kept, Reading(now_s, tally)))


def _eject(outlier: Outlier, watch: Watch, found: _Found, now_s: float) -> Watch:
    times = min(watch.times + 1, MOST_TIMES)
    return replace(
        watch,
        readings=(),
        until_s=now_s + outlier.eject_s * times,
        times=times,
        why=found.why,
        ejections=watch.ejections + 1,
    )


def _requests(outlier: Outlier, ref: BackendRef, candidates: _Candidates) -> _Found | None:
    """Judge a backend by its newest requests, as many as it takes for a judgement."""
    readings = candidates.watches[ref].readings
    last = readings[-1]
    for reading in reversed(readings[:-1]):
        if reading.at_s < last.at_s - outlier.window_s:
            return None
        seen = last.tally.since(reading.tally)
        if seen.requests < outlier.requests:
            continue
        share = _share(seen.failed, seen.requests)
        if share < outlier.threshold:
            return None
        others = candidates.others(ref, reading.at_s)
        is_worse = share >= WORSE * _share(others.failed, others.requests)
        return _Found(share, _failed(seen)) if is_worse else None
    return None


def _handshakes(service: Service, ref: BackendRef, candidates: _Candidates) -> _Found | None:
    """Judge a backend by its newest connections that have had time to become established."""
    outlier, forward = service.outlier, service.forward
    readings = candidates.watches[ref].readings
    last = readings[-1]
    settled = [reading for reading in readings if reading.at_s <= last.at_s - SETTLE_S]
    for reading in reversed(settled[:-1]):
        begun = settled[-1].tally.since(reading.tally).opened
        if begun < outlier.requests:
            continue
        done = last.tally.since(reading.tally).established
        share = _share(max(begun - done, 0), begun)
        if share < outlier.threshold:
            return None
        others = candidates.others(ref, reading.at_s)
        usual = _share(max(others.opened - others.established, 0), others.opened)
        fair = others.established * candidates.share_of(ref)
        if share < WORSE * usual or others.established < outlier.requests:
            return None
        if done >= FEWER * fair:
            return None
        what = "was" if done == 1 else "were"
        why = f"{done or 'none'} of {begun} connections {what} established"
        return _Found(share, f"{why} ({_ASKS[forward]})")
    return None


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _failed(seen: Tally) -> str:
    error, hangup = "status 429 or 5xx", "no answer"
    if seen.errors and seen.hangups:
        how = f": {seen.errors} with {error}, {seen.hangups} with {hangup}"
    else:
        how = f" with {error if seen.errors else hangup}"
    return f"{seen.failed} of {seen.requests} requests failed{how}"
