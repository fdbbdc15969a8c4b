"""Decides the defaults that depend on another setting, such as the protocol or the check's type."""

from __future__ import annotations

from agent.model import (
    TCP_TIMEOUTS,
    UDP_TIMEOUTS,
    Backend,
    CheckKind,
    HealthCheck,
    Protocol,
    Scheduler,
    Service,
    ServiceKey,
    Timeouts,
)

_CHECK = HealthCheck()
COMMON_CHECK_KEYS = frozenset(
    {"type", "via", "port", "interval", "timeout", "rise", "fall", "jitter"}
)
HTTP_CHECK_KEYS = frozenset({"method", "path", "host", "expect_status"})
TLS_CHECK_KEYS = frozenset({"verify_tls"})
_MAYBE_TLS_KEYS = TLS_CHECK_KEYS | {"tls", "host"}

_OWN_CHECK_KEYS: dict[CheckKind, frozenset[str]] = {
    CheckKind.TCP: frozenset({"send", "expect"}),
    CheckKind.HTTP: HTTP_CHECK_KEYS,
    CheckKind.HTTPS: HTTP_CHECK_KEYS | TLS_CHECK_KEYS,
    CheckKind.COMPLETION: frozenset({"path", "model", "every", "answer_within"}) | _MAYBE_TLS_KEYS,
    CheckKind.GRPC: frozenset({"grpc_service"}) | _MAYBE_TLS_KEYS,
    CheckKind.UDP: frozenset({"send", "expect"}),
    CheckKind.DNS: frozenset({"query", "record"}),
    CheckKind.PING: frozenset(),
    CheckKind.EXEC: frozenset({"command"}),
}
# A check that is switched off may keep its other keys, so that it can be switched on again.
CHECK_KEYS: dict[CheckKind, frozenset[str]] = {
    CheckKind.NONE: COMMON_CHECK_KEYS.union(*_OWN_CHECK_KEYS.values()),
    **{kind: COMMON_CHECK_KEYS | own for kind, own in _OWN_CHECK_KEYS.items()},
}

# The keys that apply to one scheduler only, or to one protocol only.
SCHEDULER_KEYS: dict[str, Scheduler] = {
    "draws": Scheduler.LEAST_LOAD,
    "bytes_per_connection": Scheduler.LEAST_LOAD,
    "learn_speed": Scheduler.LEAST_LOAD,
    "rtt_per_connection": Scheduler.LEAST_LOAD,
    "affinity": Scheduler.LEAST_LOAD,
    "source_prefix": Scheduler.SOURCE,
    "source_bound": Scheduler.SOURCE,
}
PROTOCOL_KEYS: dict[str, Protocol] = {
    "bytes_per_connection": Protocol.TCP,
    "count_waiting": Protocol.TCP,
    "learn_speed": Protocol.TCP,
    "affinity": Protocol.TCP,
    "outlier": Protocol.TCP,
    "slo": Protocol.TCP,
    "quic_server_id_bytes": Protocol.UDP,
    "syn_protection": Protocol.TCP,
    "syn_cookies": Protocol.TCP,
}
DEFAULT_SCHEDULER = Scheduler.LEAST_LOAD
DEFAULT_PROTOCOL = Protocol.TCP


def default_timeouts(protocol: Protocol) -> Timeouts:
    """Return the idle timeouts of a service that sets none."""
    return TCP_TIMEOUTS if protocol is Protocol.TCP else UDP_TIMEOUTS


def default_check_kind(protocol: Protocol) -> CheckKind:
    """Return the type of check of a service that names none.

    Any TCP port can be tried with a connection; which datagram a UDP service answers, only its
    operator knows.
    """
    return CheckKind.TCP if protocol is Protocol.TCP else CheckKind.NONE


def default_check_path(kind: CheckKind) -> str:
    """Return the path that a check asks for: where an engine takes prompts, or else the root."""
    return "/v1/completions" if kind is CheckKind.COMPLETION else _CHECK.path


def default_check_timeout(interval_s: float) -> float:
    """Return the timeout of a check in seconds, which is never longer than its interval."""
    return min(_CHECK.timeout_s, interval_s)


def default_report_timeout(interval_s: float) -> float:
    """Return the timeout of a report in seconds.

    A report that takes longer than two intervals is useless, because newer ones are due by then.
    """
    return min(2 * interval_s, 1.0)


def default_waiting(protocol: Protocol) -> bool:
    """Return whether waiting bytes are counted by default.

    Only with TCP can the packet path see when a request is answered.
    """
    return protocol is Protocol.TCP


def check_port(service: Service, backend: Backend) -> int:
    """Return the port on which a backend is checked: the first of a range, 0 if none is known."""
    return service.health.port or backend.port or service.key.port


def default_service(name: str, key: ServiceKey, interval_s: float = _CHECK.interval_s) -> Service:
    """Return a service with this key that sets nothing but the interval of its check."""
    return Service(
        name=name,
        key=key,
        scheduler=DEFAULT_SCHEDULER,
        count_waiting=default_waiting(key.protocol),
        timeouts=default_timeouts(key.protocol),
        health=HealthCheck(
            kind=default_check_kind(key.protocol),
            interval_s=interval_s,
            timeout_s=default_check_timeout(interval_s),
        ),
    )
