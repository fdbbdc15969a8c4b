"""Decides how the API shows snapshots, changes, flows and explanations as JSON values.

Names and units are in the keys. All functions are pure.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import asdict

from agent.api import failoverviews, fleetviews, loadviews, scaleviews
from agent.api.times import age_s, rfc3339
from agent.config.defaults import check_port
from agent.config.origins import Setting
from agent.config.plan import Change
from agent.config.render import limits_fields
from agent.config.reverts import Revert
from agent.config.versions import Version
from agent.errors import ConfigError, SteelyardError
from agent.model import (
    BackendState,
    CheckKind,
    HealthCheck,
    NextHop,
    RemoteApi,
    Scheduler,
    Service,
    ServiceState,
    Timeouts,
    Via,
)
from agent.state.causes import Cause, Troubles, Unserved
from agent.state.journal import Entry, Tally
from agent.state.loads import counts_waiting, learns_speed
from agent.state.nat_blocks import described
from agent.state.queries import Explanation, FlowPage, FlowView
from agent.state.snapshot import (
    BackendCounts,
    BackendSnapshot,
    DataplaneSnapshot,
    Latency,
    Page,
    Rates,
    ServiceRow,
    ServiceSnapshot,
    Snapshot,
)
from agent.state.tierview import TierStatus
from agent.state.way import way_of

type Json = dict[str, object]

MAX_TROUBLES = 100  # of each kind, in one answer


def status(snapshot: Snapshot, now: Troubles, recent: Tally) -> Json:
    """Return the body of GET /v1/status."""
    services, backends = snapshot.service_states, snapshot.backend_states
    return {
        "agent": {
            "name": snapshot.name,
            "version": snapshot.version,
            "pid": snapshot.pid,
            "uptime_s": age_s(snapshot.started, snapshot.at),
            "started_at": rfc3339(snapshot.started),
            "config_file": snapshot.config_path,
            "config_problem": snapshot.config_problem,
            "changes_since_file": snapshot.changes_since_file,
            "reconcile_problem": snapshot.reconcile_problem,
            "unsaved_problem": snapshot.unsaved_problem,
            "audit_problem": snapshot.audit_problem,
            "discovery_problems": list(snapshot.discovery_problems),
        },
        "dataplane": _dataplane(snapshot.dataplane)
        | {
            "link_problems": list(snapshot.link_problems),
            "vip_problems": list(snapshot.vip_problems),
        },
        "services": {
            "total": sum(services.values()),
            **{state.value: services.get(state, 0) for state in ServiceState},
        },
        "backends": {
            "total": sum(backends.values()),
            **{state.value: backends.get(state, 0) for state in BackendState},
        },
        "unserved": [_unserved(each, snapshot.at) for each in now.unserved[:MAX_TROUBLES]],
        "unconnected": [
            {"service": each.service, "begun": each.begun, "backends_up": each.up}
            for each in now.unconnected[:MAX_TROUBLES]
        ],
        "late": [
            {"service": each.service, **loadviews.objective(each.watch)}
            for each in now.late[:MAX_TROUBLES]
        ],
        "troubles": [_cause(each, snapshot.at) for each in now.causes[:MAX_TROUBLES]],
        "troubles_total": len(now.causes),
        "threats": len({each.threat.source for each in snapshot.guard.threats}),
        "rates": _rates(snapshot.rates),
        "events_last_hour": {level: recent.levels.get(level, 0) for level in ("warning", "error")},
        "failover": failoverviews.summary(snapshot.failover, snapshot.at),
        "fleet": fleetviews.membership(snapshot.fleet, snapshot.at),
        "tier": _tier(snapshot.tier),
    }


def _tier(status: TierStatus | None) -> Json | None:
    if status is None:
        return None
    return {"problems": list(status.problems), "load": status.load and asdict(status.load)}


def metrics_read(
    address: tuple[str, int] | None, read_at: float | None, now: float
) -> dict[str, Json]:
    """Return the part of GET /v1/status that says where metrics listen, and when they were last
    read.
    """
    where = None
    if address is not None:
        host, port = address
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    last_s = None if read_at is None else round(now - read_at, 3)
    return {"metrics": {"listen": where, "last_read_s": last_s}}


def _unserved(each: Unserved, at: float) -> Json:
    return {
        "service": each.service,
        "reason": each.reason,
        "since": rfc3339(each.since),
        "since_s": age_s(each.since, at),
        "clients": each.clients.value,
    }


def _cause(each: Cause, at: float) -> Json:
    return {
        "servers": [
            {"name": server.name, "addresses": [str(address) for address in server.addresses]}
            for server in each.servers[:MAX_TROUBLES]
        ],
        "servers_total": len(each.servers),
        "state": each.state.value,
        "reason": each.reason,
        "since": rfc3339(each.since),
        "since_s": age_s(each.since, at),
        "services": list(each.services[:MAX_TROUBLES]),
        "services_total": len(each.services),
        "backends": len(each.backends),
        "other_backends": each.others,
    }


def _syn_protection(view: ServiceSnapshot) -> Json:
    return {
        "syn_protection": view.service.syn_protection.value,
        "challenges_clients": view.challenges,
        "syn_cookies": view.service.syn_cookies,
        "gives_cookies": view.cookies,
        "cookies_problem": view.cookies_problem,
        "cookies_keys": list(view.cookies_keys),
        "cookie_connections_total": view.cookies_taken,
    }


def service(view: ServiceSnapshot, at: float, recent: Tally) -> Json:
    """Return a service with its backends.

    ``at`` is when the snapshot was taken, ``recent`` counts the events of the hour before.
    """
    configured = view.service
    return {
        **_heading(configured),
        "scheduler_settings": _scheduler_settings(configured),
        "draws_in_use": view.draws,
        "spill_over": list(view.spill_over),
        "no_backend": configured.no_backend.value,
        "held_clients": view.held,
        "panic": configured.panic,
        "outlier": loadviews.outlier(configured),
        "slo": [loadviews.objective(each) for each in view.slo],
        "scale": scaleviews.scale(view),
        **_syn_protection(view),
        "first_byte_is": view.first_byte,
        "affinity": loadviews.affinity(configured, view.home),
        "discover": configured.discover.source or None,
        "guard": configured.guard.value,
        "allow": list(configured.allow),
        "deny": list(configured.deny),
        "limits": limits_fields(configured.limits),
        "detect": configured.detect.value,
        "trusted": list(configured.trusted),
        "down_flows": configured.down_flows.value,
        "reset_after_s": configured.reset_after_s,
        "slow_start_s": configured.slow_start_s,
        "quic_id_bytes": configured.quic_id_bytes,
        "counts_waiting_bytes": counts_waiting(configured),
        "learns_speed": learns_speed(configured),
        "telemetry": configured.telemetry.kind.value,
        "node_telemetry": configured.node.kind.value,
        "model": configured.model.name if configured.model else None,
        "state": view.state.value,
        "reason": view.reason,
        "since": rfc3339(view.since),
        "since_s": age_s(view.since, at),
        "backends_up": sum(1 for b in view.backends if b.state is BackendState.UP),
        "backends_total": len(view.backends),
        "flows_established": sum(b.flows for b in view.backends),
        "open_connections": sum(b.load.open for b in view.backends),
        "busy_connections": sum(b.load.busy for b in view.backends),
        "skew": loadviews.skew(view.skew),
        "idle_resets_total": sum(b.load.idle_resets for b in view.backends),
        "waiting_bytes": _sum(b.load.waiting_bytes for b in view.backends),
        "waiting_requests": _sum(b.load.awaiting for b in view.backends),
        "rates": _rates(view.rates),
        **_counts(view.counts),
        "replied_packets_total": view.replied,
        "not_replied_packets_total": view.not_replied,
        "flows_not_recorded_total": view.not_recorded,
        "drops_total": dict(view.drops),
        "timeouts_s": _timeouts(configured.timeouts),
        "health_check": _health_check(configured),
        "backends": [_backend(configured, backend, at, recent) for backend in view.backends],
    }


def _timeouts(timeouts: Timeouts) -> Json:
    return {
        "embryonic": timeouts.embryonic_s,
        "acked": timeouts.acked_s,
        "established": timeouts.established_s,
        "closing": timeouts.closing_s,
    }


def page(of: str, found: Page, recent: Tally) -> Json:
    """Return the body of GET /v1/list/backends or /v1/list/services."""
    rows = [_backend(service, one, found.at, recent) for service, one in found.backends]
    rows += [_service_row(one, found.at) for one in found.services]
    return {of: rows, "matched": found.matched, "total": found.total}


def _heading(configured: Service) -> Json:
    return {
        "name": configured.name,
        "vip": configured.key.address,
        "port": _port(configured),
        "protocol": configured.key.protocol.value,
        "forward": configured.forward.value,
        "scheduler": configured.scheduler.value,
    }


def _service_row(row: ServiceRow, at: float) -> Json:
    return {
        **_heading(row.service),
        "state": row.state.value,
        "reason": row.reason,
        "since": rfc3339(row.since),
        "since_s": age_s(row.since, at),
        "backends_up": row.backends_up,
        "backends_total": row.backends_total,
        "flows_established": row.flows,
        "waiting_bytes": row.waiting_bytes,
        "first_byte_last_minute": None
        if row.first_byte is None
        else {
            "count": row.first_byte.count,
            "p50_ms": _rounded(row.first_byte.p50_ms),
            "p99_ms": _rounded(row.first_byte.p99_ms),
        },
        "handshakes": None
        if row.handshakes is None
        else {
            "begun": row.handshakes.begun,
            "established": row.handshakes.established,
            "span_s": round(row.handshakes.span_s, 1),
        },
        "rates": _rates(row.rates),
    }


def changes(made: tuple[Change, ...]) -> list[Json]:
    """Return changes as the API lists them."""
    return [
        {
            "action": change.action.value,
            "kind": change.kind.value,
            "service": change.service,
            "backend": change.backend,
            "fields": [{"field": f.field, "old": f.old, "new": f.new} for f in change.fields],
            "effect": change.effect,
        }
        for change in made
    ]


def reverts(pending: Iterable[Revert], now: float) -> list[Json]:
    """Return the changes that end by themselves, the first one at the top."""
    return [
        {
            "service": each.service,
            "backend": each.backend,
            "field": each.field,
            "set_to": each.set_to,
            "back": each.back,
            "at": rfc3339(each.at),
            "in_s": round(max(0.0, each.at - now), 1),
        }
        for each in sorted(pending, key=lambda each: each.at)
    ]


def origins(settings: tuple[Setting, ...]) -> list[Json]:
    """Return the settings of a service, each with the layer that decided it."""
    return [
        {
            "backend": each.backend,
            "field": each.field,
            "value": each.value,
            "origin": each.origin.value,
        }
        for each in settings
    ]


def versions(kept: tuple[Version, ...]) -> Json:
    """Return the body of GET /v1/history."""
    return {
        "versions": [
            {
                "number": version.number,
                "at": rfc3339(version.at),
                "how": version.how,
                "who": version.who,
                "message": version.message,
                "changes": list(version.changes),
                "changes_count": version.changes_count,
            }
            for version in kept
        ]
    }


def events(entries: tuple[Entry, ...]) -> Json:
    """Return the body of GET /v1/events."""
    return {"events": event_list(entries)}


def event_list(entries: tuple[Entry, ...]) -> list[Json]:
    """Return entries of the journal as the API lists them."""
    return [
        {
            "number": entry.number,
            "at": rfc3339(entry.at),
            "level": entry.level.value,
            "event": entry.event,
            "service": entry.service or None,
            "backend": entry.fields.get("backend"),
            "fields": dict(entry.fields),
        }
        for entry in entries
    ]


def flows(page: FlowPage) -> Json:
    """Return the body of GET /v1/flows."""
    return {
        "flows": [_flow(flow) for flow in page.flows],
        "matched": page.matched,
        "shown": len(page.flows),
    }


def explanation(explained: Explanation) -> Json:
    """Return the body of GET /v1/explain."""
    return {
        "verdict": explained.verdict,
        "service": explained.service,
        "backend": explained.backend,
        "reason": explained.reason,
        "scheduler": explained.scheduler,
        "depends_on": explained.depends_on,
        "steps": list(explained.steps),
        "recorded_flow": None if explained.recorded is None else _flow(explained.recorded),
        "ring": {
            "slots": explained.ring_slots,
            "draws": [
                {
                    "slot": draw.slot,
                    "backend": draw.backend,
                    "usable": draw.usable,
                    "load_score": None if draw.score is None else round(draw.score, 3),
                    "open_connections": draw.open,
                    "most_open_connections": draw.most_open,
                    "cpu": draw.cpu,
                }
                for draw in explained.draws
            ],
        },
    }


def remote_api(api: RemoteApi) -> Json:
    """Return the body of GET /v1/api."""
    host, port = api.listen or (None, None)
    files = {
        "certificate": api.certificate,
        "key_file": api.key_file,
        "client_ca": api.client_ca,
        "crl_file": api.crl_file,
    }
    shown: Json = {name: None if path is None else str(path) for name, path in files.items()}
    return {"address": host, "port": port, **shown}


def error(problem: SteelyardError) -> Json:
    """Return the body of a refusal. ``problems`` lists all problems if there are several."""
    body = _problem(problem)
    if isinstance(problem, ConfigError) and len(problem.problems) > 1:
        body["problems"] = [_problem(each) for each in problem.problems]
    return {"error": body}


def _problem(problem: SteelyardError) -> Json:
    return {"message": problem.message, "where": problem.where, "remedy": problem.remedy}


def _dataplane(view: DataplaneSnapshot) -> Json:
    states = view.flows_by_state
    used = sum(states.values())
    return {
        "interface": view.interface,
        "backend_interfaces": list(view.backend_interfaces),
        "attached": view.attached,
        "hook": view.hook,
        "hook_reason": view.hook_reason,
        "driver": view.driver,
        "program_id": view.program_id,
        "abi_version": view.abi,
        "features": list(view.features),
        "compile_ms": round(view.compile_ms, 1),
        "instructions": view.instructions,
        "machine_code_bytes": view.jited_bytes,
        "verified_instructions": view.verified_insns,
        "flow_table": {
            "slots": view.flow_slots,
            **{s: states.get(s, 0) for s in ("established", "acked", "embryonic", "closing")},
            "used_share": round(used / view.flow_slots, 6) if view.flow_slots else 0.0,
        },
        "nat_ports": [
            {
                "source": str(nat.source),
                "server": described(nat.server),
                "used_ports": nat.used,
                "ports": nat.ports,
            }
            for nat in view.nat_ports
        ],
        "nat_problems": list(view.nat_problems),
        "passed_packets": dict(view.passed),
        "trace_events_lost_total": view.events_lost,
    }


def _backend(service: Service, view: BackendSnapshot, at: float, recent: Tally) -> Json:
    health = view.health
    name = f"{service.name}/{view.backend.name}"
    return {
        "service": service.name,
        "name": view.backend.name,
        "address": str(view.backend.address),
        "port": view.backend.port,
        "backup": view.backend.backup,
        "priority": view.backend.priority,
        "zone": view.backend.zone,
        "discovered": view.backend.discovered,
        "state": view.state.value,
        "reason": view.reason,
        "state_changes_last_hour": recent.changes.get(name, 0),
        "since": rfc3339(view.since),
        "since_s": age_s(view.since, at),
        "admin_state": view.backend.admin.value,
        "health": health.health.value,
        "health_reason": health.reason,
        "health_since": rfc3339(health.since),
        "certificate_until": None
        if health.certificate_until is None
        else rfc3339(health.certificate_until),
        "health_latency_ms": None if health.latency_ms is None else round(health.latency_ms, 3),
        "next_hop": None if view.next_hop is None else _next_hop(view.next_hop),
        "weight_configured": view.backend.weight,
        "weight_effective": view.weight_effective,
        "weight_reason": view.weight_reason,
        "share_expected": round(view.share_expected, 6),
        "share_actual": None if view.share_actual is None else round(view.share_actual, 6),
        "flows_established": view.flows,
        "open_connections": view.load.open,
        "busy_connections": view.load.busy,
        "idle_resets_total": view.load.idle_resets,
        "waiting_bytes": view.load.waiting_bytes,
        "waiting_requests": view.load.awaiting,
        "unanswered_bytes": view.load.unanswered_bytes,
        "error_answers_total": view.load.errors,
        "hangups_total": view.load.hangups,
        "ejections_total": view.load.ejections,
        "load_score": None if view.load.score is None else round(view.load.score, 3),
        "hot": view.load.hot,
        "reported": loadviews.reported(service, view.load.reported),
        "learned": loadviews.learned(view.load.learned),
        "first_byte": _latency(view.load.first_byte),
        "handshake": _latency(view.load.handshake),
        "rates": _rates(view.rates),
        **_counts(view.counts),
        "answers_total": view.counts.answers,
    }


def _latency(times: Latency | None) -> Json | None:
    """Return the times that a backend took, or None if they are not measured."""
    if times is None:
        return None
    return {
        "count_total": times.count,
        "mean_ms": round(times.sum_s * 1000 / times.count, 3) if times.count else None,
        "last_minute": {
            "count": times.recent_count,
            "p50_ms": _rounded(times.recent_p50_ms),
            "p99_ms": _rounded(times.recent_p99_ms),
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _sum(values: Iterable[int | None]) -> int | None:
    """Return the sum of the known values, or None if none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _port(configured: Service) -> int | str:
    """Return a number, a range or ``any``."""
    key = configured.key
    return key.port if key.port and key.port_last is None else key.ports


def _scheduler_settings(configured: Service) -> Json:
    """Return the settings that the service's scheduler uses."""
    match configured.scheduler:
        case Scheduler.LEAST_LOAD:
            return {
                "draws": configured.draws,
                "bytes_per_connection": configured.bytes_per_connection,
            }
        case Scheduler.SOURCE:
            return {
                "source_bits": configured.source_bits,
                "source_bound": configured.source_bound,
            }
        case _:
            return {}


def _next_hop(hop: NextHop) -> Json:
    return {"mac": hop.mac, "ifindex": hop.ifindex, "on_link": hop.on_link, "mtu": hop.mtu}


def _rates(rates: Rates) -> Json:
    return {
        "new_flows_per_s": round(rates.new_flows_per_s, 3),
        "packets_per_s": round(rates.packets_per_s, 3),
        "bits_per_s": round(rates.bits_per_s, 3),
        "drops_per_s": round(rates.drops_per_s, 3),
    }


def _counts(counts: BackendCounts) -> Json:
    return {
        "packets_total": counts.packets,
        "bytes_total": counts.bytes,
        "new_flows_total": counts.opened,
        "closed_flows_total": counts.closed,
        "established_flows_total": counts.established,
        "reply_packets_total": counts.reply_packets,
        "reply_bytes_total": counts.reply_bytes,
    }


def _health_check(configured: Service) -> Json:
    """Return the check as it is made: with its port, and with only the settings that its type
    uses.
    """
    check: HealthCheck = configured.health
    if check.kind is CheckKind.NONE:
        return {"type": check.kind.value}
    ports = {check_port(configured, backend) for backend in configured.backends}
    ports = ports or {check.port or configured.key.port}
    ways = any(way_of(configured, backend) for backend in configured.backends)
    shown: Json = {
        "type": check.kind.value,
        "via": (Via.VIP if ways else Via.HOST).value,
        "port": ports.pop() or None if len(ports) == 1 else None,
        "interval_s": check.interval_s,
        "timeout_s": check.timeout_s,
        "rise": check.rise,
        "fall": check.fall,
        "jitter": check.jitter,
    }
    if check.kind in {CheckKind.HTTP, CheckKind.HTTPS}:
        shown |= {
            "method": check.method,
            "path": check.path,
            "host": check.host,
            "expect_status": ",".join(
                str(low) if low == high else f"{low}-{high}" for low, high in check.expect_status
            ),
        }
    if check.kind in {CheckKind.COMPLETION, CheckKind.GRPC}:
        shown |= {"host": check.host, "tls": check.tls}
    if check.kind is CheckKind.HTTPS or check.tls:
        shown["verify_tls"] = check.verify_tls
    return shown | _of_kind(check)


def _of_kind(check: HealthCheck) -> Json:
    """Return the settings that only a check of this type has."""
    match check.kind:
        case CheckKind.COMPLETION:
            return {
                "path": check.path,
                "model": check.model,
                "every_s": check.every_s,
                "answer_within_s": check.answer_within_s,
            }
        case CheckKind.GRPC:
            return {"grpc_service": check.grpc_service or None}
        case CheckKind.UDP:
            return {"send": check.send or None, "expect": check.expect}
        case CheckKind.DNS:
            return {"query": check.query, "record": check.record}
        case CheckKind.EXEC:
            return {"command": shlex.join(check.command)}
        case _:
            return {}


def _flow(flow: FlowView) -> Json:
    address, port = flow.nat_source or (None, None)
    asked = flow.requests
    return {
        "service": flow.service,
        "protocol": flow.tuple5.protocol.value,
        "client": str(flow.tuple5.client),
        "client_port": flow.tuple5.client_port,
        "vip": str(flow.tuple5.vip),
        "port": flow.tuple5.port,
        "backend": flow.backend,
        "state": flow.state,
        "age_s": round(flow.age_s, 3),
        "idle_s": round(flow.idle_s, 3),
        "nat_source": None if address is None else str(address),
        "nat_source_port": port,
        "awaiting_answer": None if asked is None else asked.awaiting,
        "waiting_bytes": None if asked is None else asked.waiting_bytes,
        "handshake_ms": None if asked is None else _rounded(asked.handshake_ms),
        "talk": None if asked is None else asked.talk,
    }
