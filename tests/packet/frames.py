"""Builds frames: with scapy where a test is about bytes, by hand where it needs thousands."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

VIP4 = "203.0.113.10"
VIP6 = "2001:db8::10"
CLIENT4 = "198.51.100.7"
CLIENT6 = "2001:db8:c::7"
BALANCER_MAC = "02:00:00:00:00:01"
ROUTER_MAC = "02:00:00:00:00:02"
BALANCER4 = "10.0.0.1"
BALANCER6 = "fd00::1"

L3 = 14
V4_SADDR, V4_SPORT, V4_FLAGS = 26, 34, 47
V6_SADDR, V6_SPORT, V6_FLAGS = 22, 54, 67


def _client_for(vip: str) -> str:
    return CLIENT4 if ip_address(vip).version == 4 else CLIENT6


def network_layer(src: str, dst: str, **fields: object) -> Packet:
    """An IP header of the family of ``dst``."""
    if ip_address(dst).version == 4:
        return IP(src=src, dst=dst, **fields)
    return IPv6(src=src, dst=dst, **fields)


def ether() -> Packet:
    return Ether(dst=BALANCER_MAC, src=ROUTER_MAC)


def tcp(
    flags: str = "S",
    vip: str = VIP4,
    port: int = 80,
    client: str = "",
    client_port: int = 40_000,
    payload: bytes = b"",
    ack: int = 0,
    **fields: object,
) -> bytes:
    """A TCP segment from a client to a VIP; ``fields`` are of the IP header."""
    ip = network_layer(client or _client_for(vip), vip, **fields)
    segment = TCP(sport=client_port, dport=port, flags=flags, seq=1000, ack=ack)
    return bytes(ether() / ip / segment / Raw(payload))


def udp(
    vip: str = VIP4,
    port: int = 53,
    client: str = "",
    client_port: int = 40_000,
    payload: bytes = b"query",
    **fields: object,
) -> bytes:
    """A datagram from a client to a VIP."""
    ip = network_layer(client or _client_for(vip), vip, **fields)
    return bytes(ether() / ip / UDP(sport=client_port, dport=port) / Raw(payload))


class Segments:
    """TCP segments to one VIP and port by the hundred thousand; their checksums are not kept."""

    def __init__(self, vip: str = VIP4, port: int = 80, payload: bytes = b"", ack: int = 0) -> None:
        self.ipv6 = ip_address(vip).version == 6
        self._bytes = bytearray(tcp(vip=vip, port=port, payload=payload, ack=ack))

    def frame(self, client: bytes, client_port: int, flags: int) -> bytes:
        """``client`` packed: 4 or 16 bytes."""
        at, port, flag = (
            (V6_SADDR, V6_SPORT, V6_FLAGS) if self.ipv6 else (V4_SADDR, V4_SPORT, V4_FLAGS)
        )
        frame = self._bytes
        frame[at : at + len(client)] = client
        struct.pack_into("!H", frame, port, client_port)
        frame[flag] = flags
        return bytes(frame)


def random_clients(
    seed: int, count: int, *, ipv6: bool = False
) -> Iterator[tuple[IPv4Address | IPv6Address, int]]:
    """Addresses of hosts, and ports; the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        if ipv6:  # 2000::/3
            address: IPv4Address | IPv6Address = IPv6Address(1 << 125 | draw.getrandbits(125))
        else:
            first = draw.choice([n for n in range(1, 224) if n != 127])
            address = IPv4Address(first << 24 | draw.getrandbits(24))
        yield address, draw.randrange(1, 65_536)


FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
