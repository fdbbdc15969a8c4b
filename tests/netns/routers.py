"""Routers in a lab, with a smaller link: hosts of the lab that forward, and one behind each.

The router's interfaces take what the others send; it is the way on that is smaller, so it says
so by ICMP.
"""

from __future__ import annotations

from agent.model import Forward
from lbctl.lab import netns
from lbctl.lab.topology import Lab, Node, Role

SMALL_MTU = 1400
# As the lab's networks: 10.99.N.x and fd99:0:0:N::x.
CLIENTS_BEHIND, SERVERS_BEHIND = 9, 8


def behind(family: int, network: int, number: int) -> str:
    """The router has number 1, the host 2."""
    return f"10.99.{network}.{number}" if family == 4 else f"fd99:0:0:{network}::{number}"


def _prefix(family: int, network: int) -> str:
    return f"10.99.{network}.0/24" if family == 4 else f"fd99:0:0:{network}::/64"


def _cable(router: Node, host: Node, network: int) -> None:
    """Between a router, which forwards less than its interfaces could carry, and a host."""
    netns.ip([f"link add eth1 type veth peer name eth1 netns {host.namespace}"], router.namespace)
    netns.write_sysctls(router.namespace, {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"})
    for node, number in ((router, 1), (host, 2)):
        small = f" mtu {SMALL_MTU}" if node is router else ""
        commands = ["link set eth1 up"]
        for family in (4, 6):
            length = _prefix(family, network).partition("/")[2]
            address = f"{behind(family, network, number)}/{length}"
            commands += [
                f"address add {address} dev eth1 noprefixroute{' nodad' if family == 6 else ''}",
                f"route add {_prefix(family, network)} dev eth1{small}",
            ]
        netns.ip(commands, node.namespace)
        netns.checksum_in_software(node.namespace, "eth1")


def before_client(lab: Lab) -> None:
    """client3 is behind client2."""
    router, host = lab.node("client2"), lab.node("client3")
    _cable(router, host, CLIENTS_BEHIND)
    vips = [
        f"route add {vip}/{vip.max_prefixlen} via {behind(vip.version, CLIENTS_BEHIND, 1)}"
        f" src {behind(vip.version, CLIENTS_BEHIND, 2)}"
        for vip in lab.vips
    ]
    netns.ip(vips, host.namespace)
    if lab.forward is Forward.DSR:
        for node in lab.nodes(Role.BACKEND):
            netns.ip(_ways(router, CLIENTS_BEHIND), node.namespace)


def before_backend(lab: Lab) -> None:
    """An address of be3 is behind be2."""
    router, host = lab.node("be2"), lab.node("be3")
    _cable(router, host, SERVERS_BEHIND)
    for balancer in lab.nodes(Role.BALANCER):
        netns.ip(_ways(router, SERVERS_BEHIND), balancer.namespace)


def _ways(router: Node, network: int) -> list[str]:
    return [
        f"route add {_prefix(family, network)} via {address}"
        for family, address in ((4, router.ipv4), (6, router.ipv6))
    ]
