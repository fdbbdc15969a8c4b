"""Decides the metrics of blocks, lists, limits and threats (part of ``agent.metrics.families``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from agent.metrics.family import Family, Kind, Sample, Samples, one
from agent.model import Detect
from agent.state.alerts import Outcome
from agent.state.guardview import AlertsView, LimitView, ListView
from agent.state.snapshot import Snapshot
from agent.state.threats import Sign

_LIST = ("list",)


_LIMIT = ("service", "limit")
_USUAL_SEVERITIES = {1, 2, 3}


def _limits(value: Callable[[LimitView], float]) -> Samples:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for each in snapshot.guard.limits:
            yield (each.service, each.limit), value(each)

    return samples


def _lists(value: Callable[[ListView], float]) -> Samples:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        for each in snapshot.guard.lists:
            yield (each.name,), value(each)

    return samples


def _threats(snapshot: Snapshot) -> Iterator[Sample]:
    found = Counter(
        (each.threat.service, each.threat.evidence.sign) for each in snapshot.guard.threats
    )
    for each in snapshot.services:
        if each.service.detect is not Detect.OFF:
            for sign in Sign:
                yield (each.service.name, sign.value), found[each.service.name, sign]


def _alerts(snapshot: Snapshot) -> Iterator[Sample]:
    alerts = snapshot.guard.alerts
    if alerts.path is None:
        return
    seen = {severity for severity, _ in alerts.counts}
    # Zeros, too: else the first alerts would not show as an increase.
    for severity in sorted(seen | _USUAL_SEVERITIES):
        for outcome in Outcome:
            yield (str(severity), outcome.value), alerts.counts.get((severity, outcome), 0)


def _of_alerts(value: Callable[[AlertsView], float]) -> Samples:
    def samples(snapshot: Snapshot) -> Iterator[Sample]:
        if snapshot.guard.alerts.path is not None:
            yield (), value(snapshot.guard.alerts)

    return samples


GUARD_FAMILIES: tuple[Family, ...] = (
    Family(
        "steelyard_guard_blocks",
        Kind.GAUGE,
        "Prefixes that are blocked now.",
        (),
        one(lambda s: len(s.guard.blocks)),
    ),
    Family(
        "steelyard_guard_would_block_packets_total",
        Kind.COUNTER,
        "Packets from blocked sources to services with `guard: dry-run`, which served them. "
        "Dropped packets are in `steelyard_service_dropped_packets_total`.",
        (),
        one(lambda s: s.guard.would_block_packets),
    ),
    Family(
        "steelyard_guard_would_not_allow_packets_total",
        Kind.COUNTER,
        "First packets from sources that no list allows, to services with `guard: dry-run`, which "
        "served them.",
        (),
        one(lambda s: s.guard.would_not_allow_packets),
    ),
    Family(
        "steelyard_guard_list_prefixes",
        Kind.GAUGE,
        "Prefixes in a list of `lists`.",
        _LIST,
        _lists(lambda each: each.prefixes),
    ),
    Family(
        "steelyard_guard_list_broken",
        Kind.GAUGE,
        "1 while a file of the list cannot be read. Its previous content stays in use.",
        _LIST,
        _lists(lambda each: int(bool(each.problem))),
    ),
    Family(
        "steelyard_guard_list_dropped_packets_total",
        Kind.COUNTER,
        "First packets that were dropped because their source is on the list and the list is "
        "denied.",
        _LIST,
        _lists(lambda each: each.dropped),
    ),
    Family(
        "steelyard_guard_list_would_drop_packets_total",
        Kind.COUNTER,
        "First packets that would have been dropped likewise, but went to services with "
        "`guard: dry-run`, which served them.",
        _LIST,
        _lists(lambda each: each.would_drop),
    ),
    Family(
        "steelyard_limit_dropped_packets_total",
        Kind.COUNTER,
        "Packets that were dropped because they were beyond a limit of their service.",
        _LIMIT,
        _limits(lambda each: each.dropped),
    ),
    Family(
        "steelyard_limit_would_drop_packets_total",
        Kind.COUNTER,
        "Packets that would have been dropped likewise, but went to services with "
        "`guard: dry-run`, which served them.",
        _LIMIT,
        _limits(lambda each: each.would_drop),
    ),
    Family(
        "steelyard_limit_sources",
        Kind.GAUGE,
        "Sources that cannot begin a flow now, because they have too many open flows or waiting "
        "bytes.",
        _LIMIT,
        _limits(lambda each: each.sources),
    ),
    Family(
        "steelyard_threats",
        Kind.GAUGE,
        "Sources that behave unlike all others of the service now, by what is unlike.",
        ("service", "sign"),
        _threats,
    ),
    Family(
        "steelyard_threats_blocked_total",
        Kind.COUNTER,
        "Sources that were blocked because they behaved unlike all others (`detect: block`).",
        (),
        one(lambda s: s.guard.threats_blocked),
    ),
    Family(
        "steelyard_alerts_total",
        Kind.COUNTER,
        "Alerts of Suricata that were read, by severity (1 is the worst) and by what became of "
        "them: `blocked`, `logged`, `unproven`, `spared`, `bounded` or `failed`.",
        ("severity", "outcome"),
        _alerts,
    ),
    Family(
        "steelyard_alerts_blocked_total",
        Kind.COUNTER,
        "Sources that were blocked because of an alert of Suricata.",
        (),
        _of_alerts(lambda each: each.blocked),
    ),
    Family(
        "steelyard_alerts_broken",
        Kind.GAUGE,
        "1 while the file of `suricata.eve` cannot be read, or sources cannot be blocked.",
        (),
        _of_alerts(lambda each: int(bool(each.problem))),
    ),
    Family(
        "steelyard_guard_nodes",
        Kind.GAUGE,
        "Nodes of `tables.guard_nodes` that blocks and lists use.",
        (),
        one(lambda s: s.guard.nodes),
    ),
)
