"""The floors: the cost of a packet without a balancer's decisions."""

from __future__ import annotations

import json
from pathlib import Path

from agent.dataplane import attach
from agent.dataplane.compile import compile_program
from agent.model import Forward, Hook
from bench.peers.contender import LAB_NAME, Contender, Running
from bench.peers.wiring import PeersError, Wired
from lbctl.lab import build, netns, topology
from lbctl.lab.topology import Lab, Node

_PROGRAM = Path(__file__).with_name("floor.c")


class Router(Contender):
    """The kernel routes between client and servers; nothing balances."""

    __slots__ = ()

    def start(self, wired: Wired) -> Running:
        wired.forward()
        command = _route_by_balancer(wired)
        return Running(
            targets=_servers(wired),
            command=f"sysctl net.ipv4.ip_forward=1; client: ip {command}",
        )


class XdpFloor(Contender):
    """An XDP program that only rewrites the MAC addresses, with one server."""

    __slots__ = ()

    def start(self, wired: Wired) -> Running:
        build.prepare_paths(wired.lab)
        if self.both_ways:
            _route_by_balancer(wired)
        else:
            wired.take_vip()
        definitions = {
            "FLOOR_CLIENT": str(int(wired.client.ipv4)),
            "FLOOR_CLIENT_MAC": _initialiser(_mac_of(wired, wired.client)),
            "FLOOR_BACKEND_MAC": _initialiser(_mac_of(wired, wired.backends[0])),
        }
        program = compile_program(_PROGRAM.read_text(), "floor_balancer", definitions)
        with netns.inside(wired.balancer.namespace):
            hook = attach.attach_helper(topology.NODE_INTERFACE, program.fd)
        if hook is not Hook.NATIVE:
            raise PeersError(f"the floor's program is attached {hook.value}", where="bench/peers")
        return Running(
            targets=_servers(wired) if self.both_ways else (),
            command="bench/peers/floor.c, attached natively",
        )


def _route_by_balancer(wired: Wired) -> str:
    """Return the ``ip`` command that routes the client's packets for servers by the balancer."""
    network = next(a.network for a in wired.backends[0].links[0].addresses if a.version == 4)
    command = f"route add {network} via {wired.balancer.ipv4}"
    netns.ip([command], wired.client.namespace)
    return command


def _servers(wired: Wired) -> tuple[str, ...]:
    return tuple(f"{node.ipv4}:{wired.lab.server_port}" for node in wired.backends)


def _initialiser(mac: str) -> str:
    return "{" + ",".join(f"0x{part}" for part in mac.split(":")) + "}"


def _mac_of(wired: Wired, node: Node) -> str:
    """Return the hardware address of a host's first interface."""
    shown = wired.run(node.namespace, "ip", "-j", "link", "show", "dev", topology.NODE_INTERFACE)
    address = json.loads(shown)[0].get("address")
    if not isinstance(address, str):
        raise PeersError("an interface without a hardware address", where=node.namespace)
    return address


def contenders() -> list[Contender]:
    """Return the floors: XDP with answers past the balancer and through it, and routing."""
    direct = Lab(LAB_NAME, backends=1, forward=Forward.DSR, hook=Hook.NATIVE)
    through = Lab(LAB_NAME, backends=1, forward=Forward.NAT, hook=Hook.NATIVE)
    return [
        XdpFloor("floor: XDP, one way", direct, both_ways=False, by_xdp=True),
        XdpFloor("floor: XDP, both ways", through, both_ways=True, by_xdp=True),
        Router("floor: router", through, both_ways=True),
    ]
