"""Decides what each side is configured with: the same VIP, backends, checks and adverts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from agent.config import document, load, render
from agent.failover.model import FlowSync, Instance, Method
from agent.model import (
    Backend,
    Config,
    Forward,
    HealthCheck,
    Protocol,
    Scheduler,
    Service,
    ServiceKey,
)
from vagrant.peers.plan import FOLDER, MODES, Mode
from vagrant.smoke.children import VagrantError

NAME = "peers"  # of the balancer and its tables
STATE = "/run/steelyard/peers"  # where the units may write


@dataclass(frozen=True, slots=True)
class Ground:
    """What a balancer's own configuration says of the network; ``config`` is the whole of it."""

    config: Config
    vip: IPv4Address
    gateway: IPv4Address  # of the backends' answers in nat; moves with the VIP
    backends: tuple[Backend, ...]
    check: HealthCheck
    instance: Instance
    nat_port: int  # of the servers behind the configured nat service

    def target(self, mode: Mode) -> str:
        """Where a client finds the service."""
        return f"{self.vip}:{mode.port}"


def read(text: str, where: str) -> Ground:
    """From agent.yaml; raises VagrantError if it has no nat service or no instance of VRRP."""
    config = load.parse(text, where)
    services = [
        (service, service.key.vip)
        for service in config.services
        if service.forward is Forward.NAT and isinstance(service.key.vip, IPv4Address)
    ]
    instances = [i for i in config.failover.instances if i.method is Method.VRRP]
    if not services or not instances or not config.nat.sources_v4:
        raise VagrantError(
            "the balancer has no IPv4 service of nat, no nat.sources_ipv4, or no failover instance",
            where=where,
            remedy="use the configuration of vagrant/provision",
        )
    service, vip = services[0]
    return Ground(
        config=config,
        vip=vip,
        gateway=config.nat.sources_v4[0],
        backends=tuple(replace(backend, port=None) for backend in service.backends),
        check=service.health,
        instance=instances[0],
        nat_port=service.backends[0].port or service.key.port,
    )


def agent_yaml(ground: Ground) -> str:
    """Steelyard's: the balancer's own, with other services and nobody to tell its flows."""
    config = ground.config
    failover = replace(config.failover, sync=FlowSync(), instances=(ground.instance,))
    nat = replace(config.nat, sources_v4=(ground.gateway,), sources_v6=())
    services = tuple(_service(ground, mode) for mode in MODES)
    own = replace(
        config,
        name=NAME,
        state_dir=Path(STATE),
        nat=nat,
        failover=failover,
        services=services,
    )
    return document.write_yaml(render.document(own))


def _service(ground: Ground, mode: Mode) -> Service:
    return Service(
        name=mode.steelyard,
        key=ServiceKey(ground.vip, mode.port, Protocol.TCP),
        forward=Forward(mode.steelyard),
        scheduler=Scheduler.MAGLEV,
        health=ground.check,
        backends=ground.backends,
    )


def keepalived_conf(ground: Ground) -> str:
    """keepalived's, which fills IPVS: the same addresses, checks and scheduler."""
    instance = ground.instance
    head = f"""\
global_defs {{
    router_id {NAME}
    vrrp_version 3
}}
vrrp_instance {instance.name} {{
    interface {ground.config.interface}
    virtual_router_id {instance.vrid}
    priority {instance.priority}
    advert_int {instance.interval_s:g}
    virtual_ipaddress {{
        {ground.vip}/32
        {ground.gateway}/32
    }}
}}
"""
    return head + "".join(_virtual_server(ground, mode) for mode in MODES)


def _virtual_server(ground: Ground, mode: Mode) -> str:
    check = ground.check
    # Its checks fail after so many more attempts, a pause apart: together Steelyard's `fall`.
    head = f"""\
virtual_server {ground.vip} {mode.port} {{
    protocol TCP
    lvs_sched mh
    mh-port
    lvs_method {mode.ipvs}
    alpha
    delay_loop {check.interval_s:g}
    connect_timeout {check.timeout_s:g}
    retry {check.fall - 1}
    delay_before_retry {check.interval_s:g}
"""
    servers = "".join(
        f"""\
    real_server {backend.address} {mode.port} {{
        weight {backend.weight}
        HTTP_GET {{
            url {{
                path {check.path}
                status_code {_statuses(check.expect_status)}
            }}
        }}
    }}
"""
        for backend in ground.backends
    )
    return f"{head}{servers}}}\n"


def _statuses(ranges: Sequence[tuple[int, int]]) -> str:
    return " ".join(f"{low}-{high}" if low != high else str(low) for low, high in ranges)


def nginx_conf(backend: str) -> str:
    """The servers': every answer is the backend's name, and the end of the connection."""
    listen = "\n".join(f"        listen {mode.port} backlog=4096;" for mode in MODES)
    return f"""\
daemon off;
pid {FOLDER}/nginx.pid;
error_log stderr;
worker_processes 1;
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
    keepalive_timeout 0;
    default_type text/plain;
    server {{
{listen}
        location / {{
            return 200 "{backend}\\n";
        }}
    }}
}}
"""
