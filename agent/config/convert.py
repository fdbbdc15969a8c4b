"""Makes the frozen model of sections that passed every check."""

from __future__ import annotations

from agent.config.defaults import default_check_kind, default_timeouts
from agent.config.rules import Candidate
from agent.config.schema import (
    BackendSection,
    GlobalSection,
    HealthSection,
    ServiceSection,
    TimeoutsSection,
)
from agent.model import (
    Backend,
    Config,
    HealthCheck,
    Protocol,
    Service,
    ServiceKey,
    Tables,
    Timeouts,
)


def to_config(globals_: GlobalSection, services: list[Candidate]) -> Config:
    """The configuration."""
    tables = globals_.tables
    return Config(
        name=globals_.name,
        interface=globals_.interface,
        xdp_mode=globals_.xdp_mode,
        socket=globals_.socket,
        socket_group=globals_.socket_group,
        state_dir=globals_.state_dir,
        metrics_listen=globals_.metrics,
        manage_vips=globals_.manage_vips,
        hash_seed=globals_.hash_seed,
        ipip_source_v4=globals_.ipip_source.ipv4,
        ipip_source_v6=globals_.ipip_source.ipv6,
        kernel_headers=globals_.kernel_headers,
        tables=Tables(
            flows=tables.flows,
            services=tables.services,
            backends=tables.backends,
            ring_slots=tables.ring_slots,
        ),
        services=tuple(
            _service(candidate.section, candidate.backends)
            for candidate in services
            if candidate.section is not None
        ),
    )


def _service(section: ServiceSection, backends: tuple[tuple[int, BackendSection], ...]) -> Service:
    return Service(
        name=section.name,
        key=ServiceKey(section.vip, section.port, section.protocol),
        forward=section.forward,
        scheduler=section.scheduler,
        timeouts=_timeouts(section.timeouts, section.protocol),
        down_flows=section.down_flows,
        health=_health(section.health, section.protocol),
        backends=tuple(
            Backend(
                name=backend.name,
                address=backend.address,
                weight=backend.weight,
                admin=backend.state,
            )
            for _, backend in backends
        ),
    )


def _timeouts(section: TimeoutsSection, protocol: Protocol) -> Timeouts:
    default = default_timeouts(protocol)
    return Timeouts(
        embryonic_s=section.embryonic or default.embryonic_s,
        acked_s=section.acked or default.acked_s,
        established_s=section.established or default.established_s,
        closing_s=section.closing or default.closing_s,
    )


def _health(section: HealthSection, protocol: Protocol) -> HealthCheck:
    return HealthCheck(
        kind=section.type or default_check_kind(protocol),
        port=section.port,
        interval_s=section.interval,
        timeout_s=section.timeout_s,
        rise=section.rise,
        fall=section.fall,
        jitter=section.jitter,
        method=section.method,
        path=section.path,
        host=section.host,
        expect_status=section.expect_status,
        verify_tls=section.verify_tls,
    )
