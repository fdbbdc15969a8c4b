"""Two hosts and a client on a switch, each a network namespace with ``eth0``."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from lbctl.lab import netns
from lbctl.lab.build import remove_locks
from tests.netns.site import wait_until

type Address = IPv4Address | IPv6Address

NODES = {"a": 1, "b": 2, "client": 9}
VIP, VIP6 = ip_address("10.73.0.100"), ip_address("fd73::100")
VIP6_LOCAL = ip_address("fe80::73:100")
_NODE_SETTINGS = {
    "ipv4/ip_forward": "0",  # an old master that forwards would hide an outage
    "ipv6/conf/all/forwarding": "0",
    "ipv6/conf/default/accept_dad": "0",
}
_SWITCH_SETTINGS = {f"bridge/bridge-nf-call-{of}tables": "0" for of in ("ip", "ip6", "arp")}


def address(node: str, family: int = 4) -> Address:
    """Of a node's ``eth0``."""
    return ip_address(f"10.73.0.{NODES[node]}" if family == 4 else f"fd73::{NODES[node]}")


def link_local(node: str) -> Address:
    """The one of a node's ``eth0``."""
    return ip_address(f"fe80::73:ff:fe00:{NODES[node]}")


def mac(node: str) -> str:
    """Of a node's ``eth0``."""
    return f"02:73:00:00:00:{NODES[node]:02x}"


@dataclass(frozen=True)
class Switched:
    """The namespaces; the switch has a port named after each node."""

    prefix: str

    def name(self, node: str) -> str:
        return f"{self.prefix}-{node}"

    def make(self) -> None:
        switch = self.name("switch")
        netns.ip([f"netns add {switch}"])
        netns.write_sysctls(switch, _SWITCH_SETTINGS)
        bridge = "link add br0 type bridge forward_delay 0 mcast_snooping 0"
        netns.ip([bridge, "link set br0 up"], switch)
        for node in NODES:
            netns.ip([f"netns add {self.name(node)}"])
            netns.write_sysctls(self.name(node), _NODE_SETTINGS)
            self.cable(node)

    def cable(self, node: str) -> None:
        """Make ``eth0`` of a node, also when it was removed."""
        peer = f"peer name {node} netns {self.name('switch')}"
        netns.ip(
            [
                f"link add eth0 address {mac(node)} type veth {peer}",
                "link set lo up",
                "link set eth0 up",
                f"address add {address(node)}/24 dev eth0",
                f"address add {address(node, 6)}/64 dev eth0 nodad",
            ],
            self.name(node),
        )
        netns.ip([f"link set dev {node} master br0 up"], self.name("switch"))

    def cut(self, node: str) -> None:
        """The node loses its carrier."""
        netns.ip([f"link set dev {node} down"], self.name("switch"))

    def mend(self, node: str) -> None:
        """The carrier is there again."""
        netns.ip([f"link set dev {node} up"], self.name("switch"))

    def mute(self, node: str, on: bool = True) -> None:
        """The switch takes nothing from the node and gives it nothing; its carrier stays."""
        state = "0" if on else "3"  # disabled, forwarding
        self.run("switch", "bridge", "link", "set", "dev", node, "state", state)

    def run(self, node: str, *command: str) -> str:
        """Run a command there; it must succeed."""
        done = subprocess.run(
            [*netns.entering(self.name(node)), *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{command[0]} in {node}: {done.stdout} {done.stderr}"
        return done.stdout

    def has(self, node: str, vip: Address) -> bool:
        """Whether the node has the VIP on an interface."""
        return f" {vip}/" in self.run(node, "ip", "-o", "address", "show")

    def await_answer(self, vip: object) -> None:
        """Ping until it is answered, as clients ask again: what is on its way when the VIP moves
        is lost.
        """
        wait_until(f"{vip} answers", lambda: self.answers(vip, 1.0))

    def answers(self, vip: object, patience_s: float = 0.2) -> bool:
        """Whether the client's one ping is answered."""
        command = ["ping", "-c1", f"-W{patience_s}", str(vip)]
        done = subprocess.run(
            [*netns.entering(self.name("client")), *command],
            capture_output=True,
            check=False,
            timeout=60,
        )
        return done.returncode == 0

    def remove(self) -> None:
        for node in ("switch", *NODES):
            remove_locks(self.name(node))
            subprocess.run(
                ["ip", "netns", "del", self.name(node)], capture_output=True, check=False
            )


@contextlib.contextmanager
def switched(prefix: str) -> Iterator[Switched]:
    """Made, and removed with the block; the prefix gets the process's id."""
    made = Switched(f"{prefix}-{os.getpid()}")
    try:
        made.make()
        yield made
    finally:
        made.remove()
