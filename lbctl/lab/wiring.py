"""Decides the commands and settings that make a lab's network: bridges, cables, addresses."""

from __future__ import annotations

from agent.model import Hook
from lbctl.lab.topology import CLIENT_MTU, Lab, Link, Node, Role


def sysctls(role: Role) -> dict[str, str]:
    """Return the kernel settings of a namespace, to be written before its interfaces are made.

    Paths are relative to ``/proc/sys/net``; ``conf/default`` is the initial value for new
    interfaces.
    """
    settings = {
        # A lab host is no router, and neither are the balancers: packets reach a backend in nat and
        # fullnat, and come back, through the balancer's program and not through the kernel. A
        # namespace inherits forwarding from the machine that made it.
        "ipv4/ip_forward": "0",
        "ipv6/conf/all/forwarding": "0",
        # An answer from a VIP has an address of lo as its source, and a decapsulated packet arrives
        # by another way.
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        # Addresses are usable at once, and only the lab configures them.
        "ipv6/conf/default/accept_dad": "0",
        "ipv6/conf/all/accept_dad": "0",
        "ipv6/conf/default/accept_ra": "0",
        # Where the default is bbr: without the fq queueing discipline it paces badly on a veth.
        # reno, because a namespace may choose no other than that and the default.
        "ipv4/tcp_congestion_control": "reno",
    }
    if role is Role.SWITCH:
        # Bridged frames must not run through the host's netfilter rules.
        for table in ("iptables", "ip6tables", "arptables"):
            settings[f"bridge/bridge-nf-call-{table}"] = "0"
        settings["ipv6/conf/default/disable_ipv6"] = "1"
    if role is Role.CLIENT:
        # One connection per request uses up ports quickly.
        settings |= {"ipv4/ip_local_port_range": "1024 65535", "ipv4/tcp_tw_reuse": "1"}
    if role is Role.BACKEND:
        # The VIP on lo is for receiving only: never answer or send ARP with it.
        settings |= {"ipv4/conf/all/arp_ignore": "1", "ipv4/conf/all/arp_announce": "2"}
    return settings


def switch_commands(lab: Lab) -> list[str]:
    """Return ``ip`` commands, run in the switch's namespace, that lay every cable."""
    links = [(node, link) for node in lab.nodes() for link in node.links]
    widest = max(link.mtu for _, link in links)
    commands = ["link set lo up"]
    for bridge in sorted({link.bridge for _, link in links}):
        quiet = "stp_state 0 forward_delay 0 mcast_snooping 0"
        commands += [
            f"link add {bridge} mtu {widest} type bridge {quiet}",
            f"link set {bridge} up",
        ]
    for node, link in links:
        far_end = f"peer name {link.interface} mtu {link.mtu} netns {node.namespace}"
        commands += [
            f"link add {link.port} mtu {widest} type veth {far_end}",
            *_join(lab, node, link),
        ]
    return commands


def _join(lab: Lab, node: Node, link: Link) -> list[str]:
    commands = [f"link set {link.port} master {link.bridge} up"]
    if node.role is Role.BALANCER and lab.paired:
        # A card drops frames for another MAC, but XDP on a veth sees them. Without this, the next
        # balancer would balance frames that the bridge floods for a dead one.
        commands.append(f"link set {link.port} type bridge_slave flood off")
    return commands


def cut_commands(node: Node, *, silent: bool) -> list[str]:
    """Return ``ip`` commands, run in the switch's namespace, that cut the cables of a host.

    ``silent``: the host sees its links up, but the switch carries nothing.
    """
    how = "nomaster" if silent else "down"
    return [f"link set {link.port} {how}" for link in node.links]


def mend_commands(lab: Lab, node: Node) -> list[str]:
    """Return ``ip`` commands that undo either kind of cut."""
    return [command for link in node.links for command in _join(lab, node, link)]


def node_commands(lab: Lab, node: Node) -> list[str]:
    """Return ``ip`` commands, run in the node's namespace, that add its addresses and routes."""
    commands = ["link set lo up"]
    for link in node.links:
        commands.append(f"link set {link.interface} up")
        if link.vlan is not None:
            commands += [
                f"link add link {link.interface} name {link.device} type vlan id {link.vlan}",
                f"link set {link.device} up",
            ]
        narrow = node.role is Role.BACKEND and link.mtu > CLIENT_MTU
        for address in link.addresses:
            prefix_route = " noprefixroute" if narrow else ""
            commands.append(_address_command(str(address), link.device) + prefix_route)
            if narrow:
                commands.append(_narrow_route(str(address.network), link.device))
        if node.role is Role.BALANCER and link.mtu > CLIENT_MTU:
            clients = [a for c in lab.nodes(Role.CLIENT) for a in (c.ipv4, c.ipv6)]
            commands += [_narrow_route(str(address), link.device) for address in clients]
    for gateway in node.gateways:
        everything = "0.0.0.0/0" if gateway.version == 4 else "::/0"
        commands.append(f"route add {everything} via {gateway}")
    if node.role is Role.BACKEND and not lab.forward.is_nat:
        commands += _host_addresses(lab, "lo")
    if node.role is Role.BALANCER and lab.vlan is not None and not lab.paired:
        # The agent would put VIPs on the interface, but neighbour discovery asks on the VLAN.
        commands += _host_addresses(lab, node.links[0].device)
    return commands


def _narrow_route(to: str, device: str) -> str:
    """Limit packets to clients to the MTU of their cables; the way to backends has more room."""
    return f"route add {to} dev {device} mtu {CLIENT_MTU}"


def _host_addresses(lab: Lab, device: str) -> list[str]:
    return [_address_command(f"{vip}/{vip.max_prefixlen}", device) for vip in lab.vips]


def _address_command(address: str, device: str) -> str:
    return f"address add {address} dev {device}{' nodad' if ':' in address else ''}"


def ports_with_xdp(lab: Lab) -> list[str]:
    """Return the switch's ports that need an XDP program to receive what XDP sends to them."""
    if lab.hook is not Hook.NATIVE:
        return []
    return [link.port for node in lab.nodes(Role.BALANCER) for link in node.links]


def ports_with_tags_in_frames(lab: Lab) -> list[str]:
    """Return the switch's ports that must hand over VLAN tags in the frame, where XDP looks for
    them.

    Otherwise a veth hands them over beside the frame; tc sees them there, XDP does not.
    """
    if lab.vlan is None:
        return []
    # On a veth the agent chooses tc for auto.
    xdp = [] if lab.hook in (Hook.TC, Hook.AUTO) else lab.nodes(Role.BALANCER)
    if lab.forward.is_tunnel:
        xdp = [*xdp, *lab.nodes(Role.BACKEND)]  # their decap is an XDP program
    return [link.port for node in xdp for link in node.links]
