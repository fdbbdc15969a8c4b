"""Decides what a change of telemetry, learning, models or rebalancing does, and says it in
words.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.config.durations import format_duration
from agent.model import Affinity, NodeKind, Objective, Scale, Service, Signal, TelemetryKind


def load_changed(old: Service, new: Service) -> Iterator[str]:
    """Yield the effects on how the load of backends is estimated and what follows from it."""
    if old.telemetry != new.telemetry:
        yield _telemetry(new)
    if old.node != new.node:
        yield (
            "throttled and failing GPUs no longer change weights"
            if new.node.kind is NodeKind.NONE
            else f"throttled GPUs lower the weight of their backend ({new.node.kind.value} every "
            f"{format_duration(new.node.interval_s)}), failing ones drain it"
        )
    if old.model != new.model:
        yield (
            "backends get new flows whatever models they have loaded"
            if new.model is None
            else f"only backends that have loaded {new.model.name} get new flows"
        )
    if old.learn_speed is not new.learn_speed:
        yield (
            "weights follow how fast backends answer"
            if new.learn_speed
            else "weights are as configured, however fast backends answer"
        )
    if old.outlier != new.outlier:
        yield (
            f"a backend at which {new.outlier.threshold:.0%} of the requests or connections fail "
            f"gets no new flows for {format_duration(new.outlier.eject_s)}"
            if new.outlier.eject_s
            else "no backend is ejected because its clients fail"
        )
    if old.slo != new.slo:
        yield _slo(new.slo)
    if old.scale != new.scale:
        yield _scale(new.scale)
    if old.affinity != new.affinity:
        yield _affinity(new.affinity)
    if old.discover != new.discover:
        yield (
            f"the targets of {new.discover.source} are further backends"
            if new.discover.is_on
            else "no backend is discovered; those that were are removed"
        )
    if old.rebalance != new.rebalance:
        yield (
            f"idle connections of overloaded backends are reset, {new.rebalance.rate_per_s:g} a "
            "second at most"
            if new.rebalance.rate_per_s
            else "no connection is reset to rebalance"
        )


def _slo(new: tuple[Objective, ...]) -> str:
    promised = " and ".join(
        f"{each.percentile} % of them come within {format_duration(each.within_s)}" for each in new
    )
    return f"first bytes are watched: {promised}" if new else "no time is promised for first bytes"


_LOADS = {
    Signal.CONNECTIONS: "{} connections",
    Signal.WAITING_BYTES: "{} waiting bytes",
    Signal.REQUESTS: "{} requests",
    Signal.QUEUED: "{} queued requests",
}


def _scale(new: Scale) -> str:
    if not new.targets:
        return "no number of backends is wanted"
    each = " or ".join(_LOADS[signal].format(most) for signal, most in new.targets.items())
    bounds = f"at least {new.min}" + (f" and at most {new.max}" if new.max is not None else "")
    return f"a backend is wanted for every {each}, {bounds}"


def _affinity(new: Affinity) -> str:
    if not new.is_any:
        return "new flows go where the load is least, wherever the client's earlier flows went"
    which = (
        f"the first {new.prefix_bits} bits of its address name"
        if new.prefix_bits
        else ("its address names")
    )
    more = "by what its cache saves" if new.escape_bytes is None else f"by {new.escape_bytes} bytes"
    return (
        f"a client's new flows go to the backend that {which}, unless that has more to do than "
        f"others {more}"
    )


def _telemetry(new: Service) -> str:
    match new.telemetry.kind:
        case TelemetryKind.NONE:
            return "the engines are no longer asked: open connections count instead"
        case TelemetryKind.AGENT_CHECK:
            return "the servers' agents are asked for a share of their weight, and their state"
        case kind:
            every = format_duration(new.telemetry.interval_s)
            return f"new flows go by the queues that the engines report ({kind.value}, {every})"
