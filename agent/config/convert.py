"""Converts sections that passed every check into the frozen model."""

from __future__ import annotations

from agent.config.api_schema import to_api
from agent.config.candidate import Candidate
from agent.config.defaults import (
    default_check_kind,
    default_check_path,
    default_timeouts,
    default_waiting,
)
from agent.config.failover_convert import to_failover
from agent.config.fleet_schema import to_fleet
from agent.config.schema import GlobalSection
from agent.config.service_schema import (
    BackendSection,
    HealthSection,
    ServiceSection,
    TimeoutsSection,
)
from agent.model import (
    Backend,
    Config,
    HealthCheck,
    Nat,
    Protocol,
    RoleNames,
    Service,
    StatusPage,
    SynProtection,
    Tables,
    Timeouts,
)


def to_config(globals_: GlobalSection, services: list[Candidate]) -> Config:
    """Return the configuration made of the global settings and the services."""
    tables, nat, page = globals_.tables, globals_.nat, globals_.status_page
    roles = globals_.socket_roles
    return Config(
        name=globals_.name,
        interface=globals_.interface,
        backend_interfaces=globals_.backend_interfaces,
        hook=globals_.hook,
        socket=globals_.socket,
        socket_group=globals_.socket_group,
        socket_roles=RoleNames(roles.viewer, roles.operator, roles.admin),
        api=to_api(globals_.api),
        script_user=globals_.script_user,
        audit_required=globals_.audit_log.required,
        state_dir=globals_.state_dir,
        metrics_listen=globals_.metrics,
        metrics_backends=globals_.metrics_backends,
        status_page=StatusPage(page.listen, page.token_file, page.certificate, page.key_file),
        manage_vips=globals_.manage_vips,
        hash_seed=globals_.hash_seed,
        tunnel_source_v4=globals_.tunnel_source.ipv4,
        tunnel_source_v6=globals_.tunnel_source.ipv6,
        gue_port=globals_.gue.port,
        companion_key_file=globals_.companion.key_file,
        companion_port=globals_.companion.port,
        nat=Nat(nat.sources_ipv4, nat.sources_ipv6, *nat.ports),
        kernel_headers=globals_.kernel_headers,
        tables=Tables(
            flows=tables.flows,
            services=tables.services,
            backends=tables.backends,
            ring_slots=tables.ring_slots,
            zone_rings=tables.zone_rings,
            nat_blocks=tables.nat_blocks,
            guard_nodes=tables.guard_nodes,
        ),
        services=tuple(
            _service(candidate.section, candidate.backends, globals_.script_user)
            for candidate in services
            if candidate.section is not None
        ),
        zones=globals_.zones,
        lists=globals_.lists,
        suricata=globals_.suricata.model(),
        failover=to_failover(globals_.failover, globals_.script_user),
        fleet=to_fleet(globals_.fleet),
    )


def _service(
    section: ServiceSection,
    backends: tuple[tuple[int, BackendSection], ...],
    script_user: str | None,
) -> Service:
    is_tcp = section.protocol is Protocol.TCP
    return Service(
        name=section.name,
        key=section.key,
        forward=section.forward,
        scheduler=section.scheduler,
        timeouts=_timeouts(section.timeouts, section.protocol),
        down_flows=section.down_flows,
        reset_after_s=section.reset_after,
        health=_health(section.health, section.protocol, script_user),
        backends=tuple(_backend(backend) for _, backend in backends),
        draws=section.draws,
        bytes_per_connection=section.bytes_per_connection,
        count_waiting=section.count_waiting and default_waiting(section.protocol),
        source_bits=section.source_prefix,
        source_bound=section.source_bound,
        slow_start_s=section.slow_start,
        no_backend=section.no_backend,
        panic=section.panic,
        outlier=section.outlier.model(),
        slo=section.slo.model(),
        scale=section.scale.model(),
        syn_protection=section.syn_protection if is_tcp else SynProtection.OFF,
        syn_cookies=section.syn_cookies and is_tcp,
        allow=section.allow,
        deny=section.deny,
        limits=section.limits.model(),
        guard=section.guard,
        detect=section.detect,
        trusted=section.trusted,
        quic_id_bytes=section.quic_server_id_bytes,
        telemetry=section.telemetry.model(),
        node=section.node.model(),
        model=section.model.model() if section.model else None,
        learn_speed=section.learn_speed,
        rtt_per_connection_s=section.rtt_per_connection,
        affinity=section.affinity.model(),
        rebalance=section.rebalance.model(),
        discover=section.discover.model(),
        overrides=tuple(override.model() for override in section.overrides),
    )


def _backend(section: BackendSection) -> Backend:
    return Backend(
        name=section.name,
        address=section.address,
        weight=section.weight,
        admin=section.state,
        port=section.port,
        backup=section.backup,
        priority=section.priority,
        zone=section.zone,
        quic_server_id=section.quic_server_id,
    )


def _timeouts(section: TimeoutsSection, protocol: Protocol) -> Timeouts:
    default = default_timeouts(protocol)
    return Timeouts(
        embryonic_s=section.embryonic or default.embryonic_s,
        acked_s=section.acked or default.acked_s,
        established_s=section.established or default.established_s,
        closing_s=section.closing or default.closing_s,
    )


def _health(section: HealthSection, protocol: Protocol, script_user: str | None) -> HealthCheck:
    kind = section.type or default_check_kind(protocol)
    return HealthCheck(
        kind=kind,
        port=section.port,
        interval_s=section.interval,
        timeout_s=section.timeout_s,
        rise=section.rise,
        fall=section.fall,
        jitter=section.jitter,
        via=section.via,
        method=section.method,
        path=section.path or default_check_path(kind),
        host=section.host,
        expect_status=section.expect_status,
        tls=section.tls,
        verify_tls=section.verify_tls,
        model=section.model,
        every_s=section.every,
        answer_within_s=section.answer_within,
        grpc_service=section.grpc_service,
        send=section.send,
        expect=section.expect,
        query=section.query,
        record=section.record,
        command=section.command,
        run_as=script_user if section.command else None,
    )
