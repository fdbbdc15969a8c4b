"""A cable that loses, reorders and doubles what a client sends and gets, on a stated plan.

The client moves behind the relay: a namespace of its own takes over the addresses and the MAC of
a host of the lab, and every frame between the two passes here.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lbctl.lab import netns, topology, wiring
from lbctl.lab.topology import Node
from tests.netns.prompt.tap import packet_socket, parse

_OUTGOING = 4  # PACKET_OUTGOING: what the relay itself has sent
_FAR = "far"
_HELD_S = 0.02  # a held frame goes on when two others have passed, or after that in a pause
_HELD_FRAMES = 2


@dataclass(frozen=True, slots=True)
class Faults:
    """What befalls every so many-th segment with payload, of each direction; 0: none.

    ``spared``: ports of servers whose own segments all pass.
    """

    lose: int = 0
    hold: int = 0
    double: int = 0
    spared: frozenset[int] = frozenset()


@dataclass
class _Direction:
    source: socket.socket
    target: socket.socket
    seen: int = 0
    held: list[tuple[float, int, bytes]] = field(default_factory=list)


class Relay:
    """Passes frames between two interfaces until it is stopped."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.lost = self.overtaken = 0
        self.faults = Faults()
        self._ways = (_Direction(far, near), _Direction(near, far))
        self._ready = selectors.DefaultSelector()
        for way in self._ways:
            self._ready.register(way.source, selectors.EVENT_READ, way)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def stop(self) -> None:
        """End; what is held is lost."""
        self._stop.set()
        self._thread.join()
        self._ready.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            busy: list[_Direction] = []
            for key, _ in self._ready.select(_HELD_S / 2):
                way: _Direction = key.data
                busy.append(way)
                frame, address = way.source.recvfrom(65_535)
                if address[2] != _OUTGOING:
                    self._take(way, frame)
            for way in self._ways:
                # If this thread stood still, the frames that overtake may be waiting here.
                while way not in busy and way.held and way.held[0][0] <= time.monotonic():
                    way.target.send(way.held.pop(0)[2])

    def _take(self, way: _Direction, frame: bytes) -> None:
        segment = parse(frame, 0)
        if segment is None or not segment.payload or segment.source[1] in self.faults.spared:
            way.target.send(frame)
            return
        way.seen += 1
        if _falls(way.seen, self.faults.lose):
            self.lost += 1
            return
        if _falls(way.seen, self.faults.hold):
            way.held.append((time.monotonic() + _HELD_S, way.seen, frame))
            return
        way.target.send(frame)
        if _falls(way.seen, self.faults.double):
            way.target.send(frame)
        while way.held and way.seen - way.held[0][1] >= _HELD_FRAMES:
            self.overtaken += 1
            way.target.send(way.held.pop(0)[2])


def _falls(count: int, every: int) -> bool:
    return bool(every) and count % every == 0


def _ip_json(namespace: str, *words: str) -> list[dict[str, Any]]:
    shown = subprocess.run(
        ["ip", "-n", namespace, "-j", *words], capture_output=True, text=True, check=True
    )
    found: list[dict[str, Any]] = json.loads(shown.stdout or "[]")
    return found


@contextlib.contextmanager
def behind_relay(node: Node) -> Iterator[tuple[str, Relay]]:
    """Move a host of the lab behind a relay that loses nothing yet; gives where it is now."""
    near = node.namespace
    far = f"{near}-{_FAR}"
    (link,) = _ip_json(near, "link", "show", topology.NODE_INTERFACE)
    addresses = [
        f"{address['local']}/{address['prefixlen']}"
        for entry in _ip_json(near, "address", "show", topology.NODE_INTERFACE)
        for address in entry["addr_info"]
        if address["scope"] == "global"
    ]
    routes = [
        (version, route["dst"], route["gateway"])
        for version in ("-4", "-6")
        for route in _ip_json(near, version, "route", "show")
        if "gateway" in route
    ]
    cable = f"mtu {node.mtu} address {link['address']} netns {far}"
    netns.ip([f"netns add {far}"])
    try:
        netns.write_sysctls(far, wiring.sysctls(node.role))
        netns.ip(
            [
                f"link add {_FAR} mtu {node.mtu} type veth peer {topology.NODE_INTERFACE} {cable}",
                f"address flush dev {topology.NODE_INTERFACE}",
                f"link set {_FAR} up",
            ],
            near,
        )
        netns.ip(
            [
                "link set lo up",
                f"link set {topology.NODE_INTERFACE} up",
                *(f"address add {a} dev {topology.NODE_INTERFACE}" for a in addresses),
                *(f"{version} route add {dst} via {via}" for version, dst, via in routes),
            ],
            far,
        )
        netns.checksum_in_software(far, topology.NODE_INTERFACE)
        with netns.inside(near):
            sockets = packet_socket(topology.NODE_INTERFACE), packet_socket(_FAR)
        relay = Relay(*sockets)
        try:
            yield far, relay
        finally:
            relay.stop()
            for each in sockets:
                each.close()
    finally:
        netns.ip([f"netns del {far}"])
