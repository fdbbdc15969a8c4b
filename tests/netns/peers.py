"""Servers and clients of a lab that are threads of the test, their sockets in its namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from lbctl.lab import netns
from lbctl.lab.documents import backend_document
from lbctl.lab.topology import Lab, Node, Role

TALK_PORT = 9000
STICKY_PORT = 9001
MIXED_PORT = 9002
ECHO_PORT = 5300
CLOSED_PORT = 5301
REFUSED_PORT = 82  # no usable backend, and clients are told
SILENT_PORT = 83

# Counters; that of IPv4 is of errors of every kind.
_TOO_BIG = {4: "Icmp.InDestUnreachs", 6: "Icmp6InPktTooBigs"}

type Address = IPv4Address | IPv6Address

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ATTEMPT_S = 60.0
_ANSWER_S = 60  # of the servers' thread


class _Echo(asyncio.DatagramProtocol):
    """Answers with its name and what it was sent."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._transport.sendto(self._name + b" " + data, addr)  # type: ignore[attr-defined]


class Servers:
    """On every backend: TCP servers that say who they are and repeat messages, and a UDP echo."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        for node in self._lab.nodes(Role.BACKEND):
            asyncio.run_coroutine_threadsafe(self._serve(node), self._loop).result(_ANSWER_S)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result(_ANSWER_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, node: Node) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                peer = ip_address(writer.get_extra_info("peername")[0].removeprefix("::ffff:"))
                writer.write(f"{node.name} {peer}\n".encode())
                while True:
                    head = await reader.readexactly(4)
                    data = await reader.readexactly(struct.unpack("!I", head)[0])
                    writer.write(head + data)
                    await writer.drain()
            writer.close()

        with netns.inside(node.namespace):
            listeners = [
                socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
                for port in (TALK_PORT, STICKY_PORT, MIXED_PORT)
            ]
            # Datagrams must be answered from the address that they were sent to.
            routed = self._lab.forward.is_nat
            own = (node.ipv4, node.ipv6) if routed else self._lab.vips
            datagrams = [_bound(address, ECHO_PORT) for address in own]
        for listener in listeners:
            await asyncio.start_server(talk, sock=listener)
        for datagram in datagrams:
            await self._loop.create_datagram_endpoint(lambda: _Echo(node.name), sock=datagram)


def _bound(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    found = socket.socket(family, socket.SOCK_DGRAM)
    found.bind((str(address), port))
    return found


@contextlib.contextmanager
def serving(lab: Lab) -> Iterator[Servers]:
    servers = Servers(lab)
    servers.start()
    try:
        yield servers
    finally:
        servers.stop()


def backend_of(lab: Lab, node: Node, family: int) -> dict[str, Any]:
    """In the configuration, without a port of its own: packets keep theirs, in nat too."""
    document = backend_document(lab, node, family)
    return {key: value for key, value in document.items() if key != "port"}


def unasked() -> list[dict[str, Any]]:
    """In the configuration: services that nobody asks, which need what any test's services need
    beside a way of forwarding. Labs that have them run one program, which is compiled once.
    """
    like = {"vip": "10.99.0.98", "health": {"type": "none"}, "backends": []}
    wanted = (
        {"scheduler": "source"},
        {"scheduler": "round-robin"},
        {"scheduler": "least-conn"},
        {"no_backend": "reset"},
        {"protocol": "udp", "quic_server_id_bytes": 2},
    )
    return [
        {"name": f"unasked{n}", "port": 7000 + n, **like, **more} for n, more in enumerate(wanted)
    ]


def services(lab: Lab) -> list[dict[str, Any]]:
    """In the configuration: what these servers offer, and what nobody does."""
    found = []
    for family, vip in zip((4, 6), lab.vips, strict=True):
        servers, others = (
            [backend_of(lab, node, of) for node in lab.nodes(Role.BACKEND)]
            for of in (family, 10 - family)
        )
        mixed = others if lab.forward.is_tunnel else servers
        away = [server | {"state": "maintenance"} for server in servers]
        for name, port, protocol, more in (
            ("talk", TALK_PORT, "tcp", {"scheduler": "least-conn", "backends": servers}),
            ("sticky", STICKY_PORT, "tcp", {"scheduler": "source", "backends": servers}),
            ("mixed", MIXED_PORT, "tcp", {"scheduler": "maglev", "backends": mixed}),
            ("echo", ECHO_PORT, "udp", {"scheduler": "round-robin", "backends": servers}),
            ("closed", CLOSED_PORT, "udp", {"backends": servers}),
            ("refused", REFUSED_PORT, "tcp", {"no_backend": "reset", "backends": away}),
            ("refused-udp", REFUSED_PORT, "udp", {"no_backend": "reset", "backends": away}),
            ("silent", SILENT_PORT, "tcp", {"backends": away}),
        ):
            found.append(
                {
                    "name": f"{name}{family}",
                    "vip": str(vip),
                    "port": port,
                    "protocol": protocol,
                    "health": {"type": "none"},
                    **more,
                }
            )
    return found


class Talk:
    """A client's connection to one of the TCP servers."""

    def __init__(self, client: Node, vip: Address, port: int = TALK_PORT) -> None:
        with netns.inside(client.namespace):
            self._socket = socket.create_connection((str(vip), port), timeout=_ATTEMPT_S)
        self._stream = self._socket.makefile("rb")
        try:
            greeting = self._stream.readline().decode().split()
        except OSError:
            self.close()
            raise
        if len(greeting) != 2:
            self.close()
            raise ConnectionError(f"greeted with {greeting}")
        self.backend = greeting[0]
        self.seen_as = ip_address(greeting[1])

    def say(self, data: bytes) -> bytes:
        """Send a message; what comes back."""
        self.send(data)
        return self.hear(len(data))

    def send(self, data: bytes) -> None:
        """A message whose answer is not read yet."""
        self._socket.sendall(struct.pack("!I", len(data)) + data)

    def hear(self, size: int) -> bytes:
        """The answer to a message of that size."""
        answer = self._stream.read(4 + size)
        if answer is None or len(answer) < 4 + size:
            raise ConnectionError("the connection ended in mid-answer")
        return answer[4:]

    def wait_up_to(self, timeout_s: float) -> None:
        """From now on, for what is sent and heard."""
        self._socket.settimeout(timeout_s)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An ICMP error that a socket was told of."""

    error: int  # errno
    kind: int  # ICMP or ICMPv6 type
    code: int
    offender: Address  # who sent it


class Datagrams:
    """A client's connected UDP socket, which hears of ICMP errors."""

    def __init__(self, client: Node, vip: Address, port: int, ttl: int | None = None) -> None:
        self._v4 = vip.version == 4
        family = socket.AF_INET if self._v4 else socket.AF_INET6
        self._level = socket.IPPROTO_IP if self._v4 else socket.IPPROTO_IPV6
        self._recverr = _IP_RECVERR if self._v4 else _IPV6_RECVERR
        with netns.inside(client.namespace):
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setsockopt(self._level, self._recverr, 1)
        if ttl is not None:
            option = socket.IP_TTL if self._v4 else socket.IPV6_UNICAST_HOPS
            self._socket.setsockopt(self._level, option, ttl)
        self._socket.settimeout(_ATTEMPT_S)
        self._socket.connect((str(vip), port))

    def ask(self, data: bytes) -> bytes:
        """Send a datagram; the answer. Raises TimeoutError, or what an ICMP error means."""
        self._socket.send(data)
        return self._socket.recv(65_536)

    def provoke(self, data: bytes) -> IcmpError | None:
        """Send a datagram; the ICMP error that it meets, None if none comes in time."""
        self._socket.send(data)
        poll = select.poll()
        poll.register(self._socket, 0)  # POLLERR alone
        if not poll.poll(1000 * _ATTEMPT_S):
            return None
        _, ancillary, _, _ = self._socket.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        said = next(
            value
            for level, kind, value in ancillary
            if (level, kind) == (self._level, self._recverr)
        )
        error, _origin, kind, code = struct.unpack_from("=IBBB", said)
        # struct sock_extended_err of 16 bytes, then a sockaddr
        at, length = (20, 4) if self._v4 else (24, 16)
        return IcmpError(error, kind, code, ip_address(said[at : at + length]))

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def snmp(node: Node) -> dict[str, int]:
    """The kernel's counters of a host, as ``Tcp.InCsumErrors`` and ``Udp6InCsumErrors``."""
    found: dict[str, int] = {}
    with netns.inside(node.namespace):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
            name, value = line.split()
            found[name] = int(value)
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        prefix = names.partition(":")[0]
        for name, value in zip(names.split()[1:], values.split()[1:], strict=True):
            found[f"{prefix}.{name}"] = int(value)
    return found


def too_big_heard(node: Node, family: int) -> int:
    """How many ICMP errors have told a host that a packet does not fit."""
    return snmp(node)[_TOO_BIG[family]]


def checksum_errors(lab: Lab) -> dict[str, int]:
    """Packets that the hosts of a lab found damaged: empty if all is well."""
    return {
        f"{node.name} {name}": value
        for node in lab.nodes()
        for name, value in snmp(node).items()
        if "CsumErrors" in name and value
    }
