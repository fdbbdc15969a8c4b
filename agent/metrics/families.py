"""Decides which metrics there are, in one table that says how their samples come from a snapshot.

The collector, the reference in docs/metrics.md and the tests read the same table. Labels are
bounded: services and backends by the tables' sizes, states and reasons by their enums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from agent.metrics.failover import FAILOVER_FAMILIES
from agent.metrics.family import (
    Family,
    Kind,
    Sample,
    Samples,
    backends,
    each_backend,
    each_service,
    one,
)
from agent.metrics.fleet import FLEET_FAMILIES
from agent.metrics.guard import GUARD_FAMILIES
from agent.metrics.load import LOAD_FAMILIES
from agent.metrics.reports import REPORT_FAMILIES
from agent.metrics.scaling import SCALE_FAMILIES
from agent.model import BackendMetrics, BackendState, ServiceState
from agent.state.nat_blocks import described
from agent.state.snapshot import BackendCounts, NatPorts, Snapshot

type _EachCounts = Callable[[Callable[[BackendCounts], float]], Samples]


def _ends(ports: NatPorts) -> tuple[str, str]:
    return str(ports.source), described(ports.server)


def _latencies(snapshot: Snapshot) -> Iterator[Sample]:
    for names, backend in backends(snapshot):
        if backend.health.latency_ms is not None:
            yield names, backend.health.latency_ms / 1000


def _certificates(snapshot: Snapshot) -> Iterator[Sample]:
    for names, backend in backends(snapshot):
        if backend.health.certificate_until is not None:
            yield names, backend.health.certificate_until


def _backend_states(snapshot: Snapshot) -> Iterator[Sample]:
    for names, backend in backends(snapshot):
        for state in BackendState:
            yield (*names, state.value), float(backend.state is state)


def _present_states(snapshot: Snapshot) -> Iterator[Sample]:
    for names, backend in backends(snapshot):
        yield (*names, backend.state.value), 1.0


def _service_states(snapshot: Snapshot) -> Iterator[Sample]:
    for service in snapshot.services:
        for state in ServiceState:
            yield (service.service.name, state.value), float(service.state is state)


def _service_backends(snapshot: Snapshot) -> Iterator[Sample]:
    for service in snapshot.services:
        counts = Counter(backend.state for backend in service.backends)
        for state in BackendState:
            yield (service.service.name, state.value), counts[state]


def _cookies_ready(snapshot: Snapshot) -> Iterator[Sample]:
    for each in snapshot.services:
        if each.service.gives_cookies:
            yield (each.service.name,), int(not each.cookies_problem)


def _service_info(snapshot: Snapshot) -> Iterator[Sample]:
    for each in snapshot.services:
        service = each.service
        key = service.key
        yield (
            (
                service.name,
                key.address,
                key.ports,
                key.protocol.value,
                service.forward.value,
                service.scheduler.value,
            ),
            1,
        )


def _drops(snapshot: Snapshot) -> Iterator[Sample]:
    for service in snapshot.services:
        for reason, packets in service.drops.items():
            yield (service.service.name, reason), packets


def _program_info(snapshot: Snapshot) -> Iterator[Sample]:
    program = snapshot.dataplane
    if program.attached:
        yield (
            (
                program.interface,
                program.hook,
                program.driver,
                str(program.abi),
                str(program.program_id),
            ),
            1,
        )


_SERVICE = ("service",)
_BACKEND = ("service", "backend")


def _counts(noun: str, labels: tuple[str, ...], each: _EachCounts) -> tuple[Family, ...]:
    """Return the families that services and backends have alike."""
    counted: tuple[tuple[str, str, Callable[[BackendCounts], float]], ...] = (
        ("packets", "Packets forwarded.", lambda c: c.packets),
        ("bytes", "Bytes of the IP packets forwarded, as clients sent them.", lambda c: c.bytes),
        (
            "new_flows",
            "Flows recorded, including those received from other balancers.",
            lambda c: c.opened,
        ),
        (
            "established_flows",
            "Flows that left the embryonic state, including those received from other balancers.",
            lambda c: c.established,
        ),
        (
            "closed_flows",
            "Flows that ended: by FIN or RST, evicted or expired.",
            lambda c: c.closed,
        ),
        (
            "reply_packets",
            "Packets from backends to clients (nat, fullnat).",
            lambda c: c.reply_packets,
        ),
        (
            "reply_bytes",
            "Bytes of the IP packets from backends to clients (nat, fullnat).",
            lambda c: c.reply_bytes,
        ),
    )
    return tuple(
        Family(f"steelyard_{noun}_{what}_total", Kind.COUNTER, text, labels, each(value))
        for what, text, value in counted
    )


_AGENT_FAMILIES = (
    Family(
        "steelyard_build_info",
        Kind.INFO,
        "The agent's version, and the name of the instance.",
        ("version", "name"),
        lambda snapshot: [((snapshot.version, snapshot.name), 1)],
    ),
    Family(
        "steelyard_agent_start_time_seconds",
        Kind.GAUGE,
        "When the agent started, in seconds since the epoch.",
        (),
        one(lambda s: s.started),
    ),
    Family(
        "steelyard_config_reload_problem",
        Kind.GAUGE,
        "1 if the configuration file was refused, by a reload or at the start, and the last good "
        "configuration is used.",
        (),
        one(lambda s: bool(s.config_problem)),
    ),
    Family(
        "steelyard_config_changes_since_file",
        Kind.GAUGE,
        "Changes made at run time that are not in the configuration file.",
        (),
        one(lambda s: s.changes_since_file),
    ),
    Family(
        "steelyard_reconcile_problem",
        Kind.GAUGE,
        "1 if the last pass could not bring the kernel to the desired state.",
        (),
        one(lambda s: bool(s.reconcile_problem)),
    ),
    Family(
        "steelyard_agent_defects_total",
        Kind.COUNTER,
        "Passes and reloads that failed because of a bug in the agent; they are tried again.",
        (),
        one(lambda s: s.defects),
    ),
    Family(
        "steelyard_events_total",
        Kind.COUNTER,
        "Events since the agent started, by event and level: the lines of `lbctl events`.",
        ("event", "level"),
        lambda s: s.events.items(),
    ),
)

_PROGRAM_FAMILIES = (
    Family(
        "steelyard_program_info",
        Kind.INFO,
        "The program in the kernel. Absent if none is attached.",
        ("interface", "hook", "driver", "abi", "program_id"),
        _program_info,
    ),
    Family(
        "steelyard_program_attached",
        Kind.GAUGE,
        "1 if the program is attached to the interface.",
        ("interface",),
        lambda s: [((s.dataplane.interface,), s.dataplane.attached)],
    ),
    Family(
        "steelyard_vip_conflicts",
        Kind.GAUGE,
        "Other hosts that answer ARP or neighbour discovery for VIPs of this one: clients may "
        "reach them instead of the balancer.",
        (),
        one(lambda s: len(s.vip_problems)),
    ),
    Family(
        "steelyard_program_compile_seconds",
        Kind.GAUGE,
        "How long the program took to compile and load. If a stored program was used: to load.",
        (),
        one(lambda s: s.dataplane.compile_ms / 1000),
    ),
    Family(
        "steelyard_program_instructions",
        Kind.GAUGE,
        "BPF instructions of the program.",
        (),
        one(lambda s: s.dataplane.instructions),
    ),
    Family(
        "steelyard_program_jited_bytes",
        Kind.GAUGE,
        "Bytes of machine code of the program.",
        (),
        one(lambda s: s.dataplane.jited_bytes),
    ),
    Family(
        "steelyard_program_verified_instructions",
        Kind.GAUGE,
        "Instructions that the kernel's verifier processed, on all paths. It gives up at one "
        "million.",
        (),
        one(lambda s: s.dataplane.verified_insns),
    ),
    Family(
        "steelyard_flow_table_slots",
        Kind.GAUGE,
        "Flows that the flow table has room for.",
        (),
        one(lambda s: s.dataplane.flow_slots),
    ),
    Family(
        "steelyard_flow_table_used_slots",
        Kind.GAUGE,
        "Slots that hold a flow.",
        (),
        one(lambda s: sum(s.dataplane.flows_by_state.values())),
    ),
    Family(
        "steelyard_flow_table_flows",
        Kind.GAUGE,
        "Recorded flows by state.",
        ("state",),
        lambda s: [((state,), n) for state, n in s.dataplane.flows_by_state.items()],
    ),
    Family(
        "steelyard_passed_packets_total",
        Kind.COUNTER,
        "Packets for no service, left to the host, by reason.",
        ("reason",),
        lambda s: [((reason,), n) for reason, n in s.dataplane.passed.items()],
    ),
    Family(
        "steelyard_nat_ports",
        Kind.GAUGE,
        "Source ports that each source address of fullnat has towards a server.",
        ("source", "server"),
        lambda s: [(_ends(nat), nat.ports) for nat in s.dataplane.nat_ports],
    ),
    Family(
        "steelyard_nat_used_ports",
        Kind.GAUGE,
        "Source ports of fullnat towards a server that recorded flows use.",
        ("source", "server"),
        lambda s: [(_ends(nat), nat.used) for nat in s.dataplane.nat_ports],
    ),
    Family(
        "steelyard_trace_lost_events_total",
        Kind.COUNTER,
        "Events that `lbctl trace` missed because the ring was full.",
        (),
        one(lambda s: s.dataplane.events_lost),
    ),
)

_SERVICE_FAMILIES = (
    Family(
        "steelyard_service_info",
        Kind.INFO,
        "The service's address and settings.",
        ("service", "vip", "port", "protocol", "forward", "scheduler"),
        _service_info,
    ),
    Family(
        "steelyard_service_state",
        Kind.GAUGE,
        "1 for the state that the service is in: up (all backends that should serve do so), "
        "degraded (some do), down (none does).",
        ("service", "state"),
        _service_states,
    ),
    Family(
        "steelyard_service_backends",
        Kind.GAUGE,
        "Backends of the service by state.",
        ("service", "state"),
        _service_backends,
    ),
    Family(
        "steelyard_service_discovered_targets",
        Kind.GAUGE,
        "Targets that the service's source of backends has named.",
        _SERVICE,
        lambda s: [((name,), len(source.named)) for name, source in s.sources.items()],
    ),
    Family(
        "steelyard_service_discovery_failing",
        Kind.GAUGE,
        "1 if the newest answer of the service's source of backends is not used, or if there is "
        "none.",
        _SERVICE,
        lambda s: [((name,), bool(source.problem)) for name, source in s.sources.items()],
    ),
    Family(
        "steelyard_service_discovery_answered_timestamp_seconds",
        Kind.GAUGE,
        "When the answer came whose targets are in use.",
        _SERVICE,
        lambda s: [
            ((name,), source.answered)
            for name, source in s.sources.items()
            if source.answered is not None
        ],
    ),
    *_counts("service", _SERVICE, lambda value: each_service(lambda s: value(s.counts))),
    Family(
        "steelyard_service_unrecorded_flows_total",
        Kind.COUNTER,
        "New flows for which the flow table had no room. They are forwarded by the ring alone.",
        _SERVICE,
        each_service(lambda s: s.not_recorded),
    ),
    Family(
        "steelyard_service_dropped_packets_total",
        Kind.COUNTER,
        "Packets for the service that were dropped, by reason.",
        ("service", "reason"),
        _drops,
    ),
    Family(
        "steelyard_service_replied_packets_total",
        Kind.COUNTER,
        "Replies that the balancer sent itself: RST, ICMP and ICMPv6 errors.",
        _SERVICE,
        each_service(lambda s: s.replied),
    ),
    Family(
        "steelyard_service_not_replied_packets_total",
        Kind.COUNTER,
        "Replies that the balancer did not send because there were too many: 100 a second for a "
        "source, or 10,000 a second in all.",
        _SERVICE,
        each_service(lambda s: s.not_replied),
    ),
    Family(
        "steelyard_service_held_clients",
        Kind.GAUGE,
        "Clients that wait for a backend, as none is usable. Only with `no_backend: hold`.",
        _SERVICE,
        each_service(lambda s: s.held),
    ),
    Family(
        "steelyard_service_challenges_clients",
        Kind.GAUGE,
        "1 while new clients have to prove that they are at their address (`syn_protection`).",
        _SERVICE,
        each_service(lambda s: int(s.challenges)),
    ),
    Family(
        "steelyard_service_gives_cookies",
        Kind.GAUGE,
        "1 while new clients get SYN cookies instead of being challenged (`syn_cookies`).",
        _SERVICE,
        each_service(lambda s: int(s.cookies)),
    ),
    Family(
        "steelyard_service_cookies_ready",
        Kind.GAUGE,
        "1 while all servers that can get flows accept SYN cookies. Absent without `syn_cookies`.",
        _SERVICE,
        _cookies_ready,
    ),
    Family(
        "steelyard_service_cookie_connections_total",
        Kind.COUNTER,
        "Connections that clients established by answering a SYN cookie.",
        _SERVICE,
        each_service(lambda s: s.cookies_taken),
    ),
    Family(
        "steelyard_service_flows",
        Kind.GAUGE,
        "Flows that are acked or established now.",
        _SERVICE,
        each_service(lambda s: sum(b.flows for b in s.backends)),
    ),
)

_BACKEND_FAMILIES = (
    Family(
        "steelyard_backend_info",
        Kind.INFO,
        "The backend's address.",
        ("service", "backend", "address"),
        lambda s: [((*names, str(b.backend.address)), 1) for names, b in backends(s)],
    ),
    Family(
        "steelyard_backend_up",
        Kind.GAUGE,
        "1 if the backend takes new flows: it is healthy, reachable and active.",
        _BACKEND,
        each_backend(lambda b: b.state is BackendState.UP),
    ),
    Family(
        "steelyard_backend_state",
        Kind.GAUGE,
        "1 for the state that the backend is in.",
        ("service", "backend", "state"),
        _backend_states,
    ),
    Family(
        "steelyard_backend_state_changed_timestamp_seconds",
        Kind.GAUGE,
        "When the backend entered its state, in seconds since the epoch.",
        _BACKEND,
        each_backend(lambda b: b.since),
    ),
    Family(
        "steelyard_backend_health_check_latency_seconds",
        Kind.GAUGE,
        "How long the last health check took. Absent before the first check and without checks.",
        _BACKEND,
        _latencies,
    ),
    Family(
        "steelyard_backend_certificate_expires_timestamp_seconds",
        Kind.GAUGE,
        "When the certificate expires that the last check over TLS accepted, in seconds since the "
        "epoch. Absent if none is verified.",
        _BACKEND,
        _certificates,
    ),
    Family(
        "steelyard_backend_configured_weight",
        Kind.GAUGE,
        "The weight that the operator configured.",
        _BACKEND,
        each_backend(lambda b: b.backend.weight),
    ),
    Family(
        "steelyard_backend_effective_weight",
        Kind.GAUGE,
        "The weight that is used.",
        _BACKEND,
        each_backend(lambda b: b.weight_effective),
    ),
    Family(
        "steelyard_backend_expected_share_ratio",
        Kind.GAUGE,
        "Share of the service's new flows that the ring gives the backend, 0 to 1.",
        _BACKEND,
        each_backend(lambda b: b.share_expected),
    ),
    Family(
        "steelyard_backend_actual_share_ratio",
        Kind.GAUGE,
        "Share of the service's new flows of the last minute that the backend got, 0 to 1.",
        _BACKEND,
        each_backend(lambda b: b.share_actual or 0.0),
    ),
    *_counts("backend", _BACKEND, lambda value: each_backend(lambda b: value(b.counts))),
    Family(
        "steelyard_backend_flows",
        Kind.GAUGE,
        "Flows of the backend that are acked or established now.",
        _BACKEND,
        each_backend(lambda b: b.flows),
    ),
)

FAMILIES: tuple[Family, ...] = (
    *_AGENT_FAMILIES,
    *_PROGRAM_FAMILIES,
    *_SERVICE_FAMILIES,
    *_BACKEND_FAMILIES,
    *LOAD_FAMILIES,
    *REPORT_FAMILIES,
    *SCALE_FAMILIES,
    *FAILOVER_FAMILIES,
    *FLEET_FAMILIES,
    *GUARD_FAMILIES,
)

# The metrics of single backends that the rules in deploy/prometheus and a first look at a server
# need.
BASIC = frozenset(
    {
        "steelyard_backend_up",
        "steelyard_backend_state",
        "steelyard_backend_certificate_expires_timestamp_seconds",
        "steelyard_backend_effective_weight",
        "steelyard_backend_expected_share_ratio",
        "steelyard_backend_actual_share_ratio",
        "steelyard_backend_new_flows_total",
        "steelyard_backend_bytes_total",
        "steelyard_open_connections",
        "steelyard_waiting_bytes",
        "steelyard_unanswered_bytes",
        "steelyard_answers_total",
        "steelyard_error_answers_total",
        "steelyard_hangups_total",
        "steelyard_ejections_total",
        "steelyard_telemetry_fresh",
        "steelyard_gpu_failing",
        "steelyard_gpu_throttled",
    }
)


def chosen(of_backends: BackendMetrics) -> Iterator[Family]:
    """Yield the families that are served.

    With ``BackendMetrics.BASIC``, a backend has a sample only for the state that it is in.
    """
    for family in FAMILIES:
        if not family.is_of_backends or of_backends is BackendMetrics.ALL:
            yield family
        elif of_backends is BackendMetrics.BASIC and family.name in BASIC:
            is_state = family.samples is _backend_states
            yield replace(family, samples=_present_states) if is_state else family
