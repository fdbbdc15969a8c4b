"""Owns the network of a pair, a bridge with a client and two nodes, and the faults in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lbctl.lab import netns, processes, wiring
from lbctl.lab.netns import LabError
from lbctl.lab.topology import Role

INTERFACE = "eth0"
MASTER, BACKUP = 0, 1  # the nodes' roles while all is well
_PREFIX = "failover"
_TABLE = "cut"
_LOG_LINES = 5
_COMMAND_TIMEOUT_S = 10.0

type Act = Callable[[], None]  # a prepared action, done when it is called


@dataclass(frozen=True, slots=True)
class Variant:
    """The VRRP variant: family, version and interval."""

    name: str
    title: str
    version: int
    interval_s: float
    family: int = 4

    @property
    def vip(self) -> str:
        """The address that the client probes."""
        return "10.73.0.100" if self.family == 4 else "fd73::100"


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the pair, and the name of its port on the bridge."""

    namespace: str
    name: str
    mac: str
    priority: int
    ipv4: str
    ipv6: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair in a network of its own."""

    name: str
    variant: Variant
    folder: Path

    def namespace(self, of: str) -> str:
        """Return the namespace of a node, the client or the switch."""
        return f"{self.name}-{of}"

    @property
    def nodes(self) -> tuple[Node, Node]:
        """The node that is master while all is well, and its backup."""
        return (
            Node(self.namespace("lb1"), "lb1", "02:73:00:00:00:0a", 150, "10.73.0.1", "fd73::1"),
            Node(self.namespace("lb2"), "lb2", "02:73:00:00:00:0b", 100, "10.73.0.2", "fd73::2"),
        )

    def log(self, index: int) -> str:
        """Return the last lines of the log of a node's daemon."""
        try:
            text = (self.folder / f"{self.nodes[index].name}.log").read_text(errors="replace")
        except OSError:
            return "it wrote none"
        return " | ".join(text.strip().splitlines()[-_LOG_LINES:]) or "it is empty"

    def carrier(self, node: Node, there: bool) -> Act:
        """Prepare to pull a node's cable out of the switch, or to plug it in."""
        batch = ["ip", "-n", self.namespace("switch"), "-batch", "-"]
        return self._armed(batch, f"link set {node.name} {'up' if there else 'down'}\n")

    def lose(self, *rules: str) -> Act:
        """Prepare to drop what nftables rules match on the bridge; no node loses carrier."""
        chain = "type filter hook forward priority 0"
        body = "\n".join([chain, *(f"{rule} drop" for rule in rules)])
        return self._nft(f"table bridge {_TABLE} {{\nchain forward {{\n{body}\n}}\n}}\n")

    def lose_nothing(self) -> Act:
        """Prepare to undo ``lose``."""
        return self._nft(f"delete table bridge {_TABLE}\n")

    def forget(self) -> None:
        """Make the client resolve the VIP again."""
        netns.ip([f"neigh flush dev {INTERFACE}"], self.namespace("client"))

    def _nft(self, text: str) -> Act:
        return self._armed([*netns.entering(self.namespace("switch")), "nft", "-f", "-"], text)

    def _armed(self, command: Sequence[str], text: str) -> Act:
        """Start a command now, which waits for its input until the action is done."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

        def act() -> None:
            said, _ = process.communicate(text, timeout=_COMMAND_TIMEOUT_S)
            if process.returncode != 0:
                raise LabError(f"{command[-3]} refused: {' '.join(said.split())}", where=self.name)

        return act


def _build(pair: Pair) -> None:
    roles = {
        "switch": Role.SWITCH,
        "client": Role.CLIENT,
        "lb1": Role.BALANCER,
        "lb2": Role.BALANCER,
    }
    netns.ip([f"netns add {pair.namespace(of)}" for of in roles])
    for of, role in roles.items():
        netns.write_sysctls(pair.namespace(of), wiring.sysctls(role))
    ends = [(node.name, node.mac, node.ipv4, node.ipv6) for node in pair.nodes]
    ends.append(("client", "02:73:00:00:00:0c", "10.73.0.10", "fd73::10"))
    quiet = "stp_state 0 forward_delay 0 mcast_snooping 0"
    commands = [f"link add br0 type bridge {quiet}", "link set br0 up"]
    for port, mac, _, _ in ends:
        far_end = f"peer name {INTERFACE} address {mac} netns {pair.namespace(port)}"
        commands += [f"link add {port} type veth {far_end}", f"link set {port} master br0 up"]
    netns.ip(commands, pair.namespace("switch"))
    for port, _, ipv4, ipv6 in ends:
        addresses = [f"address add {address} dev {INTERFACE}" for address in (f"{ipv4}/24",)]
        addresses.append(f"address add {ipv6}/64 dev {INTERFACE} nodad")
        netns.ip(["link set lo up", f"link set {INTERFACE} up", *addresses], pair.namespace(port))


def _remove(name: str) -> None:
    for namespace in netns.names():
        if namespace.startswith(f"{name}-"):
            with suppress(LabError):
                netns.ip([f"netns del {namespace}"])


def remove_abandoned() -> None:
    """Remove the networks of runs that were killed before they could clean up."""
    for namespace in netns.names():
        prefix, _, rest = namespace.partition("-")
        pid = rest.partition("-")[0]
        if prefix == _PREFIX and pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _remove(f"{prefix}-{pid}")


@contextmanager
def wired(variant: Variant, folder: Path, number: int) -> Iterator[Pair]:
    """Make a network; at the end of the block, remove it with all that was started in it."""
    pair = Pair(f"{_PREFIX}-{os.getpid()}-{number}", variant, folder / f"pair{number}")
    pair.folder.mkdir()
    try:
        _build(pair)
        yield pair
    finally:
        processes.stop(pair.folder, processes.find(pair.folder), grace_s=2.0)
        _remove(pair.name)
        shutil.rmtree(pair.folder, ignore_errors=True)
