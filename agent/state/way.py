"""Decides how a health check goes the way of clients' packets, to the VIP at one backend, and the
bytes of its frames: as bpf/forward.h and bpf/encap.h make them.

A backend is asked for a connection to the VIP, and is let go before there is one. That it answers
shows what a check of its own address cannot: that it has the VIP, takes off the outer header, and
that its server listens there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from agent.model import (
    NO_MAC,
    Address,
    Backend,
    CheckKind,
    Forward,
    NextHop,
    Protocol,
    Service,
    Via,
)
from agent.state.segment import checksum

# Where SYNs come from: below the ports that the kernel gives out by itself.
FIRST_PORT, LAST_PORT = 20_480, 24_575
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_INNER = {4: 4, 6: 41}  # protocol numbers of a packet within a packet
_UDP = 17
_TTL = 64
_OUTER = {4: 20, 6: 40}  # bytes of an IP header
_HEADERS = {4: 40, 6: 60}  # with a TCP header without options
_DF = 0x4000
_GUE_SPORT = 0xC000  # the first of those that the packet path uses


# Sizes of packets to try where full ones are lost: the MTUs that tunnels and lines leave.
_SIZES = (
    8000, 4000, 1500, 1492, 1480, 1472, 1464, 1460, 1456, 1450, 1440, 1430, 1420, 1412, 1400, 1380,
    1360, 1340, 1320, 1300, 1280, 1200, 1000, 576,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What a backend said by its way: ``wrong`` in words, empty if nothing is. ``full`` is the size
    of the largest packets that clients send it, in bytes; 0: it has not said so.
    """

    wrong: str = ""
    full: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """Packets to ``vip`` and ``port`` that are for the server at ``backend``."""

    forward: Forward
    vip: Address
    port: int
    backend: Address


def has_way(service: Service) -> bool:
    """Its backends can be asked by the VIP, if its check wants it."""
    return service.key.protocol is Protocol.TCP and not service.forward.is_nat


def way_of(service: Service, backend: Backend) -> Way | None:
    """The way to a backend that its check is to take; None: to ask its own address is all.

    With nat and fullnat, packets go to that address. An address of ours in the family of the VIP
    is known only where the backend has that family, too.
    """
    key, check = service.key, service.health
    if check.via is Via.HOST or check.kind is CheckKind.NONE or not has_way(service):
        return None
    port = key.port or check.port or backend.port
    if not port or key.vip.version != backend.address.version:
        return None
    # Of a prefix one that is an address of a host, whatever it is.
    vip = key.vip if key.vip_bits is None else key.vip + 1
    return Way(service.forward, vip, port, backend.address)


def frame(way: Way, hop: NextHop, packet: bytes, tunnel_source: Address, gue_port: int) -> bytes:
    """What leaves for a next hop that is resolved, with a packet to the VIP. ``tunnel_source``:
    where the outer header of ipip and gue says that it comes from.
    """
    if way.forward.is_tunnel:
        packet = _within(way, packet, tunnel_source, gue_port)
    tags = b"".join(struct.pack("!HH", *tag) for tag in hop.vlans) if hop.vlans else b""
    version = way.backend.version if way.forward.is_tunnel else way.vip.version
    macs = _mac(hop.mac or NO_MAC) + _mac(hop.source_mac)
    return macs + tags + _ETHERTYPE[version].to_bytes(2) + packet


def full_size(way: Way, mtu: int, mss: int) -> int:
    """How large the full packets of clients to the VIP are: as the server's ``mss`` allows, and as
    fits with the outer headers into packets of ``mtu`` bytes, because the packet path tells clients
    so (RFC 1191). 0: the server has announced no size.
    """
    outer = _OUTER[way.backend.version] + (8 if way.forward is Forward.GUE else 0)
    fits = mtu - (outer if way.forward.is_tunnel else 0)
    return min(mss + _HEADERS[way.vip.version], fits) if mss else 0


def padding(way: Way, size: int) -> int:
    """How many bytes of data make a packet to the VIP so large."""
    return max(0, size - _HEADERS[way.vip.version])


def smaller_sizes(full: int) -> tuple[int, ...]:
    """Which sizes to try when packets of ``full`` bytes are lost, the largest first."""
    return tuple(size for size in _SIZES if size < full)


def narrow(way: Way, full: int, widest: int) -> str:
    """That full packets get no answer, and small ones do; ``widest``: the largest that did."""
    upto = f"of {widest} bytes" if widest else "small ones"
    return (
        f"packets of {full} bytes are lost on the way to {in_words(way)}, {upto} arrive: is the MTU"
        " smaller somewhere in between, or are SYNs with data dropped?"
    )


def in_words(way: Way) -> str:
    """What was asked, as an operator reads it."""
    host = f"[{way.vip}]" if way.vip.version == 6 else str(way.vip)
    return f"{host}:{way.port} by {way.forward.value}"


def silence(way: Way, waited: str) -> str:
    """That nothing came back, and what to look at; ``waited``: for how long."""
    takes = f"does it take {way.forward.value}, and " if way.forward.is_tunnel else ""
    return f"no answer from {in_words(way)} within {waited}: {takes}is the VIP on its lo?"


def refusal(way: Way) -> str:
    """That it has refused the connection."""
    return f"connection refused at {in_words(way)}: does its server listen on the VIP?"


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _within(way: Way, packet: bytes, source: Address, gue_port: int) -> bytes:
    """The packet in an outer one to the backend."""
    protocol = _INNER[way.vip.version]
    if way.forward is Forward.GUE:
        protocol = _UDP
        head = struct.pack("!HHH", _GUE_SPORT, gue_port, 8 + len(packet))
        check = 0  # over IPv4 the packet's own will do
        if way.backend.version == 6:
            pseudo = source.packed + way.backend.packed + struct.pack("!II", 8 + len(packet), _UDP)
            covered = pseudo + head + b"\0\0" + packet
            check = checksum(covered + b"\0" * (len(covered) % 2)) or 0xFFFF
        packet = head + check.to_bytes(2) + packet
    ends = source.packed + way.backend.packed
    if way.backend.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(packet), protocol, _TTL) + ends + packet
    fields = (0x45, 0, 20 + len(packet), 0, _DF, _TTL, protocol)
    check = checksum(struct.pack("!BBHHHBBH", *fields, 0) + ends)
    return struct.pack("!BBHHHBBH", *fields, check) + ends + packet
