"""Writes configurations as documents, the inverse of ``agent.config.load``.

A *document* is what YAML and JSON hold: mappings, lists, text, numbers. *Fields* are the flat form
of a document, with every value present under its dotted name; plans compare fields.
"""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from pathlib import Path

from agent.config.defaults import (
    default_check_path,
    default_report_timeout,
    default_service,
)
from agent.config.durations import format_duration
from agent.config.failover_fields import failover_document, fleet_document
from agent.config.load_fields import (
    affinity_fields,
    discover_fields,
    model_fields,
    node_fields,
    outlier_fields,
    override_document,
    rebalance_fields,
    slo_fields,
    telemetry_fields,
)
from agent.model import (
    ANY_PORT,
    AddressList,
    Backend,
    Config,
    HealthCheck,
    Limits,
    Rate,
    Scale,
    Service,
)

type Fields = dict[str, object]

IDENTITY = frozenset({"vip", "port", "protocol"})


def document(config: Config) -> dict[str, object]:
    """Return the document that loads as ``config``, without values that are at their default."""
    fields = global_fields(config)
    default = global_fields(Config(name="default", interface=""))
    result = _nested({key: value for key, value in fields.items() if value != default[key]})
    result["services"] = [service_document(service) for service in config.services]
    return result


def service_document(service: Service) -> dict[str, object]:
    """Return one entry of ``services``."""
    fields, default = service_fields(service), default_fields(service)
    result: dict[str, object] = {"name": service.name}
    result |= _nested(
        {key: value for key, value in fields.items() if key in IDENTITY or value != default[key]}
    )
    # What a source has named is no part of the document: the source names it again.
    result["backends"] = [
        backend_document(backend) for backend in service.backends if not backend.discovered
    ]
    return result


def default_fields(service: Service) -> Fields:
    """Return the fields that a service has if it does not set them; some depend on others."""
    default = service_fields(
        default_service(service.name, service.key, interval_s=service.health.interval_s)
    )
    default["health.interval"] = format_duration(HealthCheck().interval_s)
    default["health.path"] = default_check_path(service.health.kind)
    # The default timeout of reports depends on the interval, too.
    report_timeout_s = default_report_timeout(service.telemetry.interval_s)
    default["telemetry.timeout"] = format_duration(report_timeout_s)
    return default


def backend_document(backend: Backend) -> dict[str, object]:
    """Return one entry of ``backends``."""
    fields = backend_fields(backend)
    default = backend_fields(Backend(name=backend.name, address=backend.address))
    return {"name": backend.name, "address": fields["address"]} | {
        key: value for key, value in fields.items() if value != default[key]
    }


def global_fields(config: Config) -> Fields:
    """Return the fields of everything but the services."""
    v4, v6 = config.tunnel_source_v4, config.tunnel_source_v6
    return {
        "name": config.name,
        "interface": config.interface,
        "backend_interfaces": list(config.backend_interfaces),
        "hook": config.hook.value,
        "socket": str(config.socket),
        "socket_group": config.socket_group,
        "socket_roles.viewer": list(config.socket_roles.viewer),
        "socket_roles.operator": list(config.socket_roles.operator),
        "socket_roles.admin": list(config.socket_roles.admin),
        "api.listen": _listen(config.api.listen),
        "api.certificate": _path(config.api.certificate),
        "api.key_file": _path(config.api.key_file),
        "api.client_ca": _path(config.api.client_ca),
        "api.crl_file": _path(config.api.crl_file),
        "api.user": config.api.user,
        "api.roles": {
            role.value: list(names) for role, names in config.api.roles.by_role.items() if names
        },
        "script_user": config.script_user,
        "audit_log.required": config.audit_required,
        "state_dir": str(config.state_dir),
        "metrics": _listen(config.metrics_listen),
        "metrics_backends": config.metrics_backends.value,
        "status_page.listen": _listen(config.status_page.listen),
        "status_page.token_file": _path(config.status_page.token_file),
        "status_page.certificate": _path(config.status_page.certificate),
        "status_page.key_file": _path(config.status_page.key_file),
        "manage_vips": config.manage_vips,
        "hash_seed": config.hash_seed,
        "tunnel_source.ipv4": str(v4) if v4 else None,
        "tunnel_source.ipv6": str(v6) if v6 else None,
        "gue.port": config.gue_port,
        "companion.key_file": _path(config.companion_key_file),
        "companion.port": config.companion_port,
        "nat.sources_ipv4": [str(source) for source in config.nat.sources_v4],
        "nat.sources_ipv6": [str(source) for source in config.nat.sources_v6],
        "nat.ports": f"{config.nat.first_port}-{config.nat.last_port}",
        "kernel_headers": config.kernel_headers.value,
        "tables.flows": config.tables.flows,
        "tables.services": config.tables.services,
        "tables.backends": config.tables.backends,
        "tables.ring_slots": config.tables.ring_slots,
        "tables.zone_rings": config.tables.zone_rings,
        "tables.nat_blocks": config.tables.nat_blocks,
        "tables.guard_nodes": config.tables.guard_nodes,
        "zones": {zone.name: [str(prefix) for prefix in zone.clients] for zone in config.zones},
        "lists": {each.name: _list(each) for each in config.lists},
        "suricata.eve": _path(config.suricata.eve),
        "suricata.block_severity": config.suricata.block_severity,
        "suricata.block_signatures": list(config.suricata.block_signatures),
        "suricata.log_signatures": list(config.suricata.log_signatures),
        "suricata.block_for": format_duration(config.suricata.block_for_s),
        "suricata.most_blocked": config.suricata.most_blocked,
        "suricata.proxies": [str(prefix) for prefix in config.suricata.proxies],
        "failover": failover_document(config.failover),
        "fleet": fleet_document(config.fleet),
    }


def service_fields(service: Service) -> Fields:
    """Return all fields of a service but its name and backends."""
    timeouts, key = service.timeouts, service.key
    sections = {
        "health": health_fields(service.health),
        "outlier": outlier_fields(service.outlier),
        "slo": slo_fields(service.slo),
        "scale": scale_fields(service.scale),
        "telemetry": telemetry_fields(service.telemetry),
        "node": node_fields(service.node),
        "model": model_fields(service.model),
        "affinity": affinity_fields(service.affinity),
        "rebalance": rebalance_fields(service.rebalance),
        "limits": limits_fields(service.limits),
        "discover": discover_fields(service.discover),
    }
    one_port = key.port != ANY_PORT and key.port_last is None
    return {
        "vip": key.address,
        "port": key.port if one_port else key.ports,
        "protocol": key.protocol.value,
        "forward": service.forward.value,
        "scheduler": service.scheduler.value,
        "draws": service.draws,
        "bytes_per_connection": service.bytes_per_connection,
        "count_waiting": service.count_waiting,
        "source_prefix": service.source_bits,
        "source_bound": service.source_bound,
        "slow_start": format_duration(service.slow_start_s),
        "learn_speed": service.learn_speed,
        "rtt_per_connection": format_duration(service.rtt_per_connection_s),
        "no_backend": service.no_backend.value,
        "panic": service.panic,
        "syn_protection": service.syn_protection.value,
        "syn_cookies": service.syn_cookies,
        "allow": list(service.allow),
        "deny": list(service.deny),
        "guard": service.guard.value,
        "detect": service.detect.value,
        "trusted": list(service.trusted),
        "quic_server_id_bytes": service.quic_id_bytes,
        "down_flows": service.down_flows.value,
        "reset_after": format_duration(service.reset_after_s),
        "timeouts.embryonic": format_duration(timeouts.embryonic_s),
        "timeouts.acked": format_duration(timeouts.acked_s),
        "timeouts.established": format_duration(timeouts.established_s),
        "timeouts.closing": format_duration(timeouts.closing_s),
        "overrides": [override_document(each) for each in service.overrides],
    } | {
        f"{section}.{key}": value
        for section, fields in sections.items()
        for key, value in fields.items()
    }


def limits_fields(limits: Limits) -> Fields:
    """Return the keys of ``limits``."""
    given = {each.name: getattr(limits, each.name) for each in dataclass_fields(limits)}
    found = {name: str(at) if isinstance(at, Rate) else at for name, at in given.items()}
    if limits.waiting_per_source is not None:
        found["waiting_per_source"] = _bytes(limits.waiting_per_source)
    return found


def _bytes(size: int) -> object:
    """Return a size in the largest unit of which it is a multiple."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if not size % (1 << shift):
            return f"{size >> shift}{unit}"
    return size


def scale_fields(scale: Scale) -> Fields:
    """Return the keys of ``scale``."""
    found: Fields = {each.name: getattr(scale, each.name) for each in dataclass_fields(scale)}
    if scale.waiting_bytes is not None:
        found["waiting_bytes"] = _bytes(scale.waiting_bytes)
    return found


def health_fields(check: HealthCheck) -> Fields:
    """Return the keys of ``health``."""
    return {
        "type": check.kind.value,
        "port": check.port,
        "interval": format_duration(check.interval_s),
        "timeout": format_duration(check.timeout_s),
        "rise": check.rise,
        "fall": check.fall,
        "jitter": check.jitter,
        "via": check.via.value,
        "method": check.method,
        "path": check.path,
        "host": check.host,
        "expect_status": _status_ranges(check.expect_status),
        "tls": check.tls,
        "verify_tls": check.verify_tls,
        "model": check.model,
        "every": format_duration(check.every_s),
        "answer_within": format_duration(check.answer_within_s),
        "grpc_service": check.grpc_service,
        "send": check.send,
        "expect": check.expect,
        "query": check.query,
        "record": check.record,
        "command": list(check.command),
    }


def backend_fields(backend: Backend) -> Fields:
    """Return all fields of a backend but its name."""
    quic_id = backend.quic_server_id
    return {
        "address": str(backend.address),
        "port": backend.port,
        "weight": backend.weight,
        "backup": backend.backup,
        "priority": backend.priority,
        "zone": backend.zone,
        "quic_server_id": quic_id.hex() if quic_id else None,
        "state": backend.admin.value,
    }


def _nested(fields: Fields) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, value in fields.items():
        section, _, key = name.rpartition(".")
        if not section:
            result[key] = value
            continue
        inner = result.setdefault(section, {})
        assert isinstance(inner, dict)  # noqa: S101 (a section is never also a value)
        inner[key] = value
    return result


def _list(each: AddressList) -> object:
    prefixes = [str(prefix) for prefix in each.prefixes]
    if not each.files:
        return prefixes
    found: dict[str, object] = {"files": [str(path) for path in each.files]}
    if prefixes:
        found["prefixes"] = prefixes
    if each.column is not None:
        found |= {"column": each.column, "values": list(each.values)}
    return found


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _listen(listen: tuple[str, int] | None) -> str:
    if listen is None:
        return "off"
    host, port = listen
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _status_ranges(ranges: tuple[tuple[int, int], ...]) -> object:
    items: list[object] = [low if low == high else f"{low}-{high}" for low, high in ranges]
    return items[0] if len(items) == 1 else items
