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
_DF = 0x4000
_GUE_SPORT = 0xC000  # the first of those that the packet path uses


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
