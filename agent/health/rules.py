"""Decides what a check's results mean for a backend's health, and when to check again. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.model import CheckKind, Health, HealthCheck, HealthStatus
from agent.state.way import Way

FIRST_WITHIN_S = 0.5  # first checks are spread over this long, or the interval if shorter
CHANGING_SPEEDUP = 2.0
SHORTEST_DELAY_S = 0.01
FULL_EVERY_S = 6.0  # how often a full packet is tried
SIZES_EVERY_S = 60.0  # how often, while it is lost, the sizes that arrive are looked for
MOST_WAYS = 8  # the most ways by which a server is asked at each check
VAGUE_S = 10.0  # for so long after a refusal, silence says nothing


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe saw; ``detail`` is the text for the operator.

    ``silent``: nothing at all came back, not even a refusal, so the server's host may be gone.
    ``unsent``: this host had no route, so its own link may be down. ``busy``: the server was
    reached, but has not answered in time, or takes no more requests now. ``vague``: the check
    passes because nothing came back. ``lost``: the server answers at its own address, but not by
    the way of clients' packets; ``reached``: it answers by that too. ``wide``: full packets have
    arrived by that way; ``narrow``: full packets are lost, and small ones arrive.
    """

    ok: bool
    detail: str
    latency_ms: float | None  # None: it would not be a round trip's
    silent: bool = False
    unsent: bool = False
    busy: bool = False
    vague: bool = False
    lost: bool = False
    reached: bool = False
    wide: bool = False
    narrow: bool = False
    certificate_until: float | None = None  # seconds since the epoch


def checking(now: float) -> HealthStatus:
    """Return the status of a backend whose first check has no result yet."""
    return HealthStatus(Health.CHECKING, "the first check has not answered yet", now)


def unchecked(now: float) -> HealthStatus:
    """Return the status of a backend without a check."""
    return HealthStatus(Health.UNCHECKED, "no health check is configured", now)


def adopted(health: Health, now: float) -> HealthStatus:
    """Return the status after a restart: the health from before, until checks say otherwise."""
    return HealthStatus(health, "as before the restart", now)


def observe(
    check: HealthCheck, status: HealthStatus, result: ProbeResult, now: float
) -> HealthStatus:
    """Return the status after a result. The first result decides; later ones need ``rise`` or
    ``fall`` in a row.
    """
    passes = status.passes + 1 if result.ok else 0
    failures = 0 if result.ok else status.failures + 1
    health = _health(check, status.health, passes, failures)
    reason = result.detail
    if health is Health.UP and failures:
        reason = f"failure {failures} of {check.fall}: {reason}"
    elif health is Health.DOWN and passes:
        reason = f"pass {passes} of {check.rise}: {reason}"
    return HealthStatus(
        health=health,
        reason=reason,
        since=status.since if health is status.health else now,
        latency_ms=(result.latency_ms or status.latency_ms) if result.ok else None,
        passes=passes,
        failures=failures,
        silent=result.silent,
        certificate_until=result.certificate_until or status.certificate_until,
    )


def suspended(status: HealthStatus, why: str) -> HealthStatus:
    """Return the status, with its health kept, when a problem of this host prevents any verdict."""
    reason = f"not checked: {why}"
    return replace(status, reason=reason, latency_ms=None, passes=0, failures=0, silent=False)


def rechecked(old: HealthCheck, new: HealthCheck, status: HealthStatus, now: float) -> HealthStatus:
    """Carry a status over to an edited check of the same server.

    An edit alone takes no server out: its health stays until the new check has its verdict.
    """
    if new == old:
        return status
    if new.kind is CheckKind.NONE:
        return status if status.health is Health.UNCHECKED else unchecked(now)
    if status.health is Health.UNCHECKED:
        return HealthStatus(Health.UP, "unchecked until now; the first check is on its way", now)
    return replace(status, passes=0, failures=0, silent=False)


def due(check: HealthCheck, status: HealthStatus, since_s: float) -> HealthCheck:
    """Return the check to make now. A completion costs the engine something, so a connection is
    enough while the last completion was answered less than ``every_s`` ago and nothing has failed
    since.
    """
    if check.kind is not CheckKind.COMPLETION or since_s >= check.every_s:
        return check
    if status.health is not Health.UP or status.failures:
        return check
    return replace(check, kind=CheckKind.TCP)


def is_meaningful(result: ProbeResult, since_failure_s: float) -> bool:
    """Return whether a result means anything.

    Silence after a recent refusal does not: a host limits the rate of its ICMP errors (Linux: one a
    second to each destination, after the first six), so this datagram may have been refused too.
    """
    return not result.vague or since_failure_s >= VAGUE_S


def ways_to_ask(known: Iterable[tuple[Way | None, HealthStatus]], turn: int) -> list[Way]:
    """Return the ways by which a server is asked this time.

    These are all ways whose status is about to change or not known yet, and some of the others, up
    to ``MOST_WAYS`` in all. The others take turns.
    """
    is_settled: dict[Way, bool] = {}
    for way, status in known:
        if way is not None:
            settled = status.health is Health.UP and not status.failures
            is_settled[way] = settled and is_settled.get(way, True)
    urgent = [way for way, settled in is_settled.items() if not settled]
    others = [way for way, settled in is_settled.items() if settled]
    room = min(len(others), max(0, MOST_WAYS - len(urgent)))
    first = turn * room % len(others) if others else 0
    return urgent + (others + others)[first : first + room]


def is_full_due(since_s: float, is_lost: bool, counts: bool) -> bool:
    """Return whether to send a full packet again, that long after the last one.

    While it is lost and that ``counts`` against the backend, each check tries it. Where it does not
    count, because nobody answers full packets, that would only be a load.
    """
    return since_s >= FULL_EVERY_S or (is_lost and counts)


def reached(result: ProbeResult) -> ProbeResult:
    """Return the result, which has passed, for a server that answers by the way of clients' packets
    as well.
    """
    # This is made for each check, and ``replace`` takes four times as long.
    return ProbeResult(
        True,
        result.detail,
        result.latency_ms,
        busy=result.busy,
        vague=result.vague,
        reached=True,
        certificate_until=result.certificate_until,
    )


def lost(wrong: str) -> ProbeResult:
    """Return the result for a server that is well, but that clients' packets do not reach."""
    return ProbeResult(False, wrong, None, lost=True)


def proven(result: ProbeResult, status: HealthStatus, answered: bool, widely: bool) -> ProbeResult:
    """Return the result with packets that are lost on the way of clients' packets excused, where
    they prove nothing.

    They take a backend out that is up only if some backend of the service has ``answered`` by its
    way. If none has, the network may let no backend answer the balancer that way, and taking all of
    them out would be an outage caused by the check. Likewise, lost full packets count only if some
    backend of the service has answered one (``widely``), because a firewall may drop SYNs with
    data.
    """
    if result.narrow and not widely:
        detail = (
            f"{result.detail} (no backend of the service answers full packets: it counts as up)"
        )
        return replace(result, ok=True, detail=detail)
    if not result.lost or answered or status.health is not Health.UP:
        return result
    detail = f"{result.detail} (no backend of the service answers so: it stays up)"
    return replace(result, ok=True, detail=detail)


def excused(result: ProbeResult, served: int) -> ProbeResult:
    """Return the result as passed if the server was too busy for the check, but has answered
    clients meanwhile.
    """
    if result.ok or not result.busy or served <= 0:
        return result
    many = "a client" if served == 1 else f"{served} clients"
    return replace(result, ok=True, detail=f"{result.detail}, but it answered {many} meanwhile")


def next_delay_s(check: HealthCheck, status: HealthStatus, rnd: float) -> float:
    """Return the seconds from the start of one check to the start of the next; ``rnd`` is in
    [0, 1).

    The first check is made soon, at a random time, so that thousands do not start at once. While
    the results contradict the present health, checks are more frequent. Jitter spreads the rest.
    """
    if status.passes == 0 and status.failures == 0:
        return rnd * min(check.interval_s, FIRST_WITHIN_S)
    interval = check.interval_s
    if _is_changing(status):
        interval /= CHANGING_SPEEDUP
    return max(SHORTEST_DELAY_S, interval * (1 + check.jitter * (2 * rnd - 1)))


def _health(check: HealthCheck, health: Health, passes: int, failures: int) -> Health:
    if health in (Health.CHECKING, Health.UNCHECKED):
        return Health.UP if passes else Health.DOWN
    if health is Health.UP and failures >= check.fall:
        return Health.DOWN
    if health is Health.DOWN and passes >= check.rise:
        return Health.UP
    return health


def _is_changing(status: HealthStatus) -> bool:
    return (status.health is Health.UP and status.failures > 0) or (
        status.health is Health.DOWN and status.passes > 0
    )
