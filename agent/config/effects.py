"""Decides what a change of a service or backend does to traffic, and says it in one sentence.

A recorded flow belongs to its backend's address and port and to its service's VIP, port and
protocol, so names can change without any connection noticing. A backend that is removed or put into
maintenance gives up its flows: their next packets go to other backends, which reset TCP connections
they do not know. In nat and fullnat, where the answers of a removed backend could not get through,
both ends are reset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.config.durations import format_duration
from agent.config.load_effects import load_changed
from agent.config.render import limits_fields
from agent.model import (
    AdminState,
    Backend,
    CheckKind,
    Detect,
    DownFlows,
    GuardMode,
    Limits,
    NoBackend,
    Service,
    ServiceKey,
    SynProtection,
)

_WITHOUT_BACKEND = {
    NoBackend.DROP: "they are dropped",
    NoBackend.RESET: "they are answered with a reset",
    NoBackend.ANY: "they go to any backend that can be reached and is not in maintenance",
    NoBackend.HOLD: "they wait for the first one",
}
_CHALLENGED = {
    SynProtection.OFF: "new clients no longer have to prove that they are at their address",
    SynProtection.AUTO: "during a SYN flood, new clients have to prove that they are at their "
    "address",
    SynProtection.ALWAYS: "new clients have to prove that they are at their address",
}
_GUARDED = {
    GuardMode.ENFORCE: "what is blocked, denied, not allowed or beyond a limit is dropped",
    GuardMode.DRY_RUN: "what is blocked, denied, not allowed or beyond a limit is served, and "
    "counted",
    GuardMode.OFF: "what is blocked, denied, not allowed or beyond a limit is served",
}
_DETECTED = {
    Detect.OFF: "nobody looks for sources that behave unlike all others",
    Detect.LOG: "sources that behave unlike all others are logged",
    Detect.BLOCK: "sources that behave unlike all others are blocked for ten minutes",
}
_DOWN_FLOWS = {
    DownFlows.AUTO: "are reset if nothing comes back from it, otherwise they stay with it",
    DownFlows.KEEP: "stay with it",
    DownFlows.RESET: "are reset",
    DownFlows.REROUTE: "move to others at once",
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """A service, and each backend's share of its new flows, 0 to 1.

    The shares assume that every active backend is healthy.
    """

    service: Service
    shares: Mapping[str, float]

    @property
    def nowhere(self) -> bool:
        """Whether no backend takes new flows."""
        return not any(self.shares.values())


def traffic(service: Service) -> Traffic:
    """Return where the new flows of a service go.

    They go to the backends of the first priority, and to backups only if no other backend would get
    any. Clients of a zone may see other shares.
    """
    weights = {
        backend.name: backend.weight if backend.admin is AdminState.ACTIVE else 0
        for backend in service.backends
    }
    backups = {backend.name for backend in service.backends if backend.backup}
    if any(weight for name, weight in weights.items() if name not in backups):
        weights |= dict.fromkeys(backups, 0)
    first = min((b.priority for b in service.backends if weights[b.name]), default=0)
    weights |= {b.name: 0 for b in service.backends if b.priority > first}
    total = sum(weights.values())
    shares = {name: weight / total if total else 0.0 for name, weight in weights.items()}
    return Traffic(service, shares)


def service_added(service: Service, renamed_from: str | None) -> str:
    """Return the effect of a new service. ``renamed_from`` had the same key until now."""
    if renamed_from:
        return f"this was service {renamed_from}: the same {service.key}, open connections stay"
    if traffic(service).nowhere and service.discover.is_on:
        return f"{service.key} is added; its backends come from {service.discover.source}"
    if traffic(service).nowhere:
        return f"{service.key} is added; {_no_backend_left(service)}"
    return f"{service.key} is balanced from now on"


def service_removed(service: Service, renamed_to: str | None) -> str:
    """Return the effect of removing a service. ``renamed_to`` has its key from now on."""
    if renamed_to:
        return f"{service.key} goes on as service {renamed_to}, open connections stay"
    backends = _plural(len(service.backends), "backend")
    return f"{service.key} is no longer balanced: open connections to its {backends} are cut"


def service_changed(old: Service, new: Service) -> str:
    """Return the effect of other settings of the same service, not counting its backends."""
    parts = []
    if old.key != new.key:
        parts.append(_key_changed(old.key, new.key))
    if old.forward is not new.forward:
        parts.append(_forward_changed(old, new))
    parts += _placing_changed(old, new)
    parts += load_changed(old, new)
    if old.health != new.health:
        parts.append(_health(new))
    if old.timeouts != new.timeouts:
        parts.append("the new idle timeouts apply to open flows too")
    if old.reset_after_s != new.reset_after_s:
        after = format_duration(new.reset_after_s)
        parts.append(f"a backend is down for {after} before flows are reset")
    if old.down_flows is not new.down_flows:
        parts.append(f"open flows of a backend that goes down {_DOWN_FLOWS[new.down_flows]}")
    return "; ".join(parts)


def _key_changed(old: ServiceKey, new: ServiceKey) -> str:
    same_start = (old.vip, old.port, old.protocol) == (new.vip, new.port, new.protocol)
    if same_start and (old.vip_bits is None) == (new.vip_bits is None):
        return f"{new} instead of {old}: open connections to the ports in both stay, others are cut"
    return f"{old} is no longer balanced, its open connections are cut; {new} is from now on"


def _forward_changed(old: Service, new: Service) -> str:
    if old.forward.is_nat or new.forward.is_nat:
        return (
            f"packets are sent by {new.forward.value}; open connections could not continue, so "
            "this is refused while there are any"
        )
    return (
        f"every packet, including those of open connections, is sent by {new.forward.value} "
        "at once: the backends must be ready for it"
    )


def _few_backends_changed(old: Service, new: Service) -> Iterator[str]:
    if old.no_backend is not new.no_backend:
        yield f"if no backend is left for new flows, {_WITHOUT_BACKEND[new.no_backend]}"
    if old.panic != new.panic:
        yield (
            f"while fewer than {new.panic:.0%} of the backends are up, new flows go to all that "
            "can be reached"
            if new.panic
            else "new flows go to the backends that are up, however few"
        )


def _placing_changed(old: Service, new: Service) -> Iterator[str]:
    """Yield the effects that concern only new flows."""
    if old.scheduler is not new.scheduler:
        yield f"new flows are placed by {new.scheduler.value}; {_STAY}"
    elif _scheduler_settings(old) != _scheduler_settings(new):
        yield f"new flows are placed by the new settings of {new.scheduler.value}; {_STAY}"
    if old.count_waiting is not new.count_waiting:
        yield (
            "request bytes that wait for their answer are counted from now on"
            if new.count_waiting
            else "request bytes that wait for their answer are no longer counted, and the time to "
            "its first byte is no longer measured"
        )
    if old.slow_start_s != new.slow_start_s:
        yield (
            f"backends that come up reach their weight in {_seconds(new.slow_start_s)}"
            if new.slow_start_s
            else "backends that come up have their weight at once"
        )
    yield from _few_backends_changed(old, new)
    if old.syn_protection is not new.syn_protection:
        yield _CHALLENGED[new.syn_protection]
    if old.gives_cookies is not new.gives_cookies and new.syn_protection is not SynProtection.OFF:
        yield (
            "they prove it by answering SYN cookies, while every server has a companion that "
            "accepts them"
            if new.syn_cookies
            else "they prove it by answering a challenge"
        )
    yield from _sources_changed(old, new)
    if old.quic_id_bytes != new.quic_id_bytes:
        yield (
            "QUIC packets go to the backend that the server id in their connection id names "
            f"({_plural(new.quic_id_bytes, 'byte')})"
            if new.quic_id_bytes
            else "QUIC packets go by their addresses and ports alone"
        )


def _sources_changed(old: Service, new: Service) -> Iterator[str]:
    """Yield the effects on who is served."""
    if (old.allow, old.deny) != (new.allow, new.deny):
        yield f"{_admitted(new)} may begin a flow; {_STAY}"
    if old.limits != new.limits:
        yield _limited(new.limits)
    if old.guard is not new.guard:
        yield _GUARDED[new.guard]
    if old.detect is not new.detect:
        yield _DETECTED[new.detect]
    if old.trusted != new.trusted:
        yield (
            f"sources on {' or '.join(new.trusted)} are never suspected"
            if new.trusted
            else "no source is exempt from suspicion"
        )


def _admitted(service: Service) -> str:
    who = f"only sources on {' or '.join(service.allow)}" if service.allow else "all sources"
    return f"{who} except those on {' or '.join(service.deny)}" if service.deny else who


_LIMITED = {
    "new_flows_per_source": "{} new flows from each source",
    "new_flows_per_prefix": "{} new flows from each /24 or /48",
    "new_flows": "{} new flows in all",
    "packets_per_source": "{} packets from each source",
    "open_flows_per_source": "no new flows from a source with {} open ones",
    "waiting_per_source": "no new flows from a source with {} of waiting request bytes",
}


def _limited(limits: Limits) -> str:
    fields = limits_fields(limits).items()
    words = [_LIMITED[key].format(most) for key, most in fields if most is not None]
    return f"limits: {', '.join(words)}; {_STAY}" if words else "there are no limits anymore"


def _scheduler_settings(service: Service) -> tuple[object, ...]:
    return (
        service.draws,
        service.bytes_per_connection,
        service.rtt_per_connection_s,
        service.source_bits,
        service.source_bound,
    )


def backend_added(new: Traffic, backend: Backend, renamed_from: str | None) -> str:
    """Return the effect of a new backend. ``renamed_from`` had the same address until now."""
    if renamed_from:
        return f"this was backend {renamed_from}: the same address, open connections stay"
    share = new.shares[backend.name]
    if share == 0:
        return f"it gets no new flow: {_idle_reason(backend)}"
    return f"{_once_healthy(new.service)}about {percent(share)} of new flows move to it; {_STAY}"


def backend_removed(old: Traffic, new: Traffic, backend: Backend, renamed_to: str | None) -> str:
    """Return the effect of removing a backend. ``renamed_to`` has its address from now on."""
    if renamed_to:
        return f"it goes on as backend {renamed_to}, open connections stay"
    if backend.admin is AdminState.MAINTENANCE:
        return "it already gets no traffic"
    share = old.shares[backend.name]
    if share == 0:
        return "its open connections that have not finished are cut"
    cut = "its open connections are cut (drain it first and they finish)"
    if new.nowhere:
        return f"{cut}; {_no_backend_left(new.service)}"
    return f"{cut}; its {percent(share)} of new flows move to the other backends"


def backend_changed(old: Traffic, new: Traffic, before: Backend, after: Backend) -> str:
    """Return the effect of other settings of the same backend."""
    share_before, share_after = old.shares[before.name], new.shares[after.name]
    parts = []
    if (before.address, before.port) != (after.address, after.port):
        parts.append(
            f"open connections to {_server(before)} are cut; new flows go to {_server(after)}"
        )
    if before.quic_server_id != after.quic_server_id:
        parts.append(_quic_id_changed(after))
    if before.backup is not after.backup:
        parts.append(_backup_changed(new.service, after, share_after))
    if before.priority != after.priority:
        parts.append(f"its priority is {after.priority}: {_priority(after, share_after)}; {_STAY}")
    if before.zone != after.zone:
        parts.append(
            f"clients of zone {after.zone} are sent there first; {_STAY}"
            if after.zone
            else f"it is in no zone, so no zone's clients prefer it; {_STAY}"
        )
    if before.admin is not after.admin:
        parts.append(_state_changed(new.service, before, after, share_after))
    elif before.weight != after.weight:
        parts.append(_weight_changed(after, share_before, share_after))
    if share_before > 0 and new.nowhere:
        parts.append(_no_backend_left(new.service))
    return "; ".join(parts)


def percent(share: float) -> str:
    """Return a share as text, such as ``25 %``, with as many digits as a reader can use."""
    if share == 0:
        return "0 %"
    if share < 0.001:
        return "less than 0.1 %"
    return f"{share * 100:.1f} %" if share < 0.0095 else f"{share * 100:.0f} %"


_STAY = "established flows stay"


def _no_backend_left(service: Service) -> str:
    return f"no backend is left for new flows: {_WITHOUT_BACKEND[service.no_backend]}"


def _server(backend: Backend) -> str:
    return f"{backend.address} port {backend.port}" if backend.port else str(backend.address)


def _quic_id_changed(after: Backend) -> str:
    if after.quic_server_id is None:
        return "no QUIC connection id names it"
    return f"QUIC packets with the server id {after.quic_server_id.hex()} go to it, and no others"


def _backup_changed(service: Service, after: Backend, share: float) -> str:
    if share > 0:
        return f"{_once_healthy(service)}about {percent(share)} of new flows go to it; {_STAY}"
    return f"it gets no new flow: {_idle_reason(after)}; {_STAY}"


def _priority(after: Backend, share: float) -> str:
    if share > 0:
        return f"about {percent(share)} of new flows go to it"
    return f"it gets no new flow: {_idle_reason(after)}"


def _state_changed(service: Service, before: Backend, after: Backend, share: float) -> str:
    match after.admin:
        case AdminState.DRAIN if before.admin is AdminState.MAINTENANCE:
            return "it still gets no new flow"
        case AdminState.DRAIN:
            return "its open connections finish, and it gets no new flow"
        case AdminState.MAINTENANCE:
            return "nothing is sent to it anymore: its open connections are cut"
        case AdminState.ACTIVE if share == 0:
            return f"it still gets no new flow: {_idle_reason(after)}"
        case AdminState.ACTIVE:
            return f"{_once_healthy(service)}about {percent(share)} of new flows go to it; {_STAY}"


def _weight_changed(after: Backend, share_before: float, share_after: float) -> str:
    if after.admin is not AdminState.ACTIVE:
        return f"none while its state is {after.admin.value}"
    if share_after == 0 and share_before == 0:
        return f"it still gets no new flow: {_idle_reason(after)}"
    if share_after == 0:
        return "its open connections finish, and it gets no new flow"
    if share_before == share_after:
        return f"none: it gets {percent(share_after)} of new flows, as before"
    moved = percent(abs(share_after - share_before))
    way = "to it" if share_after > share_before else "from it to others"
    return (
        f"about {moved} of new flows move {way} "
        f"(its share: {percent(share_before)} → {percent(share_after)}); {_STAY}"
    )


def _health(service: Service) -> str:
    check = service.health
    if check.kind is CheckKind.NONE:
        return "the backends are no longer checked, and count as up"
    return (
        f"the backends are checked by the new rule ({check.kind.value} every "
        f"{_seconds(check.interval_s)}): those that fail it get no new flow"
    )


def _seconds(seconds: float) -> str:
    text = format_duration(seconds)
    return text if isinstance(text, str) else f"{text:g}s"


def _once_healthy(service: Service) -> str:
    return "" if service.health.kind is CheckKind.NONE else "once its check passes, "


def _idle_reason(backend: Backend) -> str:
    if backend.admin is not AdminState.ACTIVE:
        return f"its state is {backend.admin.value}"
    if backend.weight == 0:
        return "its weight is 0"
    if not backend.backup:
        return f"its priority is {backend.priority}, and there are backends with a lower one"
    return "it is a backup, for when no other backend is usable"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
