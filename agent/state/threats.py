"""Decides which sources behave unlike all others of a service, and which of them to block. Pure.

A look is what the flow table holds at one moment: for each source, its open flows, those that began
since the look before, those whose client has connected and sent nothing, those in which a request
has waited long, and the request bytes that wait. A source is an IPv4 address, or the first 64 bits
of an IPv6 address. SYNs that nothing followed have no source here: anybody can forge their
addresses, and SYN protection deals with them.

Unlike means far from the median, in units of the median absolute deviation (MAD): both hardly move
when a few sources are extreme, whereas a mean and a standard deviation do (Leys et al., "Detecting
outliers", Journal of Experimental Social Psychology 49, 2013). Where few sources are active, as
behind a gateway, nobody is unlike the others.

Clients differ by orders of magnitude, and the largest customer is far from the median every day. So
what a source has much of must also be far more than it usually has itself. That is learned while
the service has clients, at first for ten minutes in which nobody stands out by amount.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.humanise import count, plural, quantity
from agent.model import Network, Protocol, Service

FEWEST_SOURCES = 20  # for a comparison with others
FAR = 8.0  # MADs, each as wide as a standard deviation
NORMAL = 1.4826  # a standard deviation of a normal distribution, in MADs
LOOKS = 4  # what is judged together
BLOCK_S = 600.0
MOST_SHARE = 0.05  # of the active sources are blocked at the same time
UNUSED_AFTER_S = 5.0  # a connection that is younger may still be used
SLOW_AFTER_S = 20.0  # a request that waits in a connection as old as this is slow
_BEGINS = 3  # so many of these looks show it
_WHY = "detected: "


class Sign(enum.Enum):
    """What is unlike the others."""

    OPEN = "open-flows"
    NEW = "new-flows"
    UNUSED = "unused-flows"
    SLOW = "slow-requests"
    WAITING = "waiting-bytes"


LEAST: Mapping[Sign, float] = {  # less than this is never a sign; new flows are per second
    Sign.OPEN: 100,
    Sign.NEW: 50,
    Sign.UNUSED: 64,
    Sign.SLOW: 32,
    Sign.WAITING: 1 << 20,
}
# Sources with less are not told apart. Those with more are known before they can be a sign.
NOTICED: Mapping[Sign, float] = {sign: least / 4 for sign, least in LEAST.items()}
_SHARE = 0.01  # of all that the service has, less of which is never a sign
_OF_AMOUNT = (Sign.OPEN, Sign.NEW, Sign.WAITING)  # signs that a large customer shows, too
LEARN_S = 600.0  # before anybody stands out by amount
_GROWN = 2.0  # times what a source usually has
_RISE_S, _RISE_AS_THREAT_S, _FALL_S = 300.0, 6 * 3600.0, 7 * 86400.0  # how fast that follows
_MOST_KNOWN = 4096  # sources and signs of which it is kept
_OWN_SHARE = {Sign.UNUSED: 0.8, Sign.SLOW: 0.4}  # of the source's own flows
_SLOW_OTHERS = 0.1  # if more of the other sources' flows are slow, it is the service that is slow


@dataclass(frozen=True, slots=True)
class Held:
    """What one source has of one service at one moment, by sign.

    Slow requests and waiting bytes are without those at the server at which it has most of them:
    that one may be hanging, which is no fault of its clients. ``slow``: all slow requests.
    """

    source: Network
    values: Mapping[Sign, float]
    slow: float = 0.0

    def has(self, sign: Sign) -> float:
        return self.values.get(sign, 0.0)


@dataclass(frozen=True, slots=True)
class Crowd:
    """All sources of one service at one moment.

    By sign: the median of their values, the spread (``NORMAL`` times the MAD), and the sum.
    ``slow``: all slow requests. ``suspects``: the sources that have at least ``NOTICED`` of
    something.
    """

    sources: int
    usual: Mapping[Sign, float]
    spread: Mapping[Sign, float]
    total: Mapping[Sign, float]
    slow: float
    suspects: Sequence[Held]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a source has a sign: its value, the median of the ``others`` (``usual``), and what it
    usually has itself (``own``).
    """

    sign: Sign
    value: float
    usual: float
    others: int
    own: float = 0.0


@dataclass(frozen=True, slots=True)
class Threat:
    """A source that has shown a sign at a service for some time; ``since_s``: monotonic."""

    service: str
    source: Network
    evidence: Evidence
    since_s: float


type _Key = tuple[str, Network, Sign]
type Trusted = Callable[[str, Network], bool]  # given a service and a source


@dataclass(frozen=True, slots=True)
class Watch:
    """The signs of the last looks, the threats that follow from them, and what the sources that
    have much usually have (``own``).

    ``begun_s``, by service, and ``at_s``: the monotonic times of the first look since when there
    have been enough sources, and of the last look.
    """

    looks: tuple[Mapping[_Key, Evidence], ...] = ()
    threats: Mapping[_Key, Threat] = field(default_factory=dict)
    own: Mapping[_Key, float] = field(default_factory=dict)
    begun_s: Mapping[str, float] = field(default_factory=dict)
    at_s: float = 0.0

    @property
    def going_on(self) -> list[Threat]:
        """The threats that the last look has shown.

        A source that was blocked has nothing left. It stays a threat for some looks, in which
        somebody may have unblocked it.
        """
        return [threat for key, threat in self.threats.items() if key in self.looks[-1]]


def is_proven(service: Service) -> bool:
    """Return whether every source with a flow of this service must be at its address."""
    return service.forward.is_nat and service.key.protocol is Protocol.TCP


def crowd_of(held: Sequence[Held]) -> Crowd:
    """Return the crowd that these sources are."""
    usual, spread, total = {}, {}, {}
    for sign in Sign:
        values = [each.has(sign) for each in held] or [0.0]
        usual[sign] = statistics.median(values)
        spread[sign] = NORMAL * statistics.median(abs(each - usual[sign]) for each in values)
        total[sign] = sum(values)
    suspects = [each for each in held if any(each.has(sign) >= NOTICED[sign] for sign in Sign)]
    slow = sum(each.slow for each in held)
    return Crowd(len(held), usual, spread, total, slow, suspects)


def signs(crowd: Crowd) -> dict[tuple[Network, Sign], Evidence]:
    """Return the signs that the sources of one service show in one look."""
    return {
        (each.source, sign): Evidence(sign, value, crowd.usual[sign], crowd.sources - 1)
        for each in crowd.suspects
        for sign, value in each.values.items()
        if value >= _least(crowd, sign, each)
    }


def _least(crowd: Crowd, sign: Sign, of: Held) -> float:
    """Return from how much on it is a sign."""
    own = _OWN_SHARE.get(sign, 0.0) * of.has(Sign.OPEN)
    if sign is Sign.UNUSED:
        return max(LEAST[sign], own)
    if crowd.sources < FEWEST_SOURCES:
        return math.inf
    others = crowd.total[Sign.OPEN] - of.has(Sign.OPEN)
    if sign in (Sign.SLOW, Sign.WAITING) and crowd.slow - of.slow > _SLOW_OTHERS * others:
        return math.inf
    if sign is Sign.SLOW:
        return max(LEAST[sign], own)
    usual = crowd.usual[sign]
    # Where more than half have the same value, the spread is 0, and anything would be far.
    far = usual + FAR * max(crowd.spread[sign], usual / 4)
    return max(far, LEAST[sign], _SHARE * crowd.total[sign])


def looked(before: Watch, crowds: Mapping[str, Crowd], at_s: float, is_trusted: Trusted) -> Watch:
    """Return what is known after one more look, at the monotonic time ``at_s``, at these
    services.
    """
    # Where hardly anybody was, as before a takeover, nobody is known when they come.
    begun_s = {
        service: before.begun_s.get(service, at_s) if crowd.sources >= FEWEST_SOURCES else at_s
        for service, crowd in crowds.items()
    }
    learning = {service for service, begun in begun_s.items() if at_s - begun < LEARN_S}
    seen = {
        key: replace(why, own=before.own.get(key, 0.0))
        for service, crowd in crowds.items()
        for (source, sign), why in signs(crowd).items()
        for key in ((service, source, sign),)
        if sign not in _OF_AMOUNT
        or (service not in learning and why.value >= _GROWN * before.own.get(key, 0.0))
        if not is_trusted(service, source)
    }
    looks = (*before.looks, seen)[-LOOKS:]
    threats: dict[_Key, Threat] = {}
    for key in {key: None for look in looks for key in look}:
        service, source, _ = key
        shown = [look[key] for look in looks if key in look]
        if service not in crowds:
            continue
        if key in before.threats:
            threats[key] = replace(before.threats[key], evidence=shown[-1])
        elif len(shown) >= _BEGINS:
            threats[key] = Threat(service, source, shown[-1], at_s)
    own = _learned(before.own, crowds, threats, at_s - before.at_s)
    return Watch(looks, threats, own, begun_s, at_s)


def _learned(
    before: Mapping[_Key, float],
    crowds: Mapping[str, Crowd],
    threats: Collection[_Key],
    passed_s: float,
) -> dict[_Key, float]:
    """Return what sources usually have, ``passed_s`` seconds after the last look.

    It rises fast and falls slowly, so that a source that is busy now and then is known as busy.
    What a threat has is learned very slowly, or it would soon be usual.
    """
    has = {
        (service, held.source, sign): held.has(sign)
        for service, crowd in crowds.items()
        for held in crowd.suspects
        for sign in _OF_AMOUNT
        if held.has(sign) >= NOTICED[sign]
    }
    own = {}
    for key in before.keys() | has.keys():
        if key[0] not in crowds:
            continue
        old, value = before.get(key, 0.0), has.get(key, 0.0)
        rise_s = _RISE_AS_THREAT_S if key in threats else _RISE_S
        within_s = rise_s if value > old else _FALL_S
        new = value + (old - value) * math.exp(-passed_s / within_s)
        if value or new >= NOTICED[key[2]] / 2:
            own[key] = new
    if len(own) > _MOST_KNOWN:
        own = dict(sorted(own.items(), key=lambda each: each[1])[-_MOST_KNOWN:])
    return own


def chosen(threats: Iterable[Threat], active: int, blocked: int) -> tuple[Threat, ...]:
    """Return the threats to block, at most one of each source, the farthest first.

    ``active``: how many sources have flows; ``blocked``: how many are already blocked for having
    been a threat. If many sources are unlike the others at the same time, it is more likely that
    the traffic has changed than that all of them attack, and blocking them would do what an
    attacker wants. Where there are few, one of them may be the proxy of all clients.
    """
    room = int(MOST_SHARE * (active + blocked)) - blocked
    farthest = sorted(threats, key=_distance)
    by_source = {each.source: each for each in farthest}  # the last one of each stays
    return tuple(sorted(by_source.values(), key=_distance, reverse=True)[: max(room, 0)])


def _distance(threat: Threat) -> float:
    return threat.evidence.value / max(threat.evidence.usual, 1.0)


def why(threat: Threat) -> str:
    """Return the reason for a block, as people and ``is_ours`` read it."""
    return f"{_WHY}{threat.service}: {sentence(threat.evidence)}"


def is_ours(reason: str) -> bool:
    """Return whether a block with this reason was made because of a threat."""
    return reason.startswith(_WHY)


def sentence(found: Evidence) -> str:
    """Return the evidence in words."""
    match found.sign:
        case Sign.OPEN:
            text = plural(round(found.value), "open flow")
        case Sign.NEW:
            text = f"{count(round(found.value))} new flows a second"
        case Sign.UNUSED:
            return f"{plural(round(found.value), 'connection')} without a request"
        case Sign.SLOW:
            return f"{plural(round(found.value), 'request')} that do not end"
        case Sign.WAITING:
            text = f"{quantity(found.value, 'B')} of requests that wait"
    usual = quantity(found.usual, "B") if found.sign is Sign.WAITING else count(round(found.usual))
    text += f"; the median of {found.others} other sources is {usual}"
    if found.own < NOTICED[found.sign]:  # hardly anything, or too little is known
        return text
    own = quantity(found.own, "B") if found.sign is Sign.WAITING else count(round(found.own))
    return f"{text}, and it usually has {own}"


def begun(before: Watch, after: Watch) -> list[Threat]:
    """Return the threats that are new in ``after``."""
    return [threat for key, threat in after.threats.items() if key not in before.threats]
