"""Decides the configuration of a lab's agents."""

from __future__ import annotations

from agent.model import Forward, Scheduler
from lbctl.lab.topology import NODE_INTERFACE, PORT, PROMPTS, Lab, Node, Role, Service

# Room for thousands of short connections a second: their flows stay for half a minute.
FLOWS = 262_144

# For VRRP. A balancer that has come back first gets the flows of the others, and has them hand
# over; if they do not, its failover process goes ahead after the delay.
_VRID, _INSIDE_VRID = 99, 98
_FIRST_PRIORITY, _SECOND_PRIORITY = 150, 100
_ADVERT_INTERVAL, _PREEMPT_DELAY = "100ms", "2s"


def agent_document(lab: Lab, balancer: Node) -> dict[str, object]:
    """Return the configuration document of a balancer's agent."""
    document: dict[str, object] = {
        "name": balancer.namespace,
        "interface": NODE_INTERFACE,
        "hook": lab.hook.value,
        "socket": str(lab.socket(balancer)),
        "state_dir": str(lab.run_dir / "state"),
        "metrics": "127.0.0.1:9117",
        "status_page": {"listen": "127.0.0.1:9180"},
        "manage_vips": lab.vlan is None,
        "tables": {"flows": FLOWS},
        "defaults": {
            "forward": lab.forward.value,
            "scheduler": lab.scheduler.value,
            "health": {
                "type": "http",
                "path": "/health",
                "interval": "500ms",
                "timeout": "500ms",
                "rise": 2,
                "fall": 2,
            },
        },
        "services": [_service_document(lab, service) for service in lab.services],
    }
    if lab.forward.is_tunnel:
        document["tunnel_source"] = {"ipv4": str(balancer.ipv4), "ipv6": str(balancer.ipv6)}
    if others := [link.interface for link in balancer.links[1:]]:
        document["backend_interfaces"] = others
    if lab.paired:
        document |= _failover_document(lab, balancer)
    if lab.etcd:
        etcd = {"endpoints": [*lab.etcd_urls]}
        document["fleet"] = {"name": "lab", "node": balancer.name, "etcd": etcd, "report": "1s"}
    return document


def _failover_document(lab: Lab, balancer: Node) -> dict[str, object]:
    """Return the settings of failover between the balancers: election, flows, addresses."""
    balancers = lab.nodes(Role.BALANCER)
    behind = balancers.index(balancer)
    common = {
        "priority": _SECOND_PRIORITY + 1 - behind if behind else _FIRST_PRIORITY,
        "advert_interval": _ADVERT_INTERVAL,
        "preempt_delay": _PREEMPT_DELAY,
    }
    front, back = balancer.links[0], balancer.links[-1]
    instances: list[dict[str, object]] = [
        {"name": "lab", "vrid": _VRID, "interface": front.device, **common}
    ]
    document: dict[str, object] = {}
    if lab.inside:
        instances[0]["group"] = "lab"
        inside = [str(address) for address in lab.inside]
        instances.append(
            {
                "name": "inside",
                "vrid": _INSIDE_VRID,
                "interface": back.device,
                "vips": inside,
                "group": "lab",
                **common,
            }
        )
        if lab.forward is Forward.FULLNAT:
            document["nat"] = {"sources_ipv4": inside[:1], "sources_ipv6": inside[1:]}
    document["failover"] = {
        "key_file": str(lab.key_file),
        "instances": instances,
        "sync": {"peers": [str(other.ipv4) for other in balancers if other != balancer]},
    }
    return document


def _service_document(lab: Lab, service: Service) -> dict[str, object]:
    document: dict[str, object] = {
        "name": service.name,
        "vip": str(service.vip),
        "port": service.port,
    }
    if service.name == PROMPTS:
        document |= {
            "scheduler": Scheduler.LEAST_LOAD.value,
            "telemetry": {"type": "vllm", "interval": "200ms"},
        }
    return document | {"backends": _backends(lab, service)}


def backend_document(lab: Lab, node: Node, family: int, vip_port: int = PORT) -> dict[str, object]:
    """Return a backend in the configuration of a service of that family, 4 or 6, and port."""
    document: dict[str, object] = {
        "name": node.name,
        "address": str(node.ipv4 if family == 4 else node.ipv6),
    }
    if lab.forward is Forward.NAT:
        # Answers are distinguished by their port, so no two services have the same.
        document["port"] = vip_port if vip_port != PORT else lab.server_port
    return document


def _backends(lab: Lab, service: Service) -> list[dict[str, object]]:
    return [
        backend_document(lab, node, service.vip.version, service.port)
        | {"weight": lab.weight(index)}
        for index, node in enumerate(lab.nodes(Role.BACKEND)[: lab.backends])
    ]
